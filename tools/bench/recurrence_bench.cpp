// `weft bench recurrence`: the gated linear recurrence beside the best GEMM rate. FLOP are those of the chunkwise form with chunks of 64
// tokens and full square blocks, whatever chunk the kernel takes; backward includes the pass that computes the states again:
//   plain forward 2C(K+V) + 4KV, backward 2C(3K+2V) + 10KV;  delta forward 2C(2K+V) + CV + 6KV, backward 2C(7K+5V) + CV + 18KV
// per token and head. Beside it: time per token over the length, the softmax core at the same shape, bf16 beside f32, one step of decoding by
// itself and after texts of two lengths, memory.
// On a GPU: bf16 at widths of 128, beside the softmax core, and what Gated DeltaNet's shape takes in other libraries (8 key heads, 32 value
// heads, 32768 tokens, forward on an H200: 1.89 ms with flash-linear-attention, 0.89 ms with FlashQLA).
#include <algorithm>
#include <array>
#include <cmath>

#include "tools/bench/recurrence_ranks.h"
#include "weft/autograd/recurrence.h"
#include "weft/core/allocator.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/core/rng.h"
#include "weft/nn/tokens.h"
#include "weft/ops/attention.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/recurrence.h"

namespace weft::bench {

namespace {

constexpr int64_t kHeads = 8, kWidth = 64;
// Goals of times: what they are at least of their limit, as what is printed.
constexpr const char *kNoSlower = "1",
                     *kWithinTenth = "0.909";  // the limit over a time that is at most 1.1 times as long

struct Case {
  const char* name;
  bool is_delta;
  int dims;  // of log_decay
  ops::DecaySide side;
  double forward_goal, backward_goal;  // shares of the GEMM peak
  int64_t crossover;                   // from this length on faster than softmax
};
using ops::DecaySide;
const Case kCases[] = {
    {"plain", false, 3, DecaySide::key, 0.45, 0.40, 1024},
    {"plain key channels", false, 4, DecaySide::key, 0.225, 0.20, 1024},
    {"plain value channels", false, 4, DecaySide::value, 0.225, 0.20, 1024},
    {"delta", true, 3, DecaySide::key, 0.225, 0.20, 2048},
    {"delta key channels", true, 4, DecaySide::key, 0.225, 0.20, 2048},
};

Tensor uniform(const Shape& shape, DType dtype, std::string_view name, double low, double high) {
  Rng rng = Rng(7)[name];
  if (default_device().is_cuda()) {
    Tensor t = Tensor::empty(shape, dtype, default_device());
    ops::fill_uniform_(t, rng, low, high);
    return t;
  }
  Tensor t = Tensor::empty(shape, kF32, Device::cpu());
  float* x = t.mutable_data<float>();
  for (int64_t i = 0; i < t.num_elements(); ++i)
    x[i] = static_cast<float>(low + (high - low) * rng.uniform(static_cast<uint64_t>(i)));
  return ops::cast(t, dtype);
}

struct Heads {
  int64_t keys = kHeads, values = kHeads, width = kWidth;
};

struct Problem {
  ops::RecurrenceInput in;
  ops::RecurrenceOptions options;
  Tensor dout;

