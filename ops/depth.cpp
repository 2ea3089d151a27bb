// Mixture over depth: checks, then kernels over blocks of rows.
#include "weft/ops/depth.h"

#include "ops/cpu/depth.h"
#include "ops/cuda/depth.h"
#include "ops/norm_input.h"
#include "ops/row_sums.h"
#include "weft/core/cuda_build.h"
#include "weft/ops/elementwise.h"

namespace weft::ops {

namespace {

using cpu::Isa;

// Checked and row-major; pointers for the kernels.
template <class T, class C>
struct Sources {
  std::vector<Tensor> values, scales;
  std::vector<const T*> value_data;
  std::vector<const C*> scale_data;

  cpu::DepthArgs<T, C> args(const Tensor& direction, bool is_sigmoid) const {
    return {.sources = static_cast<int64_t>(values.size()),
            .width = values[0].shape().back(),
            .values = value_data.data(),
            .scales = scales.empty() ? nullptr : scale_data.data(),
            .direction = direction.data<C>(),
            .is_sigmoid = is_sigmoid};
  }
};

Shape with_last(Shape shape, int64_t last) {
  shape[shape.num_dims() - 1] = last;
  return shape;
}

void check(std::string_view op, std::span<const Tensor> values, std::span<const Tensor> scales,
           const Tensor& direction) {
  WEFT_CHECK(!values.empty(), str(op, ": no sources"), "give at least one");
  const Tensor& first = values[0];
  check_floating_rows(first, "source 0", op);
  DType statistics = statistics_dtype(first);
  for (size_t i = 0; i < values.size(); ++i) check_like(values[i], str("source ", i), first, "source 0", op);
  WEFT_CHECK(scales.empty() || scales.size() == values.size(),
             str(op, ": ", scales.size(), " scales for ", values.size(), " sources"), "give one each, or none");
  for (size_t i = 0; i < scales.size(); ++i)
    WEFT_CHECK(scales[i].defined() && scales[i].shape() == with_last(first.shape(), 1) &&
                   scales[i].dtype() == statistics && scales[i].device() == first.device(),
               str(op, ": scale ", i, " is ", scales[i], ", sources are ", first),
               str("scales are ", with_last(first.shape(), 1), " ", statistics));
  WEFT_CHECK(direction.defined() && direction.shape() == Shape{first.shape().back()} &&
                 direction.dtype() == statistics && direction.device() == first.device(),
             str(op, ": direction is ", direction, ", sources are ", first),
             str("direction is [", first.shape().back(), "] ", statistics));
}

template <class T, class C>
Sources<T, C> sources_of(std::span<const Tensor> values, std::span<const Tensor> scales) {
  Sources<T, C> all;
  for (const Tensor& v : values) all.value_data.push_back(all.values.emplace_back(contiguous(v)).template data<T>());
  for (const Tensor& s : scales) all.scale_data.push_back(all.scales.emplace_back(contiguous(s)).template data<C>());
  return all;
}

int64_t rows_of(const Tensor& x) { return x.shape().back() > 0 ? x.num_elements() / x.shape().back() : 0; }

}  // namespace

DepthMix depth_mix(std::span<const Tensor> values, std::span<const Tensor> scales, const Tensor& direction,
                   bool is_sigmoid) {
  check("depth_mix", values, scales, direction);
  const Tensor& first = values[0];
  const auto N = static_cast<int64_t>(values.size());
  DepthMix result{Tensor::empty(first.shape(), first.dtype(), first.device()),
                  Tensor::empty(with_last(first.shape(), N), statistics_dtype(first), first.device())};
  Tensor w = contiguous(direction);
  with_floating(first, "depth_mix", [&]<class T, class C>() {
    auto sources = sources_of<T, C>(values, scales);
    cpu::DepthArgs<T, C> args = sources.args(w, is_sigmoid);
    args.weights = result.weights.mutable_data<C>(), args.out = result.out.mutable_data<T>();
    const int64_t rows = rows_of(first);
    if constexpr (kCuda) {
      if (first.is_cuda()) return cuda::DepthKernels<T, C>::mix(args, rows, first.device());
    }
    parallel_for(rows, grain_of(args.width * N), [&](int64_t begin, int64_t end) {
      cpu::with_isa([&]<Isa I>() { cpu::DepthKernels<I, T, C>::mix(args, begin, end); });
    });
  });
  return result;
}

DepthMixGrads depth_mix_backward(const Tensor& dout, const Tensor& weights, std::span<const Tensor> values,
                                 std::span<const Tensor> scales, const Tensor& direction, bool is_sigmoid) {
  constexpr std::string_view op = "depth_mix_backward";
  check(op, values, scales, direction);
  const Tensor& first = values[0];
  const auto N = static_cast<int64_t>(values.size());
  check_like(dout, "dout", first, "source 0", op);
  WEFT_CHECK(weights.defined() && weights.shape() == with_last(first.shape(), N) &&
                 weights.dtype() == statistics_dtype(first) && weights.is_contiguous(),
             str(op, ": weights are ", weights), "pass those of the forward call");
  DepthMixGrads grads;
  for (const Tensor& v : values) grads.dvalues.push_back(Tensor::empty(v.shape(), v.dtype(), v.device()));
  for (const Tensor& s : scales) grads.dscales.push_back(Tensor::empty(s.shape(), s.dtype(), s.device()));
  grads.ddirection = Tensor::empty(direction.shape(), direction.dtype(), direction.device());
  Tensor w = contiguous(direction), dy = contiguous(dout);
  with_floating(first, op, [&]<class T, class C>() {
    auto sources = sources_of<T, C>(values, scales);
    std::vector<T*> dvalues;
    std::vector<C*> dscales;
    for (Tensor& t : grads.dvalues) dvalues.push_back(t.mutable_data<T>());
    for (Tensor& t : grads.dscales) dscales.push_back(t.mutable_data<C>());
    cpu::DepthArgs<T, C> args = sources.args(w, is_sigmoid);
    args.weights = const_cast<C*>(weights.data<C>()), args.dout = dy.data<T>();
    args.dvalues = dvalues.data(), args.dscales = dscales.empty() ? nullptr : dscales.data();
    const int64_t rows = rows_of(first);
    if constexpr (kCuda) {
      if (first.is_cuda())
        return cuda::DepthKernels<T, C>::mix_backward(args, rows, grads.ddirection.mutable_data<C>(), first.device());
    }
    sum_row_blocks<C>(rows, args.width * N, {&grads.ddirection}, [&](int64_t begin, int64_t end, C* ddirection) {
      cpu::with_isa([&]<Isa I>() { cpu::DepthKernels<I, T, C>::mix_backward(args, begin, end, ddirection); });
    });
  });
  return grads;
}

}  // namespace weft::ops
