// Seconds of a step of k layers and m micro-batches are m M(k) + U(k): M and U from m = 1 and 2, and both are straight lines in k.
#include "trainers/run/calibration.h"

#include <algorithm>
#include <chrono>

#include "weft/core/dry_run.h"
#include "weft/core/stream.h"
#include "weft/ops/attention.h"
#include "weft/ops/elementwise.h"

namespace weft::train {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRepeats = 3;
constexpr int64_t kFewestTokens = 64;

// The median of a few, after one that warms up.
template <class F>
double seconds_of(const F& f) {
  std::vector<double> all;
  for (int i = 0; i <= kRepeats; ++i) {
    const auto begin = Clock::now();
    f();
    synchronize(default_device());
    if (i > 0) all.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  std::nth_element(all.begin(), all.begin() + kRepeats / 2, all.end());
  return all[kRepeats / 2];
}

std::vector<int32_t> some_ids(int64_t count, int64_t vocab) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i)
    ids.push_back(static_cast<int32_t>(Rng(7).below(static_cast<uint64_t>(vocab), static_cast<uint64_t>(i))));
  return ids;
}

struct Seconds {
  double micro_batch = 0, update = 0;
};

Seconds seconds_of_layers(MemorySubject s, int64_t layers, int64_t rows) {
  s.model.layers = layers;
  s.start = {}, s.teacher.reset();    // its patterns may name other layers
  for (ParamGroup& group : s.groups)  // ids mean nothing here, and no rate of the config may make the weights infinite
    std::visit([](auto& algorithm) { algorithm.lr = 0; }, group.algorithm);
  const std::vector<int32_t> ids = some_ids(s.model.context + 1, s.model.vocab);
  auto seconds = [&](int64_t micro_batches) {
    TrialTraining training(s, rows, micro_batches, ids);
    training.start();
    return seconds_of([&] { training.step(); });
  };
  const double one = seconds(1), two = seconds(2);
  const double micro_batch = std::clamp(two - one, one / 20, one);
  return {micro_batch, one - micro_batch};
}

// Operations of a layer's attention on so many pairs: products of n x n scores, 2 forward and 5 backward.
double forward_flops(const dist::AttentionLayers& a, double pairs) {
  return 2 * pairs * static_cast<double>(a.heads) * static_cast<double>(a.key_width + a.value_width);
}
double backward_flops(const dist::AttentionLayers& a, double pairs) {
  return 2 * pairs * static_cast<double>(a.heads) * static_cast<double>(3 * a.key_width + 2 * a.value_width);
}
double pairs_of(const dist::AttentionLayers& a, int64_t rows, int64_t tokens) {
  return static_cast<double>(rows * tokens) * causal_keys(tokens, a.window);
}

// Of causal attention, operations per second.
void set_attention_rates(Calibration& of, const MemorySubject& s, const dist::AttentionLayers& a, int64_t rows,
                         int64_t n) {
  auto values = [&](int64_t heads, int64_t width, uint64_t salt) {
    Tensor x = Tensor::empty({rows, n, heads, width}, kF32, default_device());
    ops::fill_uniform_(x, Rng(3)[salt], -1, 1);
    return ops::cast(x, s.compute);
  };
  const Tensor q = values(a.heads, a.key_width, 1), k = values(a.kv_heads, a.key_width, 2),
               v = values(a.kv_heads, a.value_width, 3), dout = values(a.heads, a.value_width, 4);
  std::vector<int32_t> at(static_cast<size_t>(rows * n));
  for (size_t i = 0; i < at.size(); ++i) at[i] = static_cast<int32_t>(static_cast<int64_t>(i) % n);
  const ops::AttentionTokens tokens{
      .positions = ops::to(Tensor::from(std::span<const int32_t>(at), {rows, n}), default_device()),
      .are_consecutive = true};
  const ops::AttentionOptions options{.mask = {.window = a.window}};
  ops::Attention y;
  const double pairs = pairs_of(a, rows, n);
  of.attention_forward_flops =
      forward_flops(a, pairs) / seconds_of([&] { y = ops::attend(q, k, v, tokens, tokens, options); });
  of.attention_backward_flops = backward_flops(a, pairs) / seconds_of([&] {
                                  ops::attend_backward(dout, {}, q, k, v, y, tokens, tokens, options);
                                });
}

double copy_rate() {
  const int64_t bytes = int64_t{8} << 20;
  Tensor from = Tensor::zeros({bytes}, kU8, default_device()), to = Tensor::zeros({bytes}, kU8, default_device());
  return static_cast<double>(bytes) / seconds_of([&] { to.set_bytes(from); });
}

// Layers of the smallest model of this kind: a period of its pattern, or all of them where parts of the model count its layers, such as
// residual streams in blocks.
int64_t smallest_depth(LanguageModelOptions model, int64_t period) {
  const int64_t all = model.layers;
  DryRun dry;
  for (int64_t depth : {std::min(all, period), std::min(all, 2 * period)}) try {
      model.layers = depth;
      const LanguageModel fits(model, Rng(0));
    } catch (const Error&) { return all; }
  return std::min(all, period);
}

}  // namespace

Calibration calibrate(const MemorySubject& subject, std::span<const dist::AttentionLayers> layers, int64_t tokens,
                      double flops) {
  MemorySubject s = subject;
  s.parallel = {};
  s.takes_diagnostics = false;
  const int64_t period = s.model.pattern.empty() ? std::ssize(s.model.mixers) : std::ssize(s.model.pattern);
  const int64_t all = s.model.layers, few = smallest_depth(s.model, period);
  const int64_t more = std::min(all, few == all ? all : 2 * few);
  // Rows as long as a rank's part of a sequence, or shorter and fewer where that takes too long.
  s.model.layers = more;
  double of_token = 0;
  {
    DryRun dry;
    of_token = LanguageModel(s.model, Rng(0)).flops_per_token();
  }
  const auto most = std::max(static_cast<int64_t>(flops / of_token), kFewestTokens);
  const int64_t of_row = std::min(s.model.context, tokens);
  s.model.context = std::min(of_row, most);
  s.model.fixed_text.resize(static_cast<size_t>(s.model.context));
  const int64_t rows = std::max<int64_t>(std::min(tokens, most) / s.model.context, 1);

  Calibration of{.copy_bytes_per_s = copy_rate()};
  const Seconds low = seconds_of_layers(s, few, rows), high = more > few ? seconds_of_layers(s, more, rows) : low;
  const double steps = more > few ? static_cast<double>(all - few) / static_cast<double>(more - few) : 0;
  double micro_batch = low.micro_batch + steps * (high.micro_batch - low.micro_batch);
  of.update_s = std::max(low.update + steps * (high.update - low.update), 0.0);
  if (!layers.empty()) {  // in rows of their own length, as long as that is affordable
    int64_t length = of_row;
    while (length > s.model.context && backward_flops(layers[0], pairs_of(layers[0], 1, length)) > flops) length /= 2;
    set_attention_rates(of, s, layers[0], std::max<int64_t>(rows * s.model.context / length, 1), length);
  }
  for (const dist::AttentionLayers& a : layers) {  // what a plan adds by these rates is what is taken away
    const double pairs = static_cast<double>(a.layers) * a.share * pairs_of(a, rows, s.model.context);
    micro_batch -=
        forward_flops(a, pairs) / of.attention_forward_flops + backward_flops(a, pairs) / of.attention_backward_flops;
  }
  of.other_s_per_token = std::max(micro_batch, 0.0) / static_cast<double>(rows * s.model.context);
  return of;
}

}  // namespace weft::train
