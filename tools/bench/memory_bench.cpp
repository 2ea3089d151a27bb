// `weft bench memory`: fused ops that move more bytes than they compute, beside a copy. Counted are the bytes that the op cannot avoid:
// each input read once, each output written once.
#include <algorithm>
#include <cmath>

#include "tools/bench/bench.h"
#include "tools/bench/limits.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/norm.h"
#include "weft/ops/optim.h"
#include "weft/ops/sequence.h"

namespace weft::bench {

namespace {

constexpr double kEps = 1e-5;
constexpr int64_t kHeadWidth = 128;

Tensor values(const Shape& shape, DType dtype, uint64_t salt) {
  Tensor t = Tensor::empty(shape, kF32, Device::cpu());
  auto* x = t.mutable_data<float>();
  auto state = static_cast<uint32_t>(salt);
  for (int64_t i = 0; i < t.num_elements(); ++i) {
    state = state * 1664525u + 1013904223u;
    x[i] = static_cast<float>(state >> 25) / 64 - 1;  // [-1, 1) in steps that bf16 holds
  }
  return ops::cast(ops::to(t, default_device()), dtype);
}

// A row of a matrix as float64.
std::vector<double> row_of(const Tensor& x, int64_t row) {
  std::vector<float> at = ops::cast(x.reshape({-1, x.size(-1)}).select(0, row), kF32).to_vector<float>();
  return {at.begin(), at.end()};
}

void check(const char* op, const Tensor& got, int64_t row, const std::vector<double>& want) {
  std::vector<double> have = row_of(got, row);
  const double allowed = got.dtype() == kBF16 ? 0x1p-7 : 1e-5;
  for (size_t i = 0; i < want.size(); ++i)
    WEFT_CHECK(std::abs(have[i] - want[i]) <= allowed * (1 + std::abs(want[i])),
               str("bench memory: ", op, ": element ", i, " of row ", row, " of ", got, " is ", have[i], ", must be ",
                   want[i]),
               "please report this");
}

// A row's norms with weight w, and what the row gets where d is the gradient of one of them.
struct NormRow {
  std::vector<double> rms, rms_dx, layer, layer_dx;
};
NormRow norm_row(const std::vector<double>& x, const std::vector<double>& d, const std::vector<double>& w) {
  const auto n = static_cast<double>(x.size());
  double square = 0, sum = 0, dot = 0, dw = 0;
  for (double v : x) square += v * v, sum += v;
  for (size_t i = 0; i < x.size(); ++i) dot += d[i] * w[i] * x[i], dw += d[i] * w[i];
  const double inv = 1 / std::sqrt(square / n + kEps), mean = sum / n;
  const double inv_std = 1 / std::sqrt(square / n - mean * mean + kEps), centred = dot - mean * dw;
  NormRow row;
  for (size_t i = 0; i < x.size(); ++i) {
    row.rms.push_back(x[i] * inv * w[i]);
    row.rms_dx.push_back(inv * (d[i] * w[i] - x[i] * inv * inv * dot / n));
    row.layer.push_back((x[i] - mean) * inv_std * w[i]);
    row.layer_dx.push_back(inv_std * (d[i] * w[i] - dw / n - (x[i] - mean) * inv_std * inv_std * centred / n));
  }
  return row;
}

class Bench {
 public:
  Bench(const BenchOptions& options, DType dtype, int64_t rows, int64_t width)
      : options_(options), dtype_(dtype), rows_(rows), width_(width), shape_(str("[", rows, ", ", width, "]")) {
    for (uint64_t i = 0; i < 4; ++i) inputs_.push_back(values({rows, width}, dtype, i + 1));
  }

  std::vector<Row> run() {
    norms();
    norms_of_sums();
    rotary();
    swiglu();
    if (dtype_ == kF32) adamw();
    return std::move(result_);
  }

 private:
  static constexpr int64_t kRow = 77;

  void add(const char* name, double bytes_per_element, const std::function<void()>& f) {
    const double bytes = bytes_per_element * static_cast<double>(rows_ * width_);
    const std::function<void()> functions[] = {f, [&] { copy_(); }};
    std::vector<Timing> times = time_in_turn(functions, options_.quick ? 1 : 3);
    result_.push_back(rate_row(name, shape_, dtype_, bytes / times[0].best_s * 1e-9, "GB/s",
                               copy_.bytes_moved() / times[1].best_s * 1e-9));
  }
  double size() const { return static_cast<double>(size_of(dtype_)); }

  void norms() {
    const Tensor &x = inputs_[0], &dy = inputs_[1], weight = values({width_}, kF32, 9), none;
    const NormRow want = norm_row(row_of(x, kRow), row_of(dy, kRow), row_of(weight, 0));
    ops::RmsNorm y = ops::rms_norm(x, weight, kEps);
    ops::LayerNorm z = ops::layer_norm(x, weight, none, kEps);
    check("rms_norm", y.y, kRow, want.rms);
    check("rms_norm_backward", ops::rms_norm_backward(dy, x, weight, y.inv_rms).dx, kRow, want.rms_dx);
    check("layer_norm", z.y, kRow, want.layer);
    check("layer_norm_backward", ops::layer_norm_backward(dy, x, weight, z.mean, z.inv_std).dx, kRow, want.layer_dx);
    add("rms_norm", 2 * size(), [&] { ops::rms_norm(x, weight, kEps); });
    add("rms_norm backward", 3 * size(), [&] { ops::rms_norm_backward(dy, x, weight, y.inv_rms); });
    add("layer_norm", 2 * size(), [&] { ops::layer_norm(x, weight, none, kEps); });
    add("layer_norm backward", 3 * size(), [&] { ops::layer_norm_backward(dy, x, weight, z.mean, z.inv_std); });
  }

