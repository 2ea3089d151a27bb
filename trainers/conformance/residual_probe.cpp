// Residual streams under the suite of mixers: a mixer of five sublayers y_l = tanh(norm(h_l) W_l), the second of which also reads the
// token before, on the stream under test.
#include "trainers/conformance/subject.h"
#include "weft/nn/residual.h"

namespace weft::conformance {

namespace {

constexpr int64_t kSublayers = 5;

class Probe final : public Mixer {
 public:
  Probe(const ResidualMaker& make, const MixerArgs& args, Rng rng)
      : residual_(make({args.dim, kSublayers, args.norm_eps}, rng["residual"])),
        gain_(Tensor::full({args.dim}, 1)),
        norm_eps_(args.norm_eps) {
    for (uint64_t l = 0; l < kSublayers; ++l) {
      maps_.push_back(std::make_unique<Linear>(args.dim, args.dim, rng["maps"][l], LinearOptions{.std = args.std}));
      name_part({str("maps.", l), *maps_.back()});
    }
    name_parts({{"gain", gain_}, {"residual", *residual_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    std::unique_ptr<ResidualStream> stream = residual_->start(x_BTD, tokens);
    for (size_t l = 0; l < maps_.size(); ++l) {
      Var h = rms_norm(stream->input(), gain_, norm_eps_);
      stream->write(tanh((*maps_[l])(l == 1 ? h + tokens.shift(h, 1) * 0.5 : h)));
    }
    return stream->output();
  }
  double flops_per_token(double) const override { return 0; }

 private:
  std::unique_ptr<Residual> residual_;
  std::vector<std::unique_ptr<Linear>> maps_;
  Param gain_;
  double norm_eps_;
};

}  // namespace

MixerRow residual_row(const ResidualRow& row) {
  return {
      .name = "residual." + row.name,
      .make = [make = row.make](const MixerArgs& args, Rng rng) { return std::make_unique<Probe>(make, args, rng); },
      .equation = row.equation,
      .source = row.source,
      .cost = row.cost,
      .lacks = {.heads = "a residual stream has no heads"},
      .toy = MixerRow::Toy::recent,
      .toy_loss = 0.3};
}

std::vector<MixerRow> residual_rows() {
  std::vector<MixerRow> rows;
  for (const ResidualRow& row : residual_table()) rows.push_back(residual_row(row));
  return rows;
}

}  // namespace weft::conformance
