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

// What label smoothing and class weights make of one row's loss and gradient.
template <class T, class C>
struct Softened {
  const cpu::CrossEntropyArgs<T, C>& args;
  C own, share, total;  // factors of the target's loss and of every class's; sum of the weights

  __device__ __forceinline__ Softened(const cpu::CrossEntropyArgs<T, C>& a, const Target& target)
      : args(a),
        own((1 - a.smoothing) * (target.is_in_range ? weight_of(a, target.id) : C(1))),
        share(a.smoothing / static_cast<C>(a.logits_rows.width)),
        total(a.total_weight ? *a.total_weight : static_cast<C>(a.logits_rows.width)) {}

  __device__ __forceinline__ static C weight_of(const cpu::CrossEntropyArgs<T, C>& a, int64_t v) {
    return a.weights ? a.weights[v] : C(1);
  }
  __device__ __forceinline__ C weight(int64_t v) const { return weight_of(args, v); }
};

template <class L>
__global__ void __launch_bounds__(L::threads)
    softened_forward(cpu::CrossEntropyArgs<typename L::T, typename L::C> args) {
  using C = typename L::C;
  constexpr int W = L::W;
  const int64_t width = args.logits_rows.width;
  for_team_rows<L>(args.logits_rows.count, [&](int64_t n, bool is_there) {
    const auto* z = args.logits + offset_of(args.logits_rows, n);
    const Row<L> row(z, is_there ? width : 0);
    const ExpSum<C> r = exp_sum(row);
    const Target target(args.targets, n, is_there, width);
    const Softened<typename L::T, C> soft(args, target);
    C part = 0;
    row.each([&](const C(&v)[W], int64_t i) {
#pragma unroll
      for (int k = 0; k < W; ++k)
        if (const C w = soft.weight(i + k); w != 0) part += w * (r.top - v[k]);
    });
    const C spread = team_sum<L>(part);
    if (!is_there || team_lane<L>() > 0) return;
    args.lse[n] = r.log_sum();
    C loss = 0;
    if (target.id >= 0 && !target.is_in_range) loss = kNan<C>;
    if (target.is_in_range && soft.own != 0) loss = soft.own * loss_of<C>(r, to_compute(z[target.id]));
    if (target.is_in_range && soft.share != 0)
      loss += soft.share * (soft.total * static_cast<C>(math::log(static_cast<double>(r.sum))) + spread);
    args.losses[n] = loss;
  });
}

template <class L>
__global__ void __launch_bounds__(L::threads)
    softened_backward(cpu::CrossEntropyArgs<typename L::T, typename L::C> args) {
  using C = typename L::C;
  constexpr int W = L::W;
  const int64_t width = args.logits_rows.width;
  for_team_rows<L>(args.logits_rows.count, [&](int64_t n, bool is_there) {
    if (!is_there) return;
    const auto* z = args.logits + offset_of(args.logits_rows, n);
    const Target target(args.targets, n, is_there, width);
    const Softened<typename L::T, C> soft(args, target);
    const C lse = args.lse[n], dloss = target.is_in_range ? args.dlosses[n] : kNan<C>;
    const C all = dloss * (soft.own + soft.share * soft.total), each = dloss * soft.share;
    C own = 0;
    if (target.is_in_range) {
      const C loss = lse - to_compute(z[target.id]), p = static_cast<C>(math::exp(-static_cast<double>(loss)));
      own = dloss * (soft.own * target_gradient<C>(loss) + soft.share * (soft.total * p - soft.weight(target.id)));
    }
    Row<L>(z, width).each([&](const C(&v)[W], int64_t i) {
      C d[W];
#pragma unroll
      for (int k = 0; k < W; ++k) {
        d[k] = target.id < 0 ? C(0) : all * math::exp(v[k] - lse) - each * soft.weight(i + k);
        if (target.is_in_range && i + k == target.id) d[k] = own;
      }
      store_group(args.dlogits + n * width + i, d);
    });
  });
}

// The logarithms of a row's probabilities: z - top - log_sum.
template <class C>
struct LogProbabilities {
  C top, log_sum;
  __device__ __forceinline__ explicit LogProbabilities(const ExpSum<C>& r)
      : top(r.top), log_sum(r.sum == 0 ? C(0) : static_cast<C>(math::log(static_cast<double>(r.sum)))) {}
  __device__ __forceinline__ C operator()(C z) const { return (z - top) - log_sum; }
};

