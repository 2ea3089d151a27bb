// Copies with conversion and broadcasting, also between CPU and GPU; fill; to += factor * from.
#include <limits>
#include <type_traits>

#include "ops/cpu/copy.h"
#include "ops/cuda/elementwise.h"
#include "ops/cuda/loop.cuh"

namespace weft::cuda {

namespace {

// Floating to integer saturates, NaN gives 0, to bool is x != 0: what the CPU does.
template <class To, class From>
__device__ To convert_one(From from) {
  if constexpr (std::is_same_v<To, From>) {
    return from;
  } else if constexpr (std::is_same_v<From, BFloat16>) {
    return convert_one<To>(static_cast<float>(from));
  } else if constexpr (std::is_same_v<To, BFloat16>) {
    return BFloat16(static_cast<float>(from));
  } else if constexpr (std::is_same_v<To, bool>) {
    return from != From(0);
  } else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    constexpr To low = std::numeric_limits<To>::min(), high = std::numeric_limits<To>::max();
    if (!(from > static_cast<From>(low))) return from != from ? To(0) : low;
    if (from >= static_cast<From>(high)) return high;
    return static_cast<To>(from);
  } else {
    return static_cast<To>(from);
  }
}

template <class To, class From>
struct CopyBody {
  To* to;
  const From* from;
  __device__ void one(const int64_t (&at)[2]) const { to[at[0]] = convert_one<To>(from[at[1]]); }
  template <int W>
  __device__ void wide(int64_t i) const {
    Group<From, W> in = load_group<W>(from, i);
    Group<To, W> out;
#pragma unroll
    for (int k = 0; k < W; ++k) out.at[k] = convert_one<To>(in.at[k]);
    store_group<W>(to, i, out);
  }
};

template <class To, class From>
struct AddBody {
  To* to;
  const From* from;
  Compute<To> factor;
  __device__ To value(To x, From y) const {
    return from_compute<To>(to_compute(x) + factor * static_cast<Compute<To>>(to_compute(y)));
  }
  __device__ void one(const int64_t (&at)[2]) const { to[at[0]] = value(to[at[0]], from[at[1]]); }
  template <int W>
  __device__ void wide(int64_t i) const {
    Group<From, W> in = load_group<W>(from, i);
    Group<To, W> sum = load_group<W>(to, i);
#pragma unroll
    for (int k = 0; k < W; ++k) sum.at[k] = value(sum.at[k], in.at[k]);
    store_group<W>(to, i, sum);
  }
};

// 16 bytes of the wider type at a time.
template <class To, class From>
inline constexpr int kBoth = kWide<To> < kWide<From> ? kWide<To> : kWide<From>;

template <template <class, class> class Body, class To, class From, class... More>
void run(std::string_view op, Tensor& to, const Tensor& from, More... more) {
  Body<To, From> body{to.mutable_data<To>(), from.data<From>(), more...};
  constexpr int kAtOnce = kBoth<To, From>;
  each<2, kAtOnce>(op, to.shape(), {&to, &from}, body,
                   is_aligned(body.to, kAtOnce * sizeof(To)) && is_aligned(body.from, kAtOnce * sizeof(From)),
                   stream_of(to));
}

template <class F>
void with_any(DType dtype, F&& f) {
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t, bool>(dtype, "copy", f);
}

void copy_on_device(Tensor& to, const Tensor& from) {
  if (to.dtype() == from.dtype() && to.shape() == from.shape() && to.is_contiguous() && from.is_contiguous())
    return copy_bytes(to.mutable_raw(), from.raw(), to.num_bytes(), to.device(), from.device());
  with_any(to.dtype(), [&](auto to_tag) {
    with_any(from.dtype(), [&](auto from_tag) {
      run<CopyBody, typename decltype(to_tag)::type, typename decltype(from_tag)::type>("copy", to, from);
    });
  });
}

void copy_on_its_device(Tensor& to, const Tensor& from) {
  if (to.is_cuda()) copy_on_device(to, from);
  else cpu::copy(to, from);
}

}  // namespace

// Between devices: dense and of the final dtype on the source's, the bytes across, then into the strides of `to`.
void copy(Tensor& to, const Tensor& from) {
  if (to.num_elements() == 0) return;
  if (to.device() == from.device()) return copy_on_device(to, from);
  Tensor dense = from;
  if (from.shape() != to.shape() || from.dtype() != to.dtype() || !from.is_contiguous()) {
    dense = Tensor::empty(to.shape(), to.dtype(), from.device());
    copy_on_its_device(dense, from);
  }
  if (to.is_contiguous()) return to.set_bytes(dense);
  Tensor here = Tensor::empty(to.shape(), to.dtype(), to.device());
  here.set_bytes(dense);
  copy_on_its_device(to, here);
}

void fill(Tensor& x, double value) {
  if (x.is_contiguous()) cuda_fill(x, value);
  else copy_on_device(x, Tensor::full({}, value, x.dtype(), x.device()));
}

void scaled_add(Tensor& to, const Tensor& from, double factor) {
  if (to.dtype() == kF32 && from.dtype() == kBF16)
    return run<AddBody, float, BFloat16>("add_", to, from, static_cast<float>(factor));
  with_floating(to.dtype(), "add_",
                [&]<class T>() { run<AddBody, T, T>("add_", to, from, static_cast<Compute<T>>(factor)); });
}

}  // namespace weft::cuda
