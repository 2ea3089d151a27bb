// A token mixer of your own in the `weft` command: softmax attention whose scores are multiplied by a number of the config.
//   own_mixer check --mixer sharp              the conformance suite on it
//   own_mixer gradcheck --mixer sharp
//   own_mixer bench train --mixer sharp        its time beside plain attention's
//   own_mixer train run.txtpb                  with  mixer { custom { type: "sharp" number { key: "heads" value: 8 } } }  in the config
#include <cmath>

#include "weft/weft.h"

namespace {

int64_t heads_of(const weft::MixerArgs& args) { return static_cast<int64_t>(args.numbers.at("heads")); }
double factor_of(const weft::MixerArgs& args) {
  auto found = args.numbers.find("factor");
  return found == args.numbers.end() ? 2 : found->second;
}

class Sharp final : public weft::ProjectedMixer {  // brings the projections q, k, v and out
 public:
  Sharp(const weft::MixerArgs& args, weft::Rng rng) : ProjectedMixer("sharp", {.heads = heads_of(args)}, args, rng) {}
  weft::Var forward(const weft::Var& x_BTD, weft::Tokens& tokens) override {
    weft::Var q = rotated(queries(x_BTD), args_, tokens), k = rotated(keys(x_BTD), args_, tokens);
    return written(tokens.attend(q * factor_of(args_), k, values(x_BTD))[0], tokens);
  }
  double flops_per_token(double keys) const override { return 12 * static_cast<double>(s_.heads * s_.head_dim) * keys; }
};

// The same in plain float64 loops: what the check `reference` compares with.
std::vector<double> plain_loops(const weft::MixerArgs& args, const weft::reference::Parameters& p,
                                const weft::Tensor& x_BTD, const weft::TokenData& data) {
  namespace ref = weft::reference;
  const ref::Sequence s(x_BTD, data);
  const int64_t H = heads_of(args), K = s.D / H;
  ref::Numbers x = ref::values(x_BTD);
  ref::Numbers q = ref::linear(x, s.D, p, "q"), k = ref::linear(x, s.D, p, "k"), v = ref::linear(x, s.D, p, "v");
  ref::rotate(q, s, H, K);
  ref::rotate(k, s, H, K);
  const double scale = factor_of(args) / std::sqrt(static_cast<double>(K));
  ref::Numbers y = ref::mix(s, H, H, K, v, [&](int64_t b, int64_t i, int64_t h) {
    return ref::softmax(ref::scores(s, H, H, K, q, k, scale, 0, b, i, h));
  });
  return ref::linear(y, H * K, p, "out");
}

}  // namespace

int main(int argc, char** argv) {
  weft::MixerRow sharp{
      .name = "sharp",
      .make = [](const weft::MixerArgs& args, weft::Rng rng) { return std::make_unique<Sharp>(args, rng); },
      .equation = "softmax(f s) v",
      .numbers = {{"heads", 4}}};  // of the suite and the benchmark; a config gives its own
  return weft::cli::main(argc, argv, {.mixers = {sharp}, .references = {{"sharp", plain_loops}}});
}
