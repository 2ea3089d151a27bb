// Mixture over depth: checks, then kernels over blocks of rows.
#include "weft/ops/depth.h"

#include "ops/cpu/depth.h"
#include "ops/cuda/depth.h"
#include "ops/norm_input.h"
#include "ops/row_sums.h"
#include "src/core/cuda_build.h"
#include "weft/ops/elementwise.h"

namespace weft::ops {

namespace {

using cpu::Isa;

// Row-major tensors to read and their pointers for the kernels.
template <class T>
struct Pointers {
  std::vector<Tensor> tensors;
  std::vector<T*> data;

  explicit Pointers(std::span<const Tensor> all) {
    for (const Tensor& t : all) data.push_back(const_cast<T*>(tensors.emplace_back(contiguous(t)).template data<T>()));
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
  DepthMixGrads grads{.dscores = Tensor::empty(weights.shape(), weights.dtype(), weights.device()),
                      .ddirections = Tensor::empty(directions.shape(), directions.dtype(), directions.device())};
  Tensor w = contiguous(directions), totals = options.totals.defined() ? contiguous(options.totals) : Tensor();
  with_floating(first, op, [&]<class T, class C>() {
    Pointers<T> v(values), dy(douts);
    Pointers<C> r(scales);
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
                              .dscores = grads.dscores.mutable_data<C>()};
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

DepthSourceGrads depth_source_backward(std::span<const DepthReading> readings, const Tensor& value,
                                       const Tensor& scale) {
  constexpr std::string_view op = "depth_source_backward";
  check_floating_rows(value, "value", op);
  const DType statistics = statistics_dtype(value);
  const int64_t D = value.shape().back();
  std::vector<Tensor> douts;
  std::vector<int64_t> strides;
  for (const DepthReading& r : readings) {
    check_like(r.dout, "dout", value, "value", op);
    WEFT_CHECK(r.directions.defined() && r.directions.num_dims() == 2 && r.directions.size(1) == D &&
                   r.directions.dtype() == statistics && r.directions.is_contiguous(),
               str(op, ": directions are ", r.directions, ", the value is ", value), "pass those of the mixture");
    const int64_t S = r.directions.size(0), N = r.weights.defined() ? r.weights.shape().back() : 0;
    for (const Tensor* t : {&r.weights, &r.dscores})
      WEFT_CHECK(t->defined() && t->shape() == with_more(value.shape(), S, N) && t->dtype() == statistics &&
                     t->is_contiguous(),
                 str(op, ": weights or dscores are ", *t, ", the value is ", value), "pass those of the mixture");
    WEFT_CHECK(r.query >= 0 && r.query < S && r.source >= 0 && r.source < N,
               str(op, ": query ", r.query, " and source ", r.source, " of ", S, " and ", N), "count from 0");
    douts.push_back(r.dout);
    strides.push_back(S * N);
  }
  Tensor r = scale.defined() ? contiguous(scale) : Tensor();
  WEFT_CHECK(!r.defined() || (r.shape() == with_last(value.shape(), 1) && r.dtype() == statistics),
             str(op, ": scale is ", r, ", the value is ", value), str("it is ", with_last(value.shape(), 1)));
  DepthSourceGrads grads{.dvalue = Tensor::empty(value.shape(), value.dtype(), value.device()),
                         .dscale = r.defined() ? Tensor::empty(r.shape(), statistics, r.device()) : Tensor()};
  Tensor v = contiguous(value);
  with_floating(value, op, [&]<class T, class C>() {
    Pointers<T> dy(douts);
    std::vector<const C*> weights, dscores, directions;
    for (const DepthReading& reading : readings) {
      const int64_t at = reading.query * reading.weights.shape().back() + reading.source;
      weights.push_back(reading.weights.data<C>() + at);
      dscores.push_back(reading.dscores.data<C>() + at);
      directions.push_back(reading.directions.data<C>() + reading.query * D);
    }
    cpu::DepthSourceArgs<T, C> args{.readings = static_cast<int64_t>(readings.size()),
                                    .width = D,
                                    .douts = dy.get(),
                                    .weights = weights.data(),
                                    .dscores = dscores.data(),
                                    .strides = strides.data(),
                                    .directions = directions.data(),
                                    .value = v.data<T>(),
                                    .scale = r.defined() ? r.data<C>() : nullptr,
                                    .dvalue = grads.dvalue.mutable_data<T>(),
                                    .dscale = r.defined() ? grads.dscale.mutable_data<C>() : nullptr};
    const int64_t rows = rows_of(value);
    if constexpr (kCuda) {
      if (value.is_cuda()) return cuda::DepthKernels<T, C>::source_backward(args, rows, value.device());
    }
    parallel_for(rows, grain_of(D * (args.readings + 1)), [&](int64_t begin, int64_t end) {
      cpu::with_isa([&]<Isa I>() { cpu::DepthKernels<I, T, C>::source_backward(args, begin, end); });
    });
  });
  return grads;
}

}  // namespace weft::ops
