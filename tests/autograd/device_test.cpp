// Every differentiable function on every device that is there, forward and backward, against the CPU: the rows of the gradient
// check in each floating dtype, dense and strided, and rows of sizes at the edges of what kernels treat apart.
#include <gtest/gtest.h>

#include "tests/autograd/rows.h"
#include "weft/autograd/depth.h"
#include "weft/autograd/recurrence.h"
#include "weft/core/stream.h"

namespace weft {
namespace {

using namespace test;

struct OnDevice {
  explicit OnDevice(Device device) { set_default_device(device); }
  ~OnDevice() { set_default_device(Device::cpu()); }
};

// The value and the gradients of sum(f * weights), all on the CPU in float64.
std::vector<Tensor> run(const Row& row, const std::vector<Tensor>& inputs, Device device) {
  OnDevice guard(device);
  std::vector<Var> leaves;
  for (const Tensor& x : inputs) leaves.push_back(variable(ops::to(x, device)));
  Var y = row.f(leaves);
  Tensor weights = random_normal(y.value().shape(), str(row.name, "weights"), y.value().dtype() == kF64 ? kF64 : kF32);
  std::vector<Tensor> results{y.value()};
  backward(sum_all(y * Var(ops::to(ops::cast(weights, y.value().dtype()), device))));
  for (const Var& leaf : leaves) results.push_back(leaf.grad());
  for (Tensor& t : results)
    if (t.defined()) t = ops::cast(ops::to(t, Device::cpu()), kF64);
  return results;
}

void expect_near(const Tensor& got, const Tensor& want, double tolerance, const std::string& what) {
  ASSERT_EQ(got.defined(), want.defined()) << what;
  if (!got.defined()) return;
  ASSERT_EQ(got.shape(), want.shape()) << what;
  auto a = got.to_vector<double>(), b = want.to_vector<double>();
  double largest = 0;
  for (double x : b)
    if (std::isfinite(x)) largest = std::max(largest, std::abs(x));
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    ASSERT_LE(std::abs(a[i] - b[i]), tolerance * (1 + largest))
        << what << " element " << i << ": got " << a[i] << ", want " << b[i];
  }
}

void compare(const Row& row, DType dtype, bool is_strided) {
  std::vector<Tensor> inputs = inputs_of(row);
  for (Tensor& x : inputs) {
    x = ops::cast(x, dtype);
    if (is_strided && x.num_dims() >= 2) x = ops::contiguous(x.transpose(0, 1)).transpose(0, 1);
  }
  // bf16 results are rounded once on either side, from sums in another order.
  double tolerance = dtype == kF64 ? 1e-11 : dtype == kF32 ? 2e-5 : 0x1p-6;
  std::vector<Tensor> want = run(row, inputs, Device::cpu());
  for (int d = 0; d < num_cuda_devices(); ++d) {
    std::vector<Tensor> got = run(row, inputs, Device::cuda(d));
    for (size_t i = 0; i < want.size(); ++i)
      expect_near(
          got[i], want[i], tolerance,
          str(row.name, " ", dtype, is_strided ? " strided" : "", i ? " gradient " : " value", i ? str(i - 1) : ""));
  }
}

void compare_all(const std::vector<Row>& rows) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (const Row& row : rows)
    for (DType dtype : {kF64, kF32, kBF16})
      for (bool is_strided : {false, true}) {
        SCOPED_TRACE(str(row.name, " ", dtype));
        compare(row, dtype, is_strided);
      }
}

TEST(Devices, AgreeOnElementwiseFunctions) { compare_all(elementwise_rows()); }
TEST(Devices, AgreeOnViewsReductionsAndLookups) { compare_all(shape_rows()); }
TEST(Devices, AgreeOnProductsNormsAttentionAndLosses) { compare_all(layer_rows()); }

