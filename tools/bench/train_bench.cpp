// `weft bench train`: whole training steps of GPT-2 shaped models (pre-LN, GELU 4d, tied head, AdamW), and what a step allocates.
#include <algorithm>
#include <functional>
#include <memory>

#include "tools/bench/bench.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/models/language_model.h"
#include "weft/ops/elementwise.h"
#include "weft/optim/optimizer.h"

namespace weft::bench {

namespace {

struct StepShape {
  const char* text;
  int64_t layers, dim, heads, tokens, vocab, batch;
};
constexpr StepShape kShapes[] = {
    {"L8 d512 h8 T1024 V8192 B4", 8, 512, 8, 1024, 8192, 4},
    {"L6 d384 h6 T512 V8192 B4", 6, 384, 6, 512, 8192, 4},
};

constexpr StepShape kCudaShapes[] = {
    {"L24 d1024 h16 T4096 V50304 B4", 24, 1024, 16, 4096, 50304, 4},  // about 350 M parameters
    {"L8 d512 h8 T1024 V8192 B4", 8, 512, 8, 1024, 8192, 4},
};

// One model with its optimiser and a batch of random tokens.
class TrainingStep {
 public:
  TrainingStep(const StepShape& s, DType compute)
      : model_({.vocab = s.vocab,
                .dim = s.dim,
                .layers = s.layers,
                .context = s.tokens,
                .norm = {NormKind::layer, 1e-5},
                .position = PositionKind::learned,
                .mixers = {SoftmaxOptions{.heads = s.heads}},
                .ffn = {.kind = FfnKind::gelu}},
               Rng(1)) {
    model_.set_compute(compute);
    std::vector<OptimizerParam> params;
    for (const NamedParam& p : model_.params()) {
      params_.push_back(p.param);
      params.push_back({p.name, p.param->value(), p.param->working()});
    }
    optimizer_ = std::make_unique<Optimizer>(std::vector<ParamGroup>{{}}, std::move(params));
    ids_ = Tensor::empty({s.batch, s.tokens}, kI32, Device::cpu());
    targets_ = Tensor::empty({s.batch, s.tokens}, kI32, Device::cpu());
    for (int64_t i = 0; i < ids_.num_elements(); ++i) {
      auto draw = [&](uint64_t seed) {
        return static_cast<int32_t>(Rng(seed).below(static_cast<uint64_t>(s.vocab), static_cast<uint64_t>(i)));
      };
      ids_.mutable_data<int32_t>()[i] = draw(1);
      targets_.mutable_data<int32_t>()[i] = draw(2);
    }
    ids_ = ops::to(ids_, default_device());
    targets_ = ops::to(targets_, default_device());
    flops_ = model_.flops_per_token() * static_cast<double>(ids_.num_elements());
  }

  double run() {
    Tokens tokens(plain_tokens(ids_.size(0), ids_.size(1)), {.is_training = true});
    Var loss = model_.loss(ids_, targets_, tokens, 1.0 / static_cast<double>(ids_.num_elements())).loss;
    backward(loss);
    std::vector<Tensor> grads;
    for (Param* p : params_) grads.push_back(p->grad());
    optimizer_->step(grads, 1, clip_factor(global_norm(grads), 1));
    for (Param* p : params_) p->clear_grad();
    return loss.value().item();
  }
  double flops() const { return flops_; }
  int64_t num_tokens() const { return ids_.num_elements(); }

 private:
  LanguageModel model_;
  std::vector<Param*> params_;
  std::unique_ptr<Optimizer> optimizer_;
  Tensor ids_, targets_;
  double flops_ = 0;
};

std::string rounded(double x) { return str(static_cast<int64_t>(x + 0.5)); }

Row step_row(const StepShape& shape, DType compute, const BenchOptions& options) {
  TrainingStep step(shape, compute);
  double first = step.run();
  step.run();  // warms the caches of allocator and products
  Allocator& memory = allocator(default_device());
  memory.reset_peak();
  int64_t before = memory.stats().num_system_allocations;
  double last = first;
  std::function<void()> run = [&] { last = step.run(); };
  Timing t = time_in_turn({&run, 1}, options.quick ? 4 : 20, 3)[0];
  MemoryStats stats = memory.stats();
  WEFT_CHECK(last < first, str("bench train: the loss went from ", first, " to ", last, " on one batch"),
             "a training step is broken");
  double rate = step.flops() / t.median_s;
  Row row = rate_row("step", shape.text, compute, rate / 1e9, "GFLOP/s", gemm_peak(compute) / 1e9);
  row.extra = {{"tokens/s", rounded(static_cast<double>(step.num_tokens()) / t.median_s)},
               {"peak MiB", rounded(static_cast<double>(stats.peak_bytes) / 1048576.0)},
               {"new blocks", str(stats.num_system_allocations - before)}};
  return row;
}

}  // namespace

std::vector<Row> run_train(const BenchOptions& options) {
  std::vector<Row> rows;
  std::span<const StepShape> shapes = default_device().is_cuda() ? std::span<const StepShape>(kCudaShapes) : kShapes;
  for (DType compute : {kF32, kBF16})
    for (const StepShape& shape : shapes)
      if (!options.quick || &shape != &shapes[0])
        rows.push_back(step_row(shape, compute, options));  // the large one takes minutes
  return rows;
}

}  // namespace weft::bench