  Problem(const Case& c, int64_t tokens, DType dtype, const Heads& heads = {}) {
    const Shape keys{1, tokens, heads.keys, heads.width}, shape{1, tokens, heads.values, heads.width};
    const Shape gates{1, tokens, heads.values};
    const double unit = std::sqrt(3.0 / static_cast<double>(heads.width));
    in.q_BTGK = uniform(keys, dtype, "q", -1, 1), in.k_BTGK = uniform(keys, dtype, "k", -unit, unit);
    in.v_BTHV = uniform(shape, dtype, "v", -1, 1), dout = uniform(shape, dtype, "dout", -1, 1);
    in.log_decay = uniform(c.dims == 4 ? shape : gates, kF32, "g", -0.2, 0);
    if (c.is_delta) in.beta = uniform(gates, kF32, "beta", 0, 1);
    options.side = c.side;
  }
  ops::Recurrence forward() const { return ops::recur(in, options); }
  ops::RecurrenceGrads backward() const { return ops::recur_backward(dout, {}, in, options); }
};

// The outputs of head 3 against a loop in float64.
void check(const Case& c) {
  constexpr int64_t T = 150, head = 3;
  Problem p(c, T, kF32);
  const std::vector<float> q = p.in.q_BTGK.to_vector<float>(), k = p.in.k_BTGK.to_vector<float>(),
                           v = p.in.v_BTHV.to_vector<float>(), g = p.in.log_decay.to_vector<float>();
  const std::vector<float> beta = c.is_delta ? p.in.beta.to_vector<float>() : std::vector<float>();
  const std::vector<float> out = p.forward().out.to_vector<float>();
  std::vector<double> S(kWidth * kWidth);
  for (int64_t t = 0; t < T; ++t) {
    const int64_t token = t * kHeads + head, row = token * kWidth;
    for (int64_t d = 0; d < kWidth; ++d)
      for (int64_t n = 0; n < kWidth; ++n)
        S[d * kWidth + n] *= std::exp(double{g[c.dims == 3 ? token : row + (c.side == DecaySide::key ? d : n)]});
    for (int64_t n = 0; n < kWidth; ++n) {
      double u = v[row + n], read = 0;
      for (int64_t d = 0; c.is_delta && d < kWidth; ++d) u -= k[row + d] * S[d * kWidth + n];
      if (c.is_delta) u *= beta[token];
      for (int64_t d = 0; d < kWidth; ++d) read += q[row + d] * (S[d * kWidth + n] += k[row + d] * u);
      WEFT_CHECK(std::abs(out[row + n] - read) <= 2e-5 * (1 + std::abs(read)),
                 str("bench recurrence: ", c.name, ", token ", t, " is ", out[row + n], ", must be ", read),
                 "please report this");
    }
  }
}

std::array<double, 2> flop(const Case& c, const Heads& heads = {}) {  // per token, forward and backward
  const double C = 64, K = static_cast<double>(heads.width), V = K, H = static_cast<double>(heads.values);
  if (c.is_delta)
    return {H * (2 * C * (2 * K + V) + C * V + 6 * K * V), H * (2 * C * (7 * K + 5 * V) + C * V + 18 * K * V)};
  return {H * (2 * C * (K + V) + 4 * K * V), H * (2 * C * (3 * K + 2 * V) + 10 * K * V)};
}

std::string shape_of(int64_t tokens, const Heads& heads = {}) {
  return str("B1 H", heads.keys, heads.keys == heads.values ? "" : str("/", heads.values), " d", heads.width, " T",
             tokens);
}
double seconds(const BenchOptions& options, double quick, double whole) {
  return options.quick ? quick * options.effort : whole;
}
int64_t length(const BenchOptions& options, int64_t quick, int64_t whole) {
  return options.quick ? static_cast<int64_t>(static_cast<double>(quick) * options.effort) : whole;
}
std::string digits(double x, double unit) { return str(std::round(x * unit) / unit); }

void add_rates(const Case& c, int64_t tokens, DType dtype, const BenchOptions& options, std::vector<Row>& rows,
               const Heads& heads = {}) {
  Problem p(c, tokens, dtype, heads);
  const std::vector<std::function<void()>> functions = {[&] { p.forward(); }, [&] { p.backward(); }};
  const double peak = gemm_peak(kF32) * 1e-9;
  std::vector<Timing> times = time_in_turn(functions, seconds(options, 1, 4), options.quick ? 2 : 5);
  for (size_t i = 0; i < 2; ++i) {
    const double rate = flop(c, heads)[i] * static_cast<double>(tokens) / times[i].best_s * 1e-9;
    rows.push_back(rate_row(str(i == 0 ? "forward " : "backward ", c.name), shape_of(tokens, heads), dtype, rate,
                            "GFLOP/s", peak));
    rows.back().extra = {{"goal", str(i == 0 ? c.forward_goal : c.backward_goal)},
                         {"tokens/ms", str(std::round(static_cast<double>(tokens) / times[i].best_s * 1e-3))},
                         {"time", str(digits(times[i].best_s * 1e3, 100), " ms")}};
  }
}

// Forward and backward as one call each, as a training step makes them.
void add_both(const Case& c, int64_t tokens, const BenchOptions& options, std::vector<Row>& rows) {
  Problem p(c, tokens, kF32);
  const std::vector<std::function<void()>> functions = {[&] { p.forward(), p.backward(); }};
  const double s = time_in_turn(functions, seconds(options, 0.5, 2))[0].best_s;
  const double rate = (flop(c)[0] + flop(c)[1]) * static_cast<double>(tokens) / s * 1e-9;
  rows.push_back(rate_row(str("both ", c.name), shape_of(tokens), kF32, rate, "GFLOP/s", gemm_peak(kF32) * 1e-9));
  rows.back().extra = {{"time", str(digits(s * 1e3, 100), " ms")}};
}

// Forward and backward in bf16; the limit is the time of f32, measured in turn.
void add_dtypes(const Case& c, int64_t tokens, const BenchOptions& options, std::vector<Row>& rows) {
  Problem narrow(c, tokens, kBF16), wide(c, tokens, kF32);
  const std::vector<std::function<void()>> functions = {[&] { narrow.forward(), narrow.backward(); },
                                                        [&] { wide.forward(), wide.backward(); }};
  std::vector<Timing> times = time_in_turn(functions, seconds(options, 0.5, 6), 2);
  rows.push_back(time_row(str("both ", c.name, " against f32"), shape_of(tokens), kBF16, times[0].best_s * 1e3, "ms",
                          times[1].best_s * 1e3));
  rows.back().extra = {{"goal", kNoSlower}};
}

ops::AttentionTokens in_order(int64_t tokens) {
  Tensor positions = Tensor::empty({1, tokens}, kI32, Device::cpu());
  for (int64_t i = 0; i < tokens; ++i) positions.mutable_data<int32_t>()[i] = static_cast<int32_t>(i);
  return {ops::to(positions, default_device()), {}, true};
}

// Forward and backward together, beside the softmax core of the same shape.
void add_crossover(const Case& c, const BenchOptions& options, std::vector<Row>& rows) {
  const int64_t count = length(options, c.crossover, c.crossover);
  Problem p(c, count, kF32);
  const ops::AttentionTokens tokens = in_order(count);
  auto softmax = [&] {
    ops::Attention y = ops::attend(p.in.q_BTGK, p.in.k_BTGK, p.in.v_BTHV, tokens, tokens, {});
    ops::attend_backward(p.dout, {}, p.in.q_BTGK, p.in.k_BTGK, p.in.v_BTHV, y, tokens, tokens, {});
  };
  const std::vector<std::function<void()>> functions = {[&] { p.forward(), p.backward(); }, softmax};
  std::vector<Timing> times = time_in_turn(functions, seconds(options, 0.6, 2), 3);
  rows.push_back(time_row(str("both ", c.name, " against softmax"), shape_of(count), kF32, times[0].best_s * 1e3, "ms",
                          times[1].best_s * 1e3));
  rows.back().extra = {{"goal", kNoSlower}};
}

// Time per token of forward and backward; the limit is that of the shortest length.
void add_lengths(const Case& c, const BenchOptions& options, std::vector<Row>& rows) {
  std::vector<Problem> problems;
  std::vector<std::function<void()>> functions;
  const int64_t shortest = length(options, 1024, 1024);
  for (int64_t tokens = shortest; tokens <= length(options, 4096, 65536); tokens *= 4) {
    problems.emplace_back(c, tokens, kF32);
    functions.push_back([&problems, i = problems.size() - 1] { problems[i].forward(), problems[i].backward(); });
  }
  std::vector<Timing> times = time_in_turn(functions, seconds(options, 1, 8), 3);
  for (size_t i = 0; i < problems.size(); ++i) {
    const int64_t tokens = problems[i].dout.size(1);
    rows.push_back(time_row(str("time per token ", c.name), shape_of(tokens), kF32,
                            times[i].best_s * 1e9 / static_cast<double>(tokens), "ns",
                            times[0].best_s * 1e9 / static_cast<double>(shortest)));
    if (i > 0) rows.back().extra = {{"goal", kWithinTenth}};
  }
}

// A step of decoding reads and writes the state once; the limit is a copy of as many bytes.
void add_step(const Case& c, double bandwidth, const BenchOptions& options, std::vector<Row>& rows) {
  Problem p(c, 1, kF32);
  p.in.state = uniform({1, kHeads, kWidth, kWidth}, kF32, "state", -1, 1);
  const std::vector<std::function<void()>> functions = {[&] { p.forward(); }};
  const double s = time_in_turn(functions, seconds(options, 0.2, 0.5))[0].best_s;
  rows.push_back(time_row(str("step ", c.name), shape_of(1), kF32, s * 1e6, "us",
                          2e6 * static_cast<double>(p.in.state.num_bytes()) / bandwidth));
}

// A decoding that has read so many tokens, in a cache without a bound on its length.
class Decoding {
 public:
  Decoding(const Case& c, int64_t tokens) : next_(c, 1, kF32), options_{.side = c.side} {
    const Problem text(c, tokens, kF32);
    read(text.in, tokens);
  }
  void step() { read(next_.in, 1); }
  int64_t bytes() const { return cached_bytes(*cache_); }

