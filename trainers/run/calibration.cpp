// Attention grows with the square of a row. Where the timed rows are shorter than those of the training, attention is timed alone at both lengths:
// what it takes in the timed rows is taken away, what it takes in the whole ones is added, and the rest goes by its operations.
#include "trainers/run/calibration.h"

#include <algorithm>

#include "weft/ops/attention.h"
#include "weft/ops/elementwise.h"

namespace weft::train {

namespace {

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
// In all layers of the kind.
double layer_pairs(const dist::AttentionLayers& a, int64_t rows, int64_t tokens) {
  return static_cast<double>(a.layers) * a.share * pairs_of(a, rows, tokens);
}
double seconds_of(const dist::AttentionLayers& a, double pairs, const AttentionRates& rates) {
  return forward_flops(a, pairs) / rates.forward_flops + backward_flops(a, pairs) / rates.backward_flops;
}
// As the model counts it: backward as two forwards.
double counted_flops(const dist::AttentionLayers& a, double pairs) { return 3 * forward_flops(a, pairs); }

// Of causal attention on rows of n tokens.
AttentionRates rates_of(DType compute, const dist::AttentionLayers& a, int64_t rows, int64_t n,
                        dist::Communicator* world) {
  auto values = [&](int64_t heads, int64_t width, uint64_t salt) {
    Tensor x = Tensor::empty({rows, n, heads, width}, kF32, default_device());
    ops::fill_uniform_(x, Rng(3)[salt], -1, 1);
    return ops::cast(x, compute);
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
  const double forward_s = median_seconds([&] { y = ops::attend(q, k, v, tokens, tokens, options); }, world);
  const double backward_s =
      median_seconds([&] { ops::attend_backward(dout, {}, q, k, v, y, tokens, tokens, options); }, world);
  return {.forward_flops = forward_flops(a, pairs) / forward_s,
          .backward_flops = backward_flops(a, pairs) / backward_s};
}

double copy_rate(dist::Communicator* world) {
  const int64_t bytes = int64_t{8} << 20;
  Tensor from = Tensor::zeros({bytes}, kU8, default_device()), to = Tensor::zeros({bytes}, kU8, default_device());
  return static_cast<double>(bytes) / median_seconds([&] { to.set_bytes(from); }, world);
}

// The longest row, of `most` tokens or a half, a quarter ... of it, whose attention is timed with so many operations.
int64_t longest_row(const dist::AttentionLayers& a, int64_t least, int64_t most, double flops) {
  int64_t n = most;
  auto cost = [&] {
    return kTimedCalls * (forward_flops(a, pairs_of(a, 1, n)) + backward_flops(a, pairs_of(a, 1, n)));
  };
  while (n > least && cost() > flops) n = std::max(n / 2, least);
  return n;
}

// A micro-batch of whole rows, on a rank.
struct WholeRows {
  double others_s = 0, attention_s = 0;
  std::vector<AttentionRates> rates = {};
};

// From that of a part. Ranks that share a row have equal parts of its pairs.
WholeRows whole_rows(const MemorySubject& s, const TimedTraining& timed, std::span<const dist::AttentionLayers> layers,
                     int64_t rows, const TimedPart& part, double part_s, double flops, dist::Communicator* world) {
  const int64_t ranks = s.parallel.context, few = std::max<int64_t>(part.context / ranks, 1),
                many = std::max(s.model.context / ranks, few);
  double of_part = timed.flops(s.model.layers, part.rows, part.context),
         of_whole = timed.flops(s.model.layers, rows, s.model.context);
  WholeRows whole{.others_s = part_s};
  for (const dist::AttentionLayers& a : layers) {
    const int64_t n = longest_row(a, few, many, flops);
    const AttentionRates short_rates = rates_of(s.compute, a, part.rows, few, world);
    whole.rates.push_back(n == few ? short_rates
                                   : rates_of(s.compute, a, std::max<int64_t>(part.rows * few / n, 1), n, world));
    const double short_pairs = layer_pairs(a, part.rows, part.context) / static_cast<double>(ranks),
                 pairs = layer_pairs(a, rows, s.model.context) / static_cast<double>(ranks);
    whole.others_s -= seconds_of(a, short_pairs, short_rates);
    whole.attention_s += seconds_of(a, pairs, whole.rates.back());
    of_part -= counted_flops(a, short_pairs), of_whole -= counted_flops(a, pairs);
  }
  const double growth = of_part > 0 && of_whole > 0 ? of_whole / of_part
                                                    : static_cast<double>(rows * s.model.context) /
                                                          static_cast<double>(part.rows * part.context);
  whole.others_s = growth * std::max(whole.others_s, 0.0);
  return whole;
}

}  // namespace

Calibration calibrate(const MemorySubject& subject, std::span<const dist::AttentionLayers> layers, int64_t rows,
                      double flops, dist::Communicator* world) {
  MemorySubject s = subject;
  s.parallel = {};
  const TimedTraining timed(s, nullptr, world);
  const TimedPart part = timed.part(rows, flops);
  const StepSeconds seconds = timed.seconds(part, true);
  const WholeRows whole = whole_rows(s, timed, layers, rows, part, seconds.micro_batch, flops, world);
  return {.other_s_per_token = whole.others_s / static_cast<double>(rows * s.model.context),
          .update_s = seconds.update,
          .attention = whole.rates,
          .copy_bytes_per_s = copy_rate(world)};
}

double time_step(const MemorySubject& subject, std::span<const dist::AttentionLayers> layers, const StepSizes& sizes,
                 Team* team, double flops, data::SampleSource samples, StepTimer timer) {
  const TimedTraining timed(subject, team, nullptr, std::move(samples), std::move(timer));
  const TimedPart part = timed.part(sizes.micro_batch, flops);
  const bool is_whole = part.rows == sizes.micro_batch && part.context == sizes.context;
  const StepSeconds seconds = timed.seconds(part, sizes.micro_batches > 1 || !is_whole);
  double micro_batch = seconds.micro_batch * static_cast<double>(sizes.micro_batch) / static_cast<double>(part.rows);
  if (part.context != sizes.context) {
    const WholeRows whole = whole_rows(subject, timed, layers, sizes.micro_batch, part, seconds.micro_batch, flops,
                                       team ? &team->world() : nullptr);
    micro_batch = whole.others_s + whole.attention_s;
  }
  return seconds.update + static_cast<double>(sizes.micro_batches) * micro_batch;
}

}  // namespace weft::train
