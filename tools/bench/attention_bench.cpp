// `weft bench attention`: the blockwise softmax core beside the best GEMM rate, on a GPU also beside other kernels. Two matrix products forward and five backward on
// unmasked pairs, whatever the kernel repeats. The memory rows show peak bytes per token, which must not grow with T.
#include <algorithm>
#include <array>
#include <cmath>

#include "tools/bench/bench.h"
#include "weft/core/allocator.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/ops/attention.h"
#include "weft/ops/elementwise.h"

namespace weft::bench {

namespace {

struct Case {
  const char* name;  // beside forward and backward; "" is plain causal
  DType dtype;
  ops::AttentionMask mask = {};
  double softcap = 0;
  bool has_alibi = false;
  int64_t document_length = 0;
};

// A size of the problem: B = 1.
struct Size {
  int64_t tokens, heads, width;
};

// Shares of the limit that are asked for: forward and backward.
struct Goals {
  double of[2];
};
struct CpuRow {
  Case c;
  Size size;
  Goals goals;
};
const CpuRow kCpuRows[] = {
    {{"", kBF16}, {4096, 8, 64}, {0.60, 0.50}},
    {{"", kBF16}, {16384, 1, 64}, {0.60, 0.50}},
    {{"", kBF16}, {4096, 4, 128}, {0.65, 0.55}},
    {{"", kBF16}, {16384, 1, 128}, {0.65, 0.55}},
    {{"", kF32}, {16384, 1, 64}, {0.82, 0.80}},
    {{"", kF32}, {4096, 4, 128}, {0.85, 0.80}},
    {{"", kF32}, {16384, 1, 128}, {0.85, 0.80}},
    {{"", kF32}, {4096, 8, 64}, {0.82, 0.80}},
    {{" window 512", kF32, {.window = 512}}, {4096, 8, 64}, {0.75, 0.70}},
    {{" documents 512", kF32, {.same_document = true}, 0, false, 512}, {4096, 8, 64}, {0.68, 0.63}},
    {{" softcap", kF32, {}, 30}, {4096, 8, 64}, {0.70, 0.65}},
    {{" alibi", kF32, {}, 0, true}, {4096, 8, 64}, {0.80, 0.75}},
};

constexpr Size kCudaSizes[] = {{8192, 16, 128}, {8192, 32, 64}};
const Case kCudaCases[] = {
    {"", kBF16},
    {" window 1024", kBF16, {.window = 1024}},
    {" documents 1024", kBF16, {.same_document = true}, 0, false, 1024},
    {" softcap", kBF16, {}, 30},
    {" alibi", kBF16, {}, 0, true},
};

Tensor values(const Shape& shape, DType dtype, uint64_t salt) {
  Rng rng = Rng(7)[salt];
  Tensor t = Tensor::empty(shape, dtype, Device::cpu());
  with_type<float, BFloat16>(dtype, "bench attention", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* x = t.mutable_data<T>();
    for (int64_t i = 0; i < t.num_elements(); ++i) x[i] = T(2 * rng.uniform(static_cast<uint64_t>(i)) - 1);
  });
  return t;
}

struct Problem {
  Tensor q, k, v, dout;
  ops::AttentionTokens tokens;
  ops::AttentionOptions options;
  double pairs = 0;  // visible ones, of one head

