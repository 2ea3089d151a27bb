// One model and a batch of random tokens: what benchmarks of whole training steps run.
#pragma once

#include "weft/ops/optim.h"
#include "weft/training/training.h"

namespace weft::bench {

struct StepShape {
  const char* text;
  int64_t layers, dim, heads, tokens, vocab, batch;
};
inline constexpr StepShape kSmallShape = {"L4 d128 h4 T256 V256 B16", 4, 128, 4, 256, 256, 16};  // the quickstart's

// GPT-2 shaped: LayerNorm in front, GELU 4d, tied head; learned positions, or what `position` says.
inline LanguageModelOptions gpt2_options(const StepShape& s, PositionKind position = PositionKind::learned) {
  return {.vocab = s.vocab,
          .dim = s.dim,
          .layers = s.layers,
          .context = s.tokens,
          .norm = {NormKind::layer, 1e-5},
          .position = position,
          .mixers = {SoftmaxOptions{.heads = s.heads}},
          .ffn = {.kind = FfnKind::gelu}};
}

// As trainers/recipes/quickstart.txtpb says.
inline LanguageModelOptions quickstart_options(const StepShape& s) {
  return {.vocab = s.vocab,
          .dim = s.dim,
          .layers = s.layers,
          .context = s.tokens,
          .mixers = {SoftmaxOptions{.heads = s.heads, .qk_norm = QkNorm::rms}},
          .ffn = {.kind = FfnKind::swiglu, .hidden = 3 * s.dim}};
}
inline std::vector<ParamGroup> quickstart_groups() {
  return {{.match = "layers.*.weight", .num_dims = 2, .algorithm = MuonOptions{.lr = 0.02, .weight_decay = 0.1}},
          {.algorithm = AdamWOptions{.lr = 3e-3, .weight_decay = 0.01}}};
}

class TrainingStep {
 public:
  TrainingStep(const LanguageModelOptions& o, int64_t batch, DType compute, std::vector<ParamGroup> groups = {})
      : model_(o, Rng(1)),
        training_(model_, {.groups = std::move(groups), .clip_norm = 1, .compute = compute, .micro_batch = batch}) {
    batch_.tokens = random_ids({batch, o.context}, o.vocab, Rng(1));
    batch_.targets = random_ids({batch, o.context}, o.vocab, Rng(2));
    flops_ = model_.flops_per_token() * static_cast<double>(num_tokens());
  }

  // The batch is taken `micro_batches` times.
  double run(bool takes_diagnostics = false, int micro_batches = 1) {
    training_.set_diagnostics_every(takes_diagnostics ? 1 : 0);
    auto again = [&](int64_t, int64_t rows) {
      return data::Batch{.tokens = batch_.tokens.slice(0, 0, rows), .targets = batch_.targets.slice(0, 0, rows)};
    };
    return training_.step(again, 0, batch_.tokens.size(0) * micro_batches).loss;
  }
  int64_t num_params() const { return model_.num_params(); }
  double flops() const { return flops_; }
  double muon_flops() const {  // of an update, beside those of flops()
    const auto& optimizer = dynamic_cast<const Optimizer&>(training_.optimizer());
    double sum = 0;
    for (size_t i = 0; i < optimizer.params().size(); ++i)
      if (const auto* muon = std::get_if<MuonOptions>(&optimizer.groups()[optimizer.group_of(i)].algorithm)) {
        const Tensor& matrix = optimizer.params()[i].value;
        sum += ops::newton_schulz_flops(matrix.size(0), matrix.size(1), muon->num_iterations);
      }
    return sum;
  }
  int64_t num_tokens() const { return batch_.tokens.num_elements(); }

 private:
  static Tensor random_ids(const Shape& shape, int64_t vocab, Rng rng) {
    Tensor ids = Tensor::empty(shape, kI32, Device::cpu());
    for (int64_t i = 0; i < ids.num_elements(); ++i)
      ids.mutable_data<int32_t>()[i] =
          static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab), static_cast<uint64_t>(i)));
    return ids;
  }

  LanguageModel model_;
  Training training_;
  data::Batch batch_;
  double flops_ = 0;
};

inline std::string rounded(double x) { return str(static_cast<int64_t>(x + 0.5)); }

}  // namespace weft::bench
