// Trigger-conditional mean (2603.11487), in an instance of our own with known exact solutions: uniform weights at triggers and all on the
// first token elsewhere (softmax, in the limit of large scores); relu(s_ij) / i with s_ij = 1 at triggers and 0 elsewhere (no sink).
#include <algorithm>
#include <cmath>

#include "trainers/tasks/observed.h"
#include "trainers/tasks/sinks.h"
#include "weft/autograd/functions.h"
#include "weft/optim/progress.h"
#include "weft/training/training.h"

namespace weft::tasks {

std::vector<Arm> arms() {
  SoftmaxOptions plain{.heads = 1, .head_dim = 16}, relu = plain, sigmoid = plain, off_by_one = plain, logit = plain,
                                                    key_bias = plain, gate = plain;
  relu.weights.kind = WeightKind::relu;
  sigmoid.weights.kind = WeightKind::sigmoid;
  off_by_one.sink.kind = SinkKind::off_by_one;
  logit.sink.kind = SinkKind::logit;
  key_bias.sink.kind = SinkKind::key_bias;
  gate.gates = {{}};
  return {{"softmax", plain},    {"relu", relu},         {"sigmoid", sigmoid}, {"off_by_one", off_by_one},
          {"sink_logit", logit}, {"key_bias", key_bias}, {"gate", gate}};
}

TriggerBatch trigger_batch(int64_t first_row, int64_t rows, int64_t tokens, int64_t width, Rng rng) {
  const int64_t D = width + 3;
  TriggerBatch batch{Tensor::zeros({rows, tokens, D}, kF32, Device::cpu()),
                     Tensor::zeros({rows, tokens, width}, kF32, Device::cpu()),
                     Tensor::zeros({rows, tokens}, kF32, Device::cpu())};
  for (int64_t r = 0; r < rows; ++r) {
    Rng own = rng[static_cast<uint64_t>(first_row + r)];
    // Half of the rows have one trigger, from the third token on.
    bool has_trigger = own["has trigger"].below(2, 0) == 1;
    int64_t place =
        has_trigger ? 2 + static_cast<int64_t>(own["place"].below(static_cast<uint64_t>(tokens - 2), 0)) : -1;
    float* x = batch.x.mutable_data<float>() + r * tokens * D;
    float* y = batch.y.mutable_data<float>() + r * tokens * width;
    for (int64_t t = 0; t < tokens; ++t) {
      x[t * D + width] = t == 0 ? 1 : 0;
      x[t * D + width + 1] = t == place ? 1 : 0;
      x[t * D + width + 2] = 1;
      for (int64_t c = 0; c < width && t > 0 && t != place; ++c)
        x[t * D + c] = own["content"].normal(static_cast<uint64_t>(t * width + c));
    }
    if (place < 0) continue;
    batch.trigger.mutable_data<float>()[r * tokens + place] = 1;
    for (int64_t c = 0; c < width; ++c) {
      double sum = 0;
      for (int64_t t = 0; t <= place; ++t) sum += static_cast<double>(x[t * D + c]);
      y[place * width + c] = static_cast<float>(sum / static_cast<double>(place + 1));
    }
  }
  return batch;
}

namespace {

Var mean_where(const Var& values_BT, const Tensor& mask_BT) {
  const int dims[] = {0, 1};
  double count = weft::sum(Var(mask_BT), dims).value().item();
  return weft::sum(values_BT * Var(mask_BT), dims) * (1 / std::max(count, 1.0));
}

Var squared_errors(const Var& out, const TriggerBatch& batch) {
  const int64_t width = batch.y.size(2);
  return weft::sum(square(slice(out, -1, 0, width) - Var(batch.y)), -1) * (1 / static_cast<double>(width));
}

TriggerBatch on_device(TriggerBatch b) {
  auto moved = [](const Tensor& t) { return to(t, default_device()).value(); };
  return {moved(b.x), moved(b.y), moved(b.trigger)};
}

// Layers of a mixer alone, no norms and no feed-forward network; with more than one layer each adds to its input.
class Layers final : public Module {
 public:
  Layers(const MixerMaker& make, int64_t layers, int64_t dim, int64_t tokens, Rng rng) {
    const double std = 1 / std::sqrt(static_cast<double>(dim));
    for (int64_t i = 0; i < layers; ++i) {
      mixers_.push_back(make({.dim = dim,
                              .context = tokens,
                              .layer = i,
                              .layers = layers,
                              .rotary = std::nullopt,
                              .std = std,
                              .out_std = std},
                             rng[static_cast<uint64_t>(i)]));
      name_part({str("layers.", i), *mixers_.back()});
    }
  }
  Var operator()(Var x, Tokens& tokens) {
    for (auto& mixer : mixers_) {
      Var y = mixer->forward(x, tokens);
      x = mixers_.size() > 1 ? x + y : y;
    }
    return x;
  }