template <class L>
__global__ void __launch_bounds__(L::threads) kl_forward(cpu::KlArgs<typename L::T, typename L::C> args) {
  using C = typename L::C;
  constexpr int W = L::W;
  for_team_rows<L>(args.x_rows.count, [&](int64_t n, bool is_there) {
    const int64_t here = is_there ? args.x_rows.width : 0;
    const Row<L> x(args.x + offset_of(args.x_rows, n), here), t(args.t + offset_of(args.t_rows, n), here);
    const LogProbabilities<C> log_q(exp_sum(x)), log_p(exp_sum(t));
    C part = 0;
    t.each_with(x, [&](const C(&u)[W], const C(&v)[W], int64_t) {
#pragma unroll
      for (int k = 0; k < W; ++k) {
        const C lp = log_p(u[k]), p = math::exp(lp);
        if (p != 0) part += p * (lp - log_q(v[k]));
      }
    });
    const C loss = team_sum<L>(part);
    if (is_there && team_lane<L>() == 0) args.losses[n] = loss;
  });
}

template <class L>
__global__ void __launch_bounds__(L::threads) kl_backward(cpu::KlArgs<typename L::T, typename L::C> args) {
  using C = typename L::C;
  constexpr int W = L::W;
  const int64_t width = args.x_rows.width;
  for_team_rows<L>(args.x_rows.count, [&](int64_t n, bool is_there) {
    const int64_t here = is_there ? width : 0;
    const Row<L> x(args.x + offset_of(args.x_rows, n), here), t(args.t + offset_of(args.t_rows, n), here);
    const ExpSum<C> target = exp_sum(t);
    const LogProbabilities<C> log_q(exp_sum(x)), log_p(target);
    if (!is_there) return;
    const C dloss = args.dlosses[n], loss = args.losses[n], mass = target.sum == 0 ? C(0) : C(1);
    t.each_with(x, [&](const C(&u)[W], const C(&v)[W], int64_t i) {
      C dx[W], dt[W];
#pragma unroll
      for (int k = 0; k < W; ++k) {
        const C lp = log_p(u[k]), lq = log_q(v[k]), p = math::exp(lp);
        dx[k] = dloss * (mass * math::exp(lq) - p);
        dt[k] = p == 0 ? p : dloss * p * (lp - lq - loss);
      }
      if (args.dx) store_group(args.dx + n * width + i, dx);
      if (args.dt) store_group(args.dt + n * width + i, dt);
    });
  });
}

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
  if (args.is_plain())
    with_rows(args, [&]<class L>() {
      launch_rows<L>("cross_entropy", cross_entropy_forward<L>, rows.count, rows.width, device, args);
    });
  else
    with_simple_layout<T>(rows.width, [&]<class L>() {
      launch_rows<L>("cross_entropy", softened_forward<L>, rows.count, rows.width, device, args);
    });
}
template <class T, class C>
void CrossEntropyKernels<T, C>::backward(const cpu::CrossEntropyArgs<T, C>& args, Device device) {
  const cpu::Rows& rows = args.logits_rows;
  if (args.is_plain())
    with_rows(args, [&]<class L>() {
      launch_rows<L>("cross_entropy_backward", cuda::cross_entropy_backward<L>, rows.count, rows.width, device, args);
    });
  else
    with_simple_layout<T>(rows.width, [&]<class L>() {
      launch_rows<L>("cross_entropy_backward", softened_backward<L>, rows.count, rows.width, device, args);
    });
}

template <class T, class C>
void KlKernels<T, C>::forward(const cpu::KlArgs<T, C>& args, Device device) {
  with_simple_layout<T>(args.x_rows.width, [&]<class L>() {
    launch_rows<L>("kl_divergence", kl_forward<L>, args.x_rows.count, args.x_rows.width, device, args);
  });
}
template <class T, class C>
void KlKernels<T, C>::backward(const cpu::KlArgs<T, C>& args, Device device) {
  with_simple_layout<T>(args.x_rows.width, [&]<class L>() {
    launch_rows<L>("kl_divergence_backward", kl_backward<L>, args.x_rows.count, args.x_rows.width, device, args);
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
template struct KlKernels<float, float>;
template struct KlKernels<BFloat16, float>;
template struct KlKernels<double, double>;
template struct LossChunkKernels<float, float>;
template struct LossChunkKernels<float, BFloat16>;
template struct LossChunkKernels<double, double>;

}  // namespace weft::cuda