  // On the CPU.
  Problem(const Case& c, const Size& size)
      : q(values({1, size.tokens, size.heads, size.width}, c.dtype, 1)),
        k(values({1, size.tokens, size.heads, size.width}, c.dtype, 2)),
        v(values({1, size.tokens, size.heads, size.width}, c.dtype, 3)),
        dout(values({1, size.tokens, size.heads, size.width}, c.dtype, 4)),
        tokens{Tensor::empty({1, size.tokens}, kI32, Device::cpu()),
               Tensor::empty({1, size.tokens}, kI32, Device::cpu()), true} {
    const int64_t n = size.tokens;
    options.mask = c.mask;
    options.score.softcap = c.softcap;
    if (c.has_alibi) options.score.alibi_slopes = Tensor::full({size.heads}, 0.01, kF32, Device::cpu());
    for (int64_t i = 0; i < n; ++i) {
      tokens.positions.mutable_data<int32_t>()[i] = static_cast<int32_t>(i);
      tokens.documents.mutable_data<int32_t>()[i] =
          static_cast<int32_t>(c.document_length > 0 ? i / c.document_length : 0);
      pairs += static_cast<double>(i - first_key(i) + 1);
    }
    tokens = ops::with_plans(tokens);  // made once, as in the steps of a model
  }
  Problem on(Device device) const {
    Problem p = *this;
    p.tokens.plans = nullptr;
    for (Tensor* t :
         {&p.q, &p.k, &p.v, &p.dout, &p.tokens.positions, &p.tokens.documents, &p.options.score.alibi_slopes})
      if (t->defined()) *t = ops::to(*t, device);
    return p;
  }
  int64_t first_key(int64_t i) const {
    int64_t first = options.mask.window > 0 ? std::max<int64_t>(0, i - options.mask.window + 1) : 0;
    const int32_t* document = tokens.documents.data<int32_t>();
    while (options.mask.same_document && document[first] != document[i]) ++first;
    return first;
  }
  ops::Attention forward() const { return ops::attend(q, k, v, tokens, tokens, options); }
  ops::AttentionGrads backward(const ops::Attention& y) const {
    return ops::attend_backward(dout, {}, q, k, v, y, tokens, tokens, options);
  }
};

double at(const Tensor& t, int64_t i, int64_t head, int64_t c) {
  int64_t element = (i * t.size(2) + head) * t.size(3) + c;
  return t.dtype() == kBF16 ? float(t.data<BFloat16>()[element]) : t.data<float>()[element];
}

double dot(const Tensor& a, int64_t i, const Tensor& b, int64_t j, int64_t head) {
  double sum = 0;
  for (int64_t c = 0; c < a.size(3); ++c) sum += at(a, i, head, c) * at(b, j, head, c);
  return sum;
}

// Row i of out, and of dq if it is there, against float64 loops.
void check_row(const Problem& p, const Tensor& y_out, const Tensor& y_dq, int64_t i, int64_t head) {
  const int64_t width = p.q.size(3);
  int64_t first = p.first_key(i);
  std::vector<double> weight, slope, out(static_cast<size_t>(width)), dq(static_cast<size_t>(width));
  double sum = 0, delta = 0, cap = p.options.score.softcap;
  for (int64_t j = first; j <= i; ++j) {
    double s = dot(p.q, i, p.k, j, head) / std::sqrt(double(width)), t = cap > 0 ? std::tanh(s / cap) : 0;
    if (cap > 0) s = cap * t;
    if (p.options.score.alibi_slopes.defined())
      s -= double{p.options.score.alibi_slopes.data<float>()[head]} * double(i - j);
    slope.push_back(1 - t * t);
    weight.push_back(std::exp(s));
    sum += weight.back();
  }
  for (int64_t j = first; j <= i; ++j)
    for (int64_t c = 0; c < width; ++c) out[c] += weight[j - first] / sum * at(p.v, j, head, c);
  for (int64_t c = 0; c < width; ++c) delta += at(p.dout, i, head, c) * out[c];
  for (int64_t j = first; j <= i; ++j) {
    double ds =
        weight[j - first] / sum * (dot(p.dout, i, p.v, j, head) - delta) * slope[j - first] / std::sqrt(double(width));
    for (int64_t c = 0; c < width; ++c) dq[c] += ds * at(p.k, j, head, c);
  }
  double allowed = p.q.dtype() == kBF16 ? 0x1p-7 : 1e-5;
  auto check = [&](const char* name, const Tensor& got, const std::vector<double>& want) {
    for (int64_t c = 0; c < width; ++c)
      WEFT_CHECK(std::abs(at(got, i, head, c) - want[c]) <= allowed * (1 + std::abs(want[c])),
                 str("bench attention: row ", i, " of head ", head, " is wrong: ", name, " ", at(got, i, head, c),
                     ", must be ", want[c]),
                 "please report this");
  };
  check("out", y_out, out);
  if (y_dq.defined()) check("dq", y_dq, dq);
}

void check_rows(const Problem& here, const Tensor& y_out, const Tensor& y_dq) {
  Tensor out = y_out.cpu(), dq = y_dq.defined() ? y_dq.cpu() : Tensor();
  const int64_t last = here.q.size(1) - 1, heads = here.q.size(2);
  for (int64_t i : {int64_t{0}, int64_t{95}, int64_t{1000}, last}) check_row(here, out, dq, i, i % heads);
}

// Kernels on a GPU beside those that `automatic` takes: a column each, in the cases that they are for.
struct Rival {
  const char* name;
  ops::AttentionBackend backend;
  bool (*is_for)(const Case&);
};
const Rival kRivals[] = {
    {"cuDNN", ops::AttentionBackend::cudnn,
     [](const Case& c) { return !c.mask.same_document && c.softcap == 0 && !c.has_alibi; }},
    {"wgmma", ops::AttentionBackend::wgmma, [](const Case&) { return true; }},
};

// Forward and backward of a rival, checked; why there is none where it refuses one of them or is wrong.
struct RivalRun {
  std::string column;
  std::array<std::function<void()>, 2> calls;
  std::array<std::string, 2> problems;
  std::array<double, 2> seconds = {};

  RivalRun(const Rival& rival, const Problem& here, Problem p, ops::Attention y) : column(str("of ", rival.name)) {
    p.options.backend = rival.backend;
    attempt(0, [&] {
      ops::Attention own = p.forward();
      check_rows(here, own.out, {});
      y = own;
      calls[0] = [p] { p.forward(); };
    });
    attempt(1, [&] {  // after a forward of ours, where the rival has none
      check_rows(here, y.out, p.backward(y).dq);
      calls[1] = [p, y] { p.backward(y); };
    });
  }