// Sizes around lanes, warps, blocks and tiles.
std::vector<Row> edge_rows() {
  std::vector<Row> rows;
  for (int64_t n : {0, 1, 31, 33, 255, 1025, 4099}) {
    rows.push_back({"add_n", {{n}, {n}}, [](In in) { return in[0] + in[1]; }});
    rows.push_back({"gelu_n", {{n}}, [](In in) { return gelu(in[0]); }});
    rows.push_back({"sum_n", {{3, n}}, [](In in) { return sum(in[0], 1); }});
    rows.push_back({"sum_columns_n", {{n, 3}}, [](In in) { return sum(in[0], 0); }});
    rows.push_back({"cumsum_n", {{2, n}}, [](In in) { return cumsum(in[0], 1); }});
  }
  for (int64_t n : {1, 3, 31, 64, 129, 1000, 4100}) {
    rows.push_back({"rms_norm_n", {{5, n}, {n}}, [](In in) { return rms_norm(in[0], in[1], 1e-6); }});
    // LayerNorm of one number is 0 and of two (1, -1): their gradients are nothing but rounding.
    if (n > 2)
      rows.push_back({"layer_norm_n", {{5, n}, {n}, {n}}, [](In in) { return layer_norm(in[0], in[1], in[2], 1e-5); }});
    rows.push_back({"softmax_n", {{3, n}}, [](In in) { return softmax(in[0]); }});
    rows.push_back({"log_softmax_n", {{3, n}}, [](In in) { return log_softmax(in[0]); }});
    rows.push_back({"softmax_columns_n", {{2, 5, n}}, [](In in) { return softmax(in[0], 1); }});
    rows.push_back({"log_softmax_columns_n", {{n, 3}}, [](In in) { return log_softmax(in[0], 0); }});
    rows.push_back(
        {"kl_divergence_n", {{3, n}, {3, n}}, [](In in) { return kl_divergence(in[0], in[1], Reduction::none); }});
    rows.push_back(
        {"cross_entropy_smooth_n", {{3, n}}, [n](In in) {
           return cross_entropy(in[0], ints({0, -1, static_cast<int32_t>(n - 1)}, {3}), {.label_smoothing = 0.1});
         }});
    for (bool is_sigmoid : {false, true})
      rows.push_back({"depth_mix_n", {{5, n}, {5, n}, {5, n}, {n}}, [is_sigmoid, n](In in) {
                        const DType wide = in[0].dtype() == kF64 ? kF64 : kF32;
                        Var direction = cast(in[3], wide) * (1 / std::sqrt(static_cast<double>(n)));
                        const DepthSource sources[] = {DepthSource(in[0]), DepthSource(in[1]), DepthSource(in[2])};
                        return depth_mix(sources, direction, is_sigmoid).out;
                      }});
    rows.push_back({"depth_group_n", {{5, n}, {5, n}, {5, n}, {2, n}}, [n](In in) {
                      const DType wide = in[0].dtype() == kF64 ? kF64 : kF32;
                      Var directions = cast(in[3], wide) * (1 / std::sqrt(static_cast<double>(n)));
                      auto scaled = [wide](const Var& x) {
                        return DepthSource(x, rsqrt(mean(square(cast(x, wide)), -1, true) + 1e-6));
                      };
                      const DepthSource sources[] = {scaled(in[0]), scaled(in[1]), scaled(in[2])};
                      const std::span<const DepthSource> all(sources);
                      DepthGroup group(all.first(2), directions, n % 2 == 0);
                      Var first = group.read(0, {}, select(directions, 0, 0), false).out;
                      return first + group.read(1, all.last(1), select(directions, 0, 1), false).out;
                    }});
    rows.push_back({"swiglu_n", {{3, n}, {3, n}}, [](In in) { return swiglu(in[0], in[1]); }});
    rows.push_back({"cross_entropy_n", {{3, n}}, [n](In in) {
                      return cross_entropy(in[0], ints({0, -1, static_cast<int32_t>(n - 1)}, {3}));
                    }});
  }
  for (auto [m, k, n] : {std::array<int64_t, 3>{1, 1, 1}, {17, 33, 65}, {64, 64, 64}, {130, 7, 3}})
    rows.push_back({"matmul_mkn", {{m, k}, {k, n}}, [](In in) { return matmul(in[0], in[1]); }});
  return rows;
}
TEST(Devices, AgreeAtTheEdgesOfKernels) { compare_all(edge_rows()); }

