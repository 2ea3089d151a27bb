// Cross-entropy of a row z [V] of logits with target t: loss = log(sum(exp(z - max))) + (max - z_t), which keeps its accuracy when
// the logits are large. Gradient: d = dloss (exp(z - lse) - [v = t]); the target's own entry is made by expm1, so that a certain
// prediction does not lose its small gradient. With a cap, z = cap tanh(z0 / cap) and d z / d z0 = 1 - (z / cap)^2.
#include "ops/cuda/loss.h"
#include "ops/cuda/softmax_row.cuh"

namespace weft::cuda {

namespace {

template <class C>
constexpr C kNan = std::numeric_limits<C>::quiet_NaN();

template <class C>
__device__ __forceinline__ C loss_of(const ExpSum<C>& r, C at_target) {
  return static_cast<C>(math::log(static_cast<double>(r.sum))) + (r.top - at_target);
}
// exp(z_t - lse) - 1 from the loss, which is lse - z_t.
template <class C>
__device__ __forceinline__ C target_gradient(C loss) {
  return static_cast<C>(math::expm1(-static_cast<double>(loss)));
}

// What a row's target means. Rows beyond the last count as ignored.
struct Target {
  int64_t id;  // -1: ignored
  bool is_in_range;
  __device__ __forceinline__ Target(const int32_t* targets, int64_t row, bool is_there, int64_t vocabulary)
      : id(is_there && targets[row] >= 0 ? targets[row] : -1), is_in_range(id >= 0 && id < vocabulary) {}
};

template <class L>
__global__ void __launch_bounds__(L::threads)
    cross_entropy_forward(cpu::CrossEntropyArgs<typename L::T, typename L::C> args) {
  using C = typename L::C;
  const int64_t width = args.logits_rows.width;
  for_team_rows<L>(args.logits_rows.count, [&](int64_t n, bool is_there) {
    const auto* z = args.logits + offset_of(args.logits_rows, n);
    const ExpSum<C> r = exp_sum(Row<L>(z, is_there ? width : 0));
    if (!is_there || team_lane<L>() > 0) return;
    const Target target(args.targets, n, is_there, width);
    args.lse[n] = r.log_sum();
    args.losses[n] = target.id < 0 ? C(0) : target.is_in_range ? loss_of<C>(r, to_compute(z[target.id])) : kNan<C>;
  });
}

template <class L>
__global__ void __launch_bounds__(L::threads)
    cross_entropy_backward(cpu::CrossEntropyArgs<typename L::T, typename L::C> args) {
  using C = typename L::C;
  constexpr int W = L::W;
  const int64_t width = args.logits_rows.width;
  for_team_rows<L>(args.logits_rows.count, [&](int64_t n, bool is_there) {
    if (!is_there) return;
    const auto* z = args.logits + offset_of(args.logits_rows, n);
    const Target target(args.targets, n, is_there, width);
    const C lse = args.lse[n], dloss = target.is_in_range ? args.dlosses[n] : kNan<C>;
    const C own = target.is_in_range ? dloss * target_gradient<C>(lse - to_compute(z[target.id])) : C(0);
    Row<L>(z, width).each([&](const C(&v)[W], int64_t i) {
      C d[W];
#pragma unroll
      for (int k = 0; k < W; ++k) {
        d[k] = target.id < 0 ? C(0) : dloss * math::exp(v[k] - lse);
        if (target.is_in_range && i + k == target.id) d[k] = own;
      }
      store_group(args.dlogits + n * width + i, d);
    });
  });
}

template <class C>
struct Capped {
  C cap = 0;  // 0: off
  __device__ __forceinline__ C operator()(C z) const { return cap > 0 ? cap * math::tanh(z / cap) : z; }
  __device__ __forceinline__ C slope(C z) const { return cap > 0 ? 1 - (z / cap) * (z / cap) : C(1); }  // of capped z
};

// dlogits may be the memory of the logits: every thread of a row has read the target's before one writes there, and else a thread
// writes only what it has just read itself.
template <class L, class G>
__global__ void __launch_bounds__(L::threads) loss_chunk(cpu::LossChunkArgs<typename L::C, G> args, int64_t rows) {
  using C = typename L::C;
  constexpr int W = L::W;
  const int64_t width = args.vocabulary;
  const Capped<C> capped{args.softcap};
  for_team_rows<L>(rows, [&](int64_t n, bool is_there) {
    const C* z = args.logits + n * width;
    const Target target(args.targets, n, is_there, width);
    const C at_target = target.is_in_range ? capped(z[target.id]) : kNan<C>;
    const Row<L, Capped<C>> row(z, is_there ? width : 0, capped);
    const ExpSum<C> r = exp_sum(row);
    __syncwarp();  // where a warp has several rows, their sums order nothing
    const C loss = target.id < 0 ? C(0) : loss_of(r, at_target);
    if (is_there && team_lane<L>() == 0) args.losses[n] = loss;
    if (!args.dlogits) return;
    const C share = target.is_in_range ? args.factor / r.sum : kNan<C>;
    const C own = args.factor * target_gradient(loss) * capped.slope(at_target);
    row.each([&](const C(&v)[W], int64_t i) {
      C d[W];
#pragma unroll
      for (int k = 0; k < W; ++k) {
        d[k] = target.id < 0 ? C(0) : math::exp(v[k] - r.top) * share * capped.slope(v[k]);
        if (i + k == target.id) d[k] = own;
      }
      store_group(args.dlogits + n * width + i, d);
    });
  });
}

template <class C>
__global__ void total_loss(const C* losses, int64_t n, double factor, C* loss) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += losses[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *loss = static_cast<C>(factor * sum);
}

template <class T, class C, class F>
void with_rows(const cpu::CrossEntropyArgs<T, C>& args, F&& f) {
  bool wide = is_wide(args.logits, args.logits_rows) && are_aligned(args.dlogits);
  with_layout<T>(wide, args.logits_rows.width, kMostHeld, f);
}

}  // namespace

template <class T, class C>
void CrossEntropyKernels<T, C>::forward(const cpu::CrossEntropyArgs<T, C>& args, Device device) {
  const cpu::Rows& rows = args.logits_rows;
  with_rows(args, [&]<class L>() {
    launch_rows<L>("cross_entropy", cross_entropy_forward<L>, rows.count, rows.width, device, args);
  });
}
template <class T, class C>
void CrossEntropyKernels<T, C>::backward(const cpu::CrossEntropyArgs<T, C>& args, Device device) {
  const cpu::Rows& rows = args.logits_rows;
  with_rows(args, [&]<class L>() {
    launch_rows<L>("cross_entropy_backward", cross_entropy_backward<L>, rows.count, rows.width, device, args);
  });
}

template <class C, class G>
void LossChunkKernels<C, G>::run(const cpu::LossChunkArgs<C, G>& args, int64_t rows, Device device) {
  const int64_t width = args.vocabulary;
  bool wide = are_aligned(args.logits, args.dlogits) && width % kWide<C> == 0;
  with_layout<C>(wide, width, kMostHeld, [&]<class L>() {
    launch_rows<L>("linear_cross_entropy", loss_chunk<L, G>, rows, width, device, args, rows);
  });
}
template <class C, class G>
void LossChunkKernels<C, G>::total(const C* losses, int64_t n, double factor, C* loss, Device device) {
  launch("linear_cross_entropy", total_loss<C>, 1, 1024, 0, stream(device.index), losses, n, factor, loss);
}

template struct CrossEntropyKernels<float, float>;
template struct CrossEntropyKernels<BFloat16, float>;
template struct CrossEntropyKernels<double, double>;
template struct LossChunkKernels<float, float>;
template struct LossChunkKernels<float, BFloat16>;
template struct LossChunkKernels<double, double>;

}  // namespace weft::cuda
