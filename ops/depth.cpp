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

// Row-major tensors and their pointers for the kernels.
template <class T>
struct Pointers {
  std::vector<Tensor> tensors;
  std::vector<T*> data;

  Pointers() = default;
  explicit Pointers(std::span<const Tensor> all) {  // to read
    for (const Tensor& t : all) data.push_back(const_cast<T*>(tensors.emplace_back(contiguous(t)).template data<T>()));
  }
  static Pointers like(std::span<const Tensor> all) {  // to write
    Pointers made;
    for (const Tensor& t : all)
      made.data.push_back(
          made.tensors.emplace_back(Tensor::empty(t.shape(), t.dtype(), t.device())).template mutable_data<T>());
    return made;
  }
  T* const* get() const { return data.empty() ? nullptr : data.data(); }
};

Shape with_last(Shape shape, int64_t last) {
  shape[shape.num_dims() - 1] = last;
  return shape;
}
Shape with_more(const Shape& shape, int64_t queries, int64_t sources) {  // [..., D] -> [..., S, N]
  Shape out = with_last(shape, queries);
  out.push_back(sources);
  return out;
}

// Checks all but douts; returns the number of queries.
int64_t check(std::string_view op, std::span<const Tensor> values, std::span<const Tensor> scales,
              const Tensor& directions, const Tensor& per_query) {
  WEFT_CHECK(!values.empty(), str(op, ": no sources"), "give at least one");
  const Tensor& first = values[0];
  check_floating_rows(first, "source 0", op);
  DType statistics = statistics_dtype(first);
  for (size_t i = 0; i < values.size(); ++i) check_like(values[i], str("source ", i), first, "source 0", op);
  WEFT_CHECK(scales.empty() || scales.size() == values.size(),
             str(op, ": ", scales.size(), " scales for ", values.size(), " sources"), "give one each, or none");
  auto fits = [&](const Tensor& t, const Shape& shape) {
    return t.defined() && t.shape() == shape && t.dtype() == statistics && t.device() == first.device();
  };
  for (size_t i = 0; i < scales.size(); ++i)
    WEFT_CHECK(fits(scales[i], with_last(first.shape(), 1)),
               str(op, ": scale ", i, " is ", scales[i], ", sources are ", first),
               str("scales are ", with_last(first.shape(), 1), " ", statistics));
  const bool is_matrix = directions.defined() && directions.num_dims() == 2 && directions.size(0) >= 1;
  WEFT_CHECK(is_matrix && fits(directions, {directions.size(0), first.shape().back()}),
             str(op, ": directions are ", directions, ", sources are ", first),
             str("directions are [queries, ", first.shape().back(), "] ", statistics));
  const Shape of_queries = with_last(first.shape(), directions.size(0));
  WEFT_CHECK(!per_query.defined() || fits(per_query, of_queries), str(op, ": numbers per query are ", per_query),
             str("they are ", of_queries, " ", statistics));
  return directions.size(0);
}

int64_t rows_of(const Tensor& x) { return x.shape().back() > 0 ? x.num_elements() / x.shape().back() : 0; }

}  // namespace