// Rows of more than a block holds in registers, which are read again in every pass: large vocabularies above all.
std::vector<Row> long_rows() {
  constexpr int64_t n = 16 * 1024 + 3;
  std::vector<Row> rows;
  for (int64_t width : {n, n + 5}) {  // by one element, and 16 bytes at a time
    rows.push_back({"rms_norm_long", {{2, width}, {width}}, [](In in) { return rms_norm(in[0], in[1], 1e-6); }});
    rows.push_back({"layer_norm_long", {{2, width}, {width}, {width}}, [](In in) {
                      return layer_norm(in[0], in[1], in[2], 1e-5);
                    }});
    rows.push_back({"softmax_long", {{2, width}}, [](In in) { return softmax(in[0]); }});
    rows.push_back({"log_softmax_long", {{2, width}}, [](In in) { return log_softmax(in[0]); }});
    rows.push_back({"kl_divergence_long", {{2, width}, {2, width}}, [](In in) {
                      return kl_divergence(in[0], in[1], Reduction::none);
                    }});
    rows.push_back(
        {"cross_entropy_smooth_long", {{2, width}}, [width](In in) {
           return cross_entropy(in[0], ints({5, static_cast<int32_t>(width - 1)}, {2}), {.label_smoothing = 0.1});
         }});
    rows.push_back({"cross_entropy_long", {{2, width}}, [width](In in) {
                      return cross_entropy(in[0], ints({5, static_cast<int32_t>(width - 1)}, {2}));
                    }});
  }
  rows.push_back({"linear_cross_entropy_long", {{3, 4}, {n, 4}}, [](In in) {
                    return linear_cross_entropy(in[0], in[1], ints({0, -1, 16386}, {3}), {.chunk = 2}).loss * 2.0;
                  }});
  return rows;
}
TEST(Devices, AgreeOnLongRows) { compare_all(long_rows()); }

std::vector<Row> sequence_rows() {
  std::vector<Row> rows;
  auto documents = [] {
    Tensor d = Tensor::empty({2, 70}, kI32, Device::cpu());
    for (int64_t i = 0; i < 140; ++i) d.mutable_data<int32_t>()[i] = static_cast<int32_t>(i / 23);
    return here(d);
  };
  for (auto [dim, taps] : {std::array<int64_t, 2>{7, 1}, {7, 4}, {64, 4}, {24, 9}})
    rows.push_back({"causal_conv_n", {{2, 70, dim}, {dim, taps}, {dim}}, [documents](In in) {
                      return causal_conv(in[0], in[1], in[2], documents());
                    }});
  for (bool is_interleaved : {false, true})
    rows.push_back({"rotary_n", {{2, 70, 3, 64}}, [is_interleaved](In in) {
                      return rotary(in[0], ops::rotary_table(positions(2, 70), 64, {.interleaved = is_interleaved}));
                    }});
  rows.push_back({"dropout_n", {{2, 70, 33}}, [](In in) { return dropout(in[0], positions(2, 70), 0.4, Rng(5)); }});
  rows.push_back(
      {"linear_cross_entropy_n", {{70, 33}, {129, 33}}, [](In in) {
         Tensor targets = Tensor::empty({70}, kI32, Device::cpu());
         for (int32_t i = 0; i < 70; ++i) targets.mutable_data<int32_t>()[i] = i % 7 ? i * 13 % 129 : -1;
         return linear_cross_entropy(in[0], in[1], here(targets), {.factor = 0.1, .softcap = 5, .chunk = 32}).loss *
                2.0;
       }});
  return rows;
}
TEST(Devices, AgreeOnSequences) { compare_all(sequence_rows()); }

