// A token mixer of your own in the `weft` command: half of each token's channels come from the token before.
//   own_mixer check --mixer shifted            the conformance suite on it
//   own_mixer gradcheck --mixer shifted
//   own_mixer train run.txtpb                  with  mixer { custom { type: "shifted" } }  in the config
#include "weft/weft.h"

namespace {

class Shifted final : public weft::Mixer {
 public:
  Shifted(const weft::MixerArgs& args, weft::Rng rng)
      : mix_(2 * args.dim, args.dim, rng["mix"], {.std = args.out_std}) {
    name_parts({{"mix", mix_}});
  }
  weft::Var forward(const weft::Var& x_BTD, weft::Tokens& tokens) override {
    const weft::Var both[] = {x_BTD, tokens.shift(x_BTD, 1)};
    return mix_(weft::concatenate(both, -1));
  }
  double flops_per_token(double) const override { return 0; }

 private:
  weft::Linear mix_;
};

}  // namespace

int main(int argc, char** argv) {
  weft::MixerRow shifted{
      .name = "shifted",
      .make = [](const weft::MixerArgs& args, weft::Rng rng) { return std::make_unique<Shifted>(args, rng); },
      .equation = "[x_t, x_(t-1)] W",
      .cost = "T",
      .toy = weft::MixerRow::Toy::recent};
  return weft::cli::main(argc, argv, {.mixers = {shifted}});
}