DepthMix depth_mix(std::span<const Tensor> values, std::span<const Tensor> scales, const Tensor& directions,
                   const DepthMixOptions& options) {
  const int64_t S = check("depth_mix", values, scales, directions, options.first_scores);
  const Tensor& first = values[0];
  const auto N = static_cast<int64_t>(values.size());
  const DType statistics = statistics_dtype(first);
  WEFT_CHECK(!options.is_sigmoid || !options.first_scores.defined(), "depth_mix: first_scores with sigmoid",
             "they are for softmax");
  DepthMix result{.weights = Tensor::empty(with_more(first.shape(), S, N), statistics, first.device())};
  if (!options.is_sigmoid) result.lse = Tensor::empty(with_last(first.shape(), S), statistics, first.device());
  for (int64_t q = 0; q < S; ++q) result.outs.push_back(Tensor::empty(first.shape(), first.dtype(), first.device()));
  Tensor w = contiguous(directions),
         given = options.first_scores.defined() ? contiguous(options.first_scores) : Tensor();
  with_floating(first, "depth_mix", [&]<class T, class C>() {
    Pointers<T> v(values);
    Pointers<C> r(scales);
    std::vector<T*> outs;
    for (Tensor& out : result.outs) outs.push_back(out.mutable_data<T>());
    cpu::DepthArgs<T, C> args{.sources = N,
                              .width = first.shape().back(),
                              .queries = S,
                              .values = v.get(),
                              .scales = r.get(),
                              .directions = w.data<C>(),
                              .first_scores = given.defined() ? given.data<C>() : nullptr,
                              .is_sigmoid = options.is_sigmoid,
                              .weights = result.weights.mutable_data<C>(),
                              .lse = result.lse.defined() ? result.lse.mutable_data<C>() : nullptr,
                              .outs = outs.data()};
    const int64_t rows = rows_of(first);
    if constexpr (kCuda) {
      if (first.is_cuda()) return cuda::DepthKernels<T, C>::mix(args, rows, first.device());
    }
    parallel_for(rows, grain_of(args.width * N * S), [&](int64_t begin, int64_t end) {
      cpu::with_isa([&]<Isa I>() { cpu::DepthKernels<I, T, C>::mix(args, begin, end); });
    });
  });
  return result;
}

DepthMixGrads depth_mix_backward(std::span<const Tensor> douts, const Tensor& weights, std::span<const Tensor> values,
                                 std::span<const Tensor> scales, const Tensor& directions,
                                 const DepthMixOptions& options) {
  constexpr std::string_view op = "depth_mix_backward";
  const int64_t S = check(op, values, scales, directions, options.totals);
  const Tensor& first = values[0];
  const auto N = static_cast<int64_t>(values.size());
  WEFT_CHECK(static_cast<int64_t>(douts.size()) == S, str(op, ": ", douts.size(), " gradients for ", S, " queries"),
             "give one each");
  for (size_t q = 0; q < douts.size(); ++q) check_like(douts[q], str("dout ", q), first, "source 0", op);
  WEFT_CHECK(weights.defined() && weights.shape() == with_more(first.shape(), S, N) &&
                 weights.dtype() == statistics_dtype(first) && weights.is_contiguous(),
             str(op, ": weights are ", weights), "pass those of the forward call");
  DepthMixGrads grads;
  grads.ddirections = Tensor::empty(directions.shape(), directions.dtype(), directions.device());
  Tensor w = contiguous(directions), totals = options.totals.defined() ? contiguous(options.totals) : Tensor();
  with_floating(first, op, [&]<class T, class C>() {
    Pointers<T> v(values), dy(douts), dv = Pointers<T>::like(values);
    Pointers<C> r(scales), dr = Pointers<C>::like(scales);
    cpu::DepthArgs<T, C> args{.sources = N,
                              .width = first.shape().back(),
                              .queries = S,
                              .values = v.get(),
                              .scales = r.get(),
                              .directions = w.data<C>(),
                              .is_sigmoid = options.is_sigmoid,
                              .weights = const_cast<C*>(weights.data<C>()),
                              .douts = dy.get(),
                              .totals = totals.defined() ? totals.data<C>() : nullptr,
                              .dvalues = dv.get(),
                              .dscales = dr.get()};
    grads.dvalues = std::move(dv.tensors), grads.dscales = std::move(dr.tensors);
    const int64_t rows = rows_of(first);
    if constexpr (kCuda) {
      if (first.is_cuda())
        return cuda::DepthKernels<T, C>::mix_backward(args, rows, grads.ddirections.mutable_data<C>(), first.device());
    }
    sum_row_blocks<C>(rows, args.width * N * S, {&grads.ddirections}, [&](int64_t begin, int64_t end, C* ddirections) {
      cpu::with_isa([&]<Isa I>() { cpu::DepthKernels<I, T, C>::mix_backward(args, begin, end, ddirections); });
    });
  });
  return grads;
}

}  // namespace weft::ops