 private:
  void read(const ops::RecurrenceInput& in, int64_t tokens) {
    NoGrad no_grad;
    Tokens here(plain_tokens(1, tokens, cached_tokens(*cache_)), {.cache = cache_});
    RecurrenceVars vars{.q_BTGK = in.q_BTGK, .k_BTGK = in.k_BTGK, .v_BTHV = in.v_BTHV, .log_decay = in.log_decay};
    if (in.beta.defined()) vars.beta = in.beta;
    here.recur(vars, options_);
    here.finish_decode_step();
  }

  std::shared_ptr<Cache> cache_ = make_cache(1, 0);
  Problem next_;
  ops::RecurrenceOptions options_;
};

// One token more after a short and a long text; the limit is the time after the short one.
void add_decoding(const Case& c, const BenchOptions& options, std::vector<Row>& rows) {
  const int64_t lengths[] = {length(options, 1024, 1024), length(options, 4096, 65536)};
  Decoding after_short(c, lengths[0]), after_long(c, lengths[1]);
  const std::vector<std::function<void()>> functions = {[&] { after_short.step(); }, [&] { after_long.step(); }};
  std::vector<Timing> times = time_in_turn(functions, seconds(options, 0.2, 1));
  const Decoding* all[] = {&after_short, &after_long};
  for (size_t i = 0; i < 2; ++i) {
    rows.push_back(time_row(str("decode ", c.name), shape_of(lengths[i]), kF32, times[i].best_s * 1e6, "us",
                            times[0].best_s * 1e6));
    rows.back().extra = {{"cache", str(all[i]->bytes(), " B")}};
  }
}

// Highest memory of one forward and backward beyond the inputs, per token; the limit is that of the shortest sequence.
void add_memory(const Case& c, const BenchOptions& options, std::vector<Row>& rows) {
  Allocator& memory = allocator(Device::cpu());
  double first = 0;
  for (int64_t tokens = length(options, 4096, 4096); tokens <= length(options, 8192, 65536); tokens *= 2) {
    Problem p(c, tokens, kF32);
    memory.reset_peak();
    const int64_t before = memory.stats().current_bytes;
    ops::Recurrence y = p.forward();
    p.backward();
    const double bytes = static_cast<double>(memory.stats().peak_bytes - before) / static_cast<double>(tokens);
    if (first == 0) first = bytes;
    rows.push_back(time_row(str("memory ", c.name), shape_of(tokens), kF32, bytes, "B/token", first));
  }
}

// On a GPU: rates beside the best bf16 product, and the softmax core's time at the same shape.
// `copies`: what reading q, k and v (and the gradient of the outputs) and writing the results once takes, at the rate of a copy.
void add_gpu_rates(const Case& c, int64_t tokens, const Heads& heads, double bandwidth, const BenchOptions& options,
                   std::vector<Row>& rows) {
  Problem p(c, tokens, kBF16, heads);
  const ops::AttentionTokens order = in_order(tokens);
  const bool has_softmax = heads.keys == heads.values;
  ops::Attention y;
  auto attend = [&] { return ops::attend(p.in.q_BTGK, p.in.k_BTGK, p.in.v_BTHV, order, order, {}); };
  if (has_softmax) y = attend();
  std::vector<std::function<void()>> functions = {[&] { p.forward(); }, [&] { p.backward(); }};
  if (has_softmax) {
    functions.push_back(attend);
    functions.push_back(
        [&] { ops::attend_backward(p.dout, {}, p.in.q_BTGK, p.in.k_BTGK, p.in.v_BTHV, y, order, order, {}); });
  }
  std::vector<Timing> times = time_in_turn(functions, options.quick ? 0.5 : 2);
  const std::string shape = shape_of(tokens, heads);
  const int64_t numbers[] = {(2 * heads.keys + 2 * heads.values) * heads.width,
                             (4 * heads.keys + 3 * heads.values) * heads.width};
  for (size_t i = 0; i < 2; ++i) {
    const double copies_s = static_cast<double>(tokens * numbers[i]) * sizeof(BFloat16) / bandwidth;
    const double rate = flop(c, heads)[i] * static_cast<double>(tokens) / times[i].best_s * 1e-9;
    rows.push_back(rate_row(str(i == 0 ? "forward " : "backward ", c.name), shape, kBF16, rate, "GFLOP/s",
                            gemm_peak(kBF16) * 1e-9));
    rows.back().extra = {{"time", str(digits(times[i].best_s * 1e3, 1000), " ms")},
                         {"copies", str(digits(copies_s * 1e3, 1000), " ms")}};
    if (has_softmax) rows.back().extra.emplace_back("softmax", str(digits(times[i + 2].best_s * 1e3, 1000), " ms"));
  }
}

std::vector<Row> run_on_gpu(const BenchOptions& options) {
  const double bandwidth = memory_bandwidth();
  std::vector<Row> rows;
  for (const Case& c : kCases) {
    for (int64_t tokens = 8192; tokens <= (options.quick ? 8192 : 131072); tokens *= 4)
      add_gpu_rates(c, tokens, {8, 8, 128}, bandwidth, options, rows);
    if (c.is_delta && c.dims == 3) add_gpu_rates(c, 32768, {8, 32, 128}, bandwidth, options, rows);
    add_step(c, bandwidth, options, rows);
  }
  return rows;
}

}  // namespace

std::vector<Row> run_recurrence(const BenchOptions& options) {
  for (const Case& c : kCases) check(c);
  if (default_device().is_cuda()) return run_on_gpu(options);
  const double bandwidth = memory_bandwidth();
  const int64_t some = length(options, 4096, 4096), most = length(options, 4096, 65536);
  std::vector<Row> rows;
  for (const Case& c : kCases) {
    for (int64_t tokens = some; tokens <= most; tokens *= 4) add_rates(c, tokens, kF32, options, rows);
    add_rates(c, some, kBF16, options, rows);
  }
  for (size_t i : {0u, 3u}) add_rates(kCases[i], some, kF32, options, rows, {1, 24, kWidth});  // one key head for all
  for (const Case& c : kCases) add_both(c, some, options, rows);
  for (const Case& c : kCases) add_dtypes(c, most, options, rows);
  for (const Case& c : kCases) add_crossover(c, options, rows);
  for (const Case& c : kCases) add_lengths(c, options, rows);
  for (const Case& c : kCases) add_step(c, bandwidth, options, rows);
  for (const Case& c : kCases) add_decoding(c, options, rows);
  for (const Case& c : kCases) add_memory(c, options, rows);
  add_recurrence_ranks(options, rows);
  return rows;
}

}  // namespace weft::bench