std::vector<Row> attention_rows() {
  std::vector<Row> rows;
  for (auto [t, k, v] : {std::array<int64_t, 3>{1, 8, 8},
                         {63, 16, 16},
                         {64, 32, 32},
                         {65, 64, 64},
                         {130, 64, 48},
                         {96, 128, 128},
                         {40, 20, 12}})
    for (int64_t window : {0, 17})
      rows.push_back({"attend_n", {{2, t, 4, k}, {2, t, 2, k}, {2, t, 2, v}}, [t = t, window](In in) {
                        ops::AttentionOptions options;
                        options.mask.window = window;
                        return both(attend(in[0], in[1], in[2], {positions(2, t)}, {positions(2, t)}, options));
                      }});
  auto documents = [](int64_t t) {
    Tensor d = Tensor::empty({1, t}, kI32, Device::cpu());
    for (int64_t i = 0; i < t; ++i) d.mutable_data<int32_t>()[i] = static_cast<int32_t>(i / 23);
    return here(d);
  };
  rows.push_back({"attend_documents", {{1, 150, 2, 32}, {1, 150, 1, 32}, {1, 150, 1, 32}}, [documents](In in) {
                    ops::AttentionOptions options;
                    options.mask.same_document = true;
                    ops::AttentionTokens tokens{positions(1, 150), documents(150)};
                    return both(attend(in[0], in[1], in[2], tokens, tokens, options));
                  }});
  rows.push_back({"attend_alibi", {{1, 70, 2, 32}, {1, 70, 2, 32}, {1, 70, 2, 32}}, [](In in) {
                    ops::AttentionOptions options;
                    options.score.alibi_slopes = here(Tensor::from<float>({0.5f, 0.125f}, {2}));
                    options.score.softcap = 3;
                    return both(attend(in[0], in[1], in[2], {positions(1, 70)}, {positions(1, 70)}, options));
                  }});
  rows.push_back({"attend_dropout_n", {{1, 70, 2, 32}, {1, 70, 1, 32}, {1, 70, 1, 32}}, [](In in) {
                    return both(attend(in[0], in[1], in[2], {positions(1, 70)}, {positions(1, 70)},
                                       {.dropout = 0.3, .dropout_rng = Rng(9)}));
                  }});
  return rows;
}
std::vector<Row> recurrence_rows() {
  std::vector<Row> rows;
  auto documents = [](int64_t t) {
    Tensor d = Tensor::empty({1, t}, kI32, Device::cpu());
    for (int64_t i = 0; i < t; ++i) d.mutable_data<int32_t>()[i] = i == 4 ? -1 : static_cast<int32_t>(i / 7);
    return here(d);
  };
  auto gate = [](const Var& x) { return log_sigmoid(not_bf16(x)); };
  for (int64_t t : {3, 20}) {
    rows.push_back({"recur_plain", {{2, t, 1, 3}, {2, t, 1, 3}, {2, t, 2, 2}}, [](In in) {
                      return both(recur({in[0], in[1], in[2]}, {.scale = 0.5}));
                    }});
    rows.push_back(
        {"recur_head", {{1, t, 2, 3}, {1, t, 2, 3}, {1, t, 2, 2}, {2}, {1, 2, 3, 2}}, [documents, gate, t](In in) {
           return both(recur({.q_BTGK = in[0],
                              .k_BTGK = in[1],
                              .v_BTHV = in[2],
                              .log_decay = gate(in[3]),
                              .state = not_bf16(in[4]),
                              .documents = documents(t)}));
         }});
    rows.push_back({"recur_delta_key_channels",
                    {{1, t, 1, 3}, {1, t, 1, 3}, {1, t, 2, 2}, {1, t, 2, 3}, {1, t, 2}},
                    [gate](In in) {
                      return both(recur({in[0], in[1] * 0.5, in[2], gate(in[3]), sigmoid(not_bf16(in[4]))}));
                    }});
    rows.push_back({"recur_value_channels", {{1, t, 1, 3}, {1, t, 1, 3}, {1, t, 1, 2}, {1, t, 1, 2}}, [gate](In in) {
                      return both(recur({in[0], in[1], in[2], gate(in[3])}, {.side = ops::DecaySide::value}));
                    }});
    rows.push_back(
        {"decay_scan", {{1, t, 3}, {1, t, 3}, {1, 3}}, [documents, gate, t](In in) {
           return both(decay_scan(
               {.x_BTD = in[0], .log_decay = gate(in[1]), .state = not_bf16(in[2]), .documents = documents(t)}));
         }});
  }
  return rows;
}
TEST(Devices, AgreeOnRecurrences) { compare_all(recurrence_rows()); }

TEST(Devices, AgreeOnAttentionOfManySizes) { compare_all(attention_rows()); }

}  // namespace
}  // namespace weft