 private:
  void attempt(size_t i, const std::function<void()>& f) {
    try {
      f();
    } catch (const Error& error) { problems[i] = error.problem().substr(0, error.problem().find('\n')); }
  }
};

std::string share(double x) { return str(std::round(x * 1000) / 1000); }

// The row of forward (0) or backward (1), without what is measured. Without goals there is no column of them.
Row row_of(const Case& c, const Size& size, const Goals* goals, size_t i) {
  Row row{.name = str(i == 0 ? "forward" : "backward", c.name),
          .shape = str("B1 H", size.heads, " d", size.width, " T", size.tokens),
          .dtype = str(c.dtype),
          .threads = num_threads(),
          .unit = "GFLOP/s"};
  if (goals) row.extra.emplace_back("goal", share(goals->of[i]));
  row.extra.emplace_back("time", "");
  return row;
}

// Times and, beside them, those of rivals. `plain` holds forward's and backward's rates of the size's first case, which is plain
// causal: what a mask or a score costs per visible pair.
void run_case(const Case& c, const Size& size, const Goals* goals, const BenchOptions& options,
              std::array<double, 2>& plain, std::vector<Row>& rows) {
  Problem here(c, size), p = here.on(default_device());
  ops::Attention y = p.forward();
  check_rows(here, y.out, p.backward(y).dq);
  std::vector<std::function<void()>> functions = {[&] { p.forward(); }, [&] { p.backward(y); }};
  std::vector<RivalRun> rivals;
  if (default_device().is_cuda())
    for (const Rival& rival : kRivals)
      if (rival.is_for(c)) rivals.emplace_back(rival, here, p, y);
  for (const RivalRun& rival : rivals)
    for (const auto& call : rival.calls)
      if (call) functions.push_back(call);

  double peak = gemm_peak(c.dtype) * 1e-9;
  const int min_rounds = options.quick ? (size.tokens > 8192 ? 1 : 2) : 5;
  std::vector<Timing> times = time_in_turn(functions, options.quick ? 0.5 : 6, min_rounds);
  size_t next = 2;
  for (RivalRun& rival : rivals)
    for (size_t i = 0; i < 2; ++i)
      if (rival.calls[i]) rival.seconds[i] = times[next++].best_s;
  double product = 2.0 * static_cast<double>(size.width * size.heads) * p.pairs * 1e-9;
  for (size_t i = 0; i < 2; ++i) {
    const double rate = (i == 0 ? 2 : 5) * product / times[i].best_s;
    Row row = row_of(c, size, goals, i);
    row.value = rate, row.limit = peak, row.ratio = rate / peak;
    auto& extra = row.extra;
    extra.back().second = str(std::round(times[i].best_s * 1e5) / 100, " ms");
    if (*c.name == 0) plain[i] = rate;
    else extra.emplace_back("of plain", share(rate / plain[i]));
    for (const RivalRun& rival : rivals)
      extra.emplace_back(rival.column, rival.calls[i] ? share(rival.seconds[i] / times[i].best_s) : rival.problems[i]);
    rows.push_back(std::move(row));
  }
}

// Highest memory of one forward and backward beyond the inputs, per token; the limit is that of the shortest sequence.
void add_memory_rows(const BenchOptions& options, std::vector<Row>& rows) {
  constexpr int64_t kWidth = 64;
  Allocator& memory = allocator(default_device());
  double first = 0;
  for (int64_t n = 4096; n <= (options.quick ? 16384 : 32768); n *= 2) {
    Problem p = Problem({"", kF32}, {n, 1, kWidth}).on(default_device());
    memory.reset_peak();
    int64_t before = memory.stats().current_bytes;
    p.backward(p.forward());
    double bytes = static_cast<double>(memory.stats().peak_bytes - before) / static_cast<double>(n);
    if (first == 0) first = bytes;
    rows.push_back(time_row("memory", str("B1 H1 d", kWidth, " T", n), kF32, bytes, "B/token", first));
    rows.back().extra.emplace_back("peak", str(std::round(bytes * static_cast<double>(n) / 1e4) / 100, " MB"));
  }
}

}  // namespace

std::vector<Row> cpu_attention_rows() {
  std::vector<Row> rows;
  for (const CpuRow& row : kCpuRows)
    for (size_t i = 0; i < 2; ++i) rows.push_back(row_of(row.c, row.size, &row.goals, i));
  return rows;
}

std::vector<Row> run_attention(const BenchOptions& options) {
  std::vector<Row> rows;
  if (default_device().is_cuda()) {
    for (const Size& size : kCudaSizes) {
      std::array<double, 2> plain{};
      for (const Case& c : kCudaCases) run_case(c, size, nullptr, options, plain, rows);
    }
  } else {
    std::array<double, 2> plain{};
    for (const CpuRow& row : kCpuRows) run_case(row.c, row.size, &row.goals, options, plain, rows);
  }
  add_memory_rows(options, rows);
  return rows;
}

}  // namespace weft::bench