  // The norm of a sum, which is kept too; its gradient has two parts, one of the sum itself.
  void norms_of_sums() {
    const Tensor &x = inputs_[0], &added = inputs_[1], &dy = inputs_[2], &dsum = inputs_[3],
                 weight = values({width_}, kF32, 9), none;
    std::vector<double> sum = row_of(x, kRow);
    const std::vector<double> more = row_of(added, kRow), d = row_of(dsum, kRow);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];  // bf16 holds it
    NormRow want = norm_row(sum, row_of(dy, kRow), row_of(weight, 0));
    for (size_t i = 0; i < sum.size(); ++i) want.rms_dx[i] += d[i], want.layer_dx[i] += d[i];
    const ops::AddedRmsNorm y = ops::add_rms_norm(x, added, weight, kEps);
    const ops::AddedLayerNorm z = ops::add_layer_norm(x, added, weight, none, kEps);
    auto rms_backward = [&] { return ops::rms_norm_backward(dy, y.sum, weight, y.norm.inv_rms, dsum); };
    auto layer_backward = [&] {
      return ops::layer_norm_backward(dy, z.sum, weight, z.norm.mean, z.norm.inv_std, dsum);
    };
    check("add_rms_norm", y.norm.y, kRow, want.rms);
    check("add_rms_norm: the sum", y.sum, kRow, sum);
    check("add_rms_norm backward", rms_backward().dx, kRow, want.rms_dx);
    check("add_layer_norm", z.norm.y, kRow, want.layer);
    check("add_layer_norm: the sum", z.sum, kRow, sum);
    check("add_layer_norm backward", layer_backward().dx, kRow, want.layer_dx);
    add("add_rms_norm", 4 * size(), [&] { ops::add_rms_norm(x, added, weight, kEps); });
    add("add_rms_norm backward", 4 * size(), rms_backward);
    add("add_layer_norm", 4 * size(), [&] { ops::add_layer_norm(x, added, weight, none, kEps); });
    add("add_layer_norm backward", 4 * size(), layer_backward);
  }

  void rotary() {
    Tensor x = inputs_[0].reshape({1, rows_, width_ / kHeadWidth, kHeadWidth});
    Tensor positions = Tensor::empty({1, rows_}, kI32, Device::cpu());
    for (int64_t i = 0; i < rows_; ++i) positions.mutable_data<int32_t>()[i] = static_cast<int32_t>(i);
    ops::RotaryTable table = ops::rotary_table(ops::to(positions, default_device()), kHeadWidth, {});
    const int64_t row = kRow * (width_ / kHeadWidth);  // of the first head of a token
    std::vector<double> at = row_of(x, row), want = at;
    std::vector<double> frequency = ops::rotary_frequencies(kHeadWidth, {});
    for (size_t m = 0, half = frequency.size(); m < half; ++m) {
      const double angle = static_cast<double>(kRow) * frequency[m];
      want[m] = at[m] * std::cos(angle) - at[m + half] * std::sin(angle);
      want[m + half] = at[m + half] * std::cos(angle) + at[m] * std::sin(angle);
    }
    check("rotary", ops::rotary(x, table), row, want);
    // The table's bytes are shared by the heads of a token.
    add("rotary", 2 * size() + 4.0 / static_cast<double>(width_ / kHeadWidth), [&] { ops::rotary(x, table); });
  }

  void swiglu() {
    const Tensor &gate = inputs_[0], &up = inputs_[1], &dy = inputs_[2];
    std::vector<double> g = row_of(gate, kRow), u = row_of(up, kRow), want = g;
    for (size_t i = 0; i < g.size(); ++i) want[i] = g[i] / (1 + std::exp(-g[i])) * u[i];
    check("swiglu", ops::swiglu(gate, up), kRow, want);
    add("swiglu", 3 * size(), [&] { ops::swiglu(gate, up); });
    add("swiglu backward", 5 * size(), [&] { ops::swiglu_backward(dy, gate, up); });
  }

  void adamw() {
    const ops::AdamWStep step{.lr = 1e-2, .weight_decay = 0.1};
    ops::OptimTensors t{inputs_[0], inputs_[1], Tensor::zeros({rows_, width_}), Tensor::zeros({rows_, width_}),
                        Tensor::empty({rows_, width_}, kBF16)};
    std::vector<double> p = row_of(t.param, kRow), g = row_of(t.grad, kRow);
    for (size_t i = 0; i < p.size(); ++i)  // after the first step both corrected moments are the gradient's
      p[i] -= step.lr * (step.weight_decay * p[i] + g[i] / (std::abs(g[i]) + step.eps));
    ops::adamw_({&t, 1}, step);
    check("adamw", t.param, kRow, p);
    // Reads parameter, gradient and two moments, writes three of them and the bf16 copy.
    add("adamw", 7 * 4 + 2, [&] { ops::adamw_({&t, 1}, step); });
  }

  const BenchOptions& options_;
  DType dtype_;
  int64_t rows_, width_;
  std::string shape_;
  std::vector<Tensor> inputs_;
  Copy copy_{default_device()};
  std::vector<Row> result_;
};

}  // namespace

std::vector<Row> run_memory(const BenchOptions& options) {
  const bool is_cuda = default_device().is_cuda();
  std::vector<Row> rows;
  for (DType dtype : {kF32, kBF16})
    for (Row& row : Bench(options, dtype, is_cuda ? 32768 : 16384, is_cuda ? 4096 : 2048).run())
      rows.push_back(std::move(row));
  return rows;
}

}  // namespace weft::bench