 private:
  std::vector<std::unique_ptr<Mixer>> mixers_;
};

}  // namespace

Var trigger_loss(const Var& out, const TriggerBatch& batch) {
  Tensor others = (Var(batch.trigger) * -1.0 + 1.0).value();
  Var errors = squared_errors(out, batch);
  return mean_where(errors, batch.trigger) * 0.5 + mean_where(errors, others) * 0.5;
}

std::function<double(int64_t step)> falling(int64_t steps) {
  return [steps](int64_t step) {
    return step < steps / 2 ? 1 : 2 - 2 * static_cast<double>(step) / static_cast<double>(steps);
  };
}

Figures trigger(const MixerMaker& mixer, const Options& options) {
  constexpr int64_t kWidth = 13;  // with the three flags 16, which divides into heads
  const int64_t T = options.tokens ? options.tokens : 16, B = options.batch ? options.batch : 128;
  const int64_t steps = options.steps ? options.steps : 5000;
  Layers model(mixer, options.layers, kWidth + 3, T, Rng(options.seed)["weights"]);
  const AdamWOptions adamw{.lr = options.lr > 0 ? options.lr : 3e-3, .beta2 = 0.99, .weight_decay = 0};
  Training training(model, {}, {.groups = {{.algorithm = adamw}}, .lr_factor = falling(steps), .clip_norm = 1});
  Rng rows = Rng(options.seed)["rows"];
  for (int64_t step = 0; step < steps; ++step) {
    TriggerBatch batch = on_device(trigger_batch(step * B, B, T, kWidth, rows));
    Tokens tokens(plain_tokens(B, T), {.is_training = true,
                                       .rng = Rng(options.seed)[static_cast<uint64_t>(step)],
                                       .progress = training_progress(step, steps)});
    training.step(1, [&](const MicroBatch&) { return trigger_loss(model(batch.x, tokens), batch); });
  }

  const int64_t N = 256;
  TriggerBatch batch = trigger_batch(0, N, T, kWidth, Rng(options.seed)["rows that were not trained on"]);
  TriggerBatch there = on_device(batch);
  Observed seen;
  Probe probe = seen.probe();
  NoGrad no_grad;
  Tokens tokens(plain_tokens(N, T), {.probe = &probe});
  Var out = model(there.x, tokens);
  double at_triggers = mean_where(squared_errors(out, there), there.trigger).value().item();
  const auto* is_trigger = batch.trigger.data<float>();
  double away = 0, count = 0;
  for (const Tensor& shares : seen.shares())
    for (int64_t b = 0; b < N; ++b)
      for (int64_t t = 1; t < T; ++t) {
        if (is_trigger[b * T + t] > 0) continue;
        away += 1 - shares.data<double>()[(b * T + t) * T], ++count;
      }
  return {{"loss", trigger_loss(out, there).value().item()},
          {"loss at triggers", at_triggers},
          {"off the first token elsewhere", away / count}};
}

}  // namespace weft::tasks
