#include "trainers/command/self_test.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "ops/cpu/isa.h"
#include "weft/core/rng.h"
#include "weft/ops/attention.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/matmul.h"
#include "weft/ops/norm.h"
#include "weft/ops/sequence.h"

namespace weft::cli {

namespace {

using Tensors = std::vector<Tensor>;

// A kernel as a function of its inputs' dtype: the same values, rounded to bf16 once so that every dtype holds them.
struct Kernel {
  const char* name;
  std::function<Tensors(DType)> run;
};

Tensor values(const Shape& shape, uint64_t stream, DType dtype) {
  Tensor x = Tensor::empty(shape, kF32);
  ops::fill_normal_(x, Rng(2026)["self test"][stream], 0, 1);
  return ops::cast(ops::cast(x, kBF16), dtype);
}

struct AttentionInputs {
  Tensor q, k, v, dout;
  ops::AttentionTokens tokens;

  explicit AttentionInputs(DType dtype)  // 150 tokens: tiles that are full, cut by the diagonal, and ragged
      : q(values({1, 150, 4, 32}, 1, dtype)),
        k(values({1, 150, 2, 32}, 2, dtype)),
        v(values({1, 150, 2, 32}, 3, dtype)),
        dout(values({1, 150, 4, 32}, 4, dtype)) {
    std::vector<int32_t> positions(150);
    for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int32_t>(i);
    tokens.positions = Tensor::from(std::span<const int32_t>(positions), {1, 150});
  }
  ops::Attention forward() const { return ops::attend(q, k, v, tokens, tokens, {}); }
};

std::vector<Kernel> kernels() {
  return {
      {"elementwise",
       [](DType t) {
         Tensor x = values({67, 131}, 5, t);
         return Tensors{ops::exp(x), ops::tanh(x), ops::gelu(x), ops::silu(x), ops::add(x, values({131}, 6, t))};
       }},
      {"rms_norm",
       [](DType t) {
         return Tensors{ops::rms_norm(values({67, 131}, 5, t), values({131}, 6, t), 1e-6).y};
       }},
      {"layer_norm",
       [](DType t) {
         return Tensors{ops::layer_norm(values({67, 131}, 5, t), values({131}, 6, t), values({131}, 7, t), 1e-6).y};
       }},
      {"softmax",
       [](DType t) {
         return Tensors{ops::softmax(values({67, 131}, 5, t))};
       }},
      {"matmul",
       [](DType t) {
         return Tensors{ops::matmul(values({67, 131}, 5, t), values({131, 93}, 8, t)),
                        ops::matmul(values({67, 131}, 5, t), values({93, 131}, 9, t), {.transpose_b = true})};
       }},
      {"attention",
       [](DType t) {
         ops::Attention y = AttentionInputs(t).forward();
         return Tensors{y.out, y.lse};
       }},
      {"attention backward",
       [](DType t) {
         AttentionInputs in(t);
         ops::AttentionGrads grads =
             ops::attend_backward(in.dout, {}, in.q, in.k, in.v, in.forward(), in.tokens, in.tokens, {});
         return Tensors{grads.dq, grads.dk, grads.dv};
       }},
  };
}

double error_against(const Tensors& got, const Tensors& want) {
  double error = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    auto x = ops::cast(got[i], kF64).to_vector<double>(), y = ops::cast(want[i], kF64).to_vector<double>();
    double largest = 0, difference = 0;
    for (size_t j = 0; j < x.size(); ++j) {
      largest = std::max(largest, std::abs(y[j]));
      double d = std::abs(x[j] - y[j]);
      difference = d <= difference ? difference : d;  // NaN stays
    }
    double relative = difference / largest;
    error = relative <= error ? error : relative;
  }
  return error;
}

}  // namespace

std::vector<KernelCheck> kernel_self_test() {
  std::vector<KernelCheck> checks;
  cpu::Isa own = cpu::isa();
  cpu::set_isa(cpu::Isa::baseline);
  std::vector<std::pair<Kernel, Tensors>> cases;
  for (Kernel& kernel : kernels()) {
    Tensors want = kernel.run(kF64);
    cases.emplace_back(std::move(kernel), std::move(want));
  }
  for (cpu::Isa isa : {cpu::Isa::baseline, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (!cpu::has_isa(isa)) continue;
    cpu::set_isa(isa);
    for (const auto& [kernel, want] : cases)
      for (DType dtype : {kF32, kBF16})
        checks.push_back({kernel.name, std::string(cpu::to_string(isa)), str(dtype),
                          error_against(kernel.run(dtype), want), dtype == kF32 ? 1e-5 : 3e-2});
  }
  cpu::set_isa(own);
  return checks;
}

}  // namespace weft::cli
