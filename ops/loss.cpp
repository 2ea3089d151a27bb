// Cross-entropy of materialised logits, and in chunks of tokens through the output weight; KL divergence.
#include "weft/ops/loss.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/loss.h"
#include "ops/cuda/loss.h"
#include "ops/norm_input.h"
#include "src/core/cuda_build.h"
#include "weft/ops/matmul.h"
#include "weft/ops/reduce.h"
#include "weft/ops/select.h"

namespace weft::ops {

namespace {

using cpu::Isa;

// Targets [N] row-major on the device of x. Ids in the CPU's memory are checked to be below V; to look at others, the CPU would
// have to wait for the device.
Tensor checked_targets(const Tensor& targets, const Tensor& x, int64_t V, std::string_view op) {
  const int64_t N = x.size(0);
  WEFT_CHECK(targets.defined() && targets.dtype() == kI32 && targets.shape() == Shape{N} &&
                 (!targets.is_cuda() || targets.device() == x.device()),
             str(op, ": targets are ", targets, " for ", N, " tokens on ", x.device()),
             str("pass targets as [", N, "] i32, on the CPU or the device of the tokens"));
  Tensor t = contiguous(targets);
  if (t.is_cuda()) return t;
  const int32_t* ids = t.data<int32_t>();
  for (int64_t n = 0; n < N; ++n)
    WEFT_CHECK(ids[n] < V, str(op, ": the target of token ", n, " is ", ids[n], ", the vocabulary has ", V, " entries"),
               "use ids below the vocabulary size, or a negative id for a token without target");
  if (!x.is_cuda()) return t;
  Tensor on_device = Tensor::empty({N}, kI32, x.device());
  copy_(on_device, t);
  return on_device;
}

void check_logits(const Tensor& logits, std::string_view op) {
  check_floating_rows(logits, "logits", op);
  WEFT_CHECK(logits.num_dims() == 2, str(op, ": logits are ", logits),
             "pass logits [N, V]; reshape the tokens into one dimension");
}

// Tokens at a time. The logits of a chunk should be few, and the tokens many where V is large: each chunk reads the weight and
// adds to its gradient, both V x D. A GPU needs more tokens to multiply for as long as that takes it.
int64_t chunk_of(int64_t asked, int64_t N, int64_t V, Device device) {
  const int64_t bytes = device.is_cuda() ? 512 << 20 : 8 << 20, fewest = device.is_cuda() ? 1024 : 256,
                multiple = device.is_cuda() ? 128 : 16;
  int64_t chunk = asked ? asked : std::max(bytes / (4 * std::max<int64_t>(V, 1)) / multiple * multiple, fewest);
  return std::max<int64_t>(std::min(chunk, N), 1);
}

void check_linear(const Tensor& x, const Tensor& weight, const LinearCrossEntropyOptions& o) {
  check_floating_rows(x, "x", "linear_cross_entropy");
  WEFT_CHECK(weight.defined() && weight.dtype() == x.dtype() && weight.device() == x.device() && x.num_dims() == 2 &&
                 weight.num_dims() == 2 && x.size(1) == weight.size(1),
             str("linear_cross_entropy: x is ", x, ", weight is ", weight),
             "pass x [N, D] and weight [V, D] of one dtype");
  WEFT_CHECK(std::isfinite(o.factor), str("linear_cross_entropy: factor is ", o.factor),
             "factor must be finite; where no token has a target it is 0");
  WEFT_CHECK(o.softcap >= 0, str("linear_cross_entropy: softcap is ", o.softcap),
             "softcap must be positive, or 0 for none");
  WEFT_CHECK(o.chunk >= 0, str("linear_cross_entropy: chunk is ", o.chunk),
             "chunk must be positive, or 0 to choose it");
}

// Label smoothing and class weights as kernels take them.
template <class C>
class Softening {
 public:
  Softening(const CrossEntropyTargets& o, const Tensor& logits, std::string_view op) : o_(o) {
    WEFT_CHECK(o.label_smoothing >= 0 && o.label_smoothing <= 1, str(op, ": label_smoothing is ", o.label_smoothing),
               "use a share from 0 to 1");
    if (!o.class_weights.defined()) return;
    const Tensor& w = o.class_weights;
    WEFT_CHECK(
        w.shape() == Shape{logits.size(1)} && w.dtype() == statistics_dtype(logits) && w.device() == logits.device(),
        str(op, ": class_weights are ", w, ", logits are ", logits),
        str("pass class_weights as [", logits.size(1), "] ", statistics_dtype(logits), " on ", logits.device()));
    weights_ = contiguous(w);
    total_ = sum_all(weights_);
  }
  template <class T>
  void set(cpu::CrossEntropyArgs<T, C>& args) const {
    args.smoothing = static_cast<C>(o_.label_smoothing);
    if (!weights_.defined()) return;
    args.weights = weights_.data<C>();
    args.total_weight = total_.data<C>();
  }

 private:
  const CrossEntropyTargets& o_;
  Tensor weights_, total_;
};

// One call of linear_cross_entropy: what its chunks share. C is the type of the logits, G of their gradient (that of
// x).
template <class C, class G>
class ChunkedLoss {
 public:
  ChunkedLoss(const Tensor& x, const Tensor& weight, const Tensor& targets, const LinearCrossEntropyOptions& o)
      : x_(x),
        weight_(weight),
        targets_(targets),
        o_(o),
        chunk_(chunk_of(o.chunk, x.size(0), weight.size(0), x.device())) {
    const int64_t N = x.size(0), V = weight.size(0);
    const Device device = x.device();
    result_.losses = Tensor::empty({N}, dtype_of<C>(), device);
    if (o.wants_dx) result_.dx = Tensor::empty(x.shape(), x.dtype(), device);
    if (o.wants_dweight) result_.dweight = Tensor::empty(weight.shape(), dtype_of<C>(), device);
    logits_ = Tensor::empty({chunk_, V}, dtype_of<C>(), device);
    if (wants_gradient()) dlogits_ = std::is_same_v<C, G> ? logits_ : Tensor::empty({chunk_, V}, dtype_of<G>(), device);
  }

  LinearCrossEntropy run() {
    const int64_t N = x_.size(0);
    for (int64_t begin = 0; begin < N; begin += chunk_) add_chunk(begin, std::min(N, begin + chunk_));
    if (o_.wants_dweight && !has_dweight_) fill_(result_.dweight, 0);
    result_.loss = total_loss();
    return result_;
  }

 private:
  bool wants_gradient() const { return o_.wants_dx || o_.wants_dweight; }

  Tensor total_loss() {
    const int64_t N = x_.size(0);
    const C* losses = result_.losses.template data<C>();
    if constexpr (kCuda) {
      if (x_.is_cuda()) {
        Tensor loss = Tensor::empty({}, dtype_of<C>(), x_.device());
        cuda::LossChunkKernels<C, G>::total(losses, N, o_.factor, loss.mutable_data<C>(), x_.device());
        return loss;
      }
    }
    double sum = 0;
    for (int64_t n = 0; n < N; ++n) sum += losses[n];
    return Tensor::full({}, o_.factor * sum, dtype_of<C>(), x_.device());
  }

  void run_kernel(const cpu::LossChunkArgs<C, G>& args, int64_t rows) {
    if constexpr (kCuda) {
      if (x_.is_cuda()) return cuda::LossChunkKernels<C, G>::run(args, rows, x_.device());
    }
    for_rows({.count = rows, .width = args.vocabulary},
             [&]<Isa I>(int64_t first, int64_t last) { cpu::LossChunkKernels<I, C, G>::run(args, first, last); });
  }

  void add_chunk(int64_t begin, int64_t end) {
    const int32_t* targets = targets_.data<int32_t>() + begin;
    C* losses = result_.losses.template mutable_data<C>() + begin;
    Tensor dx = o_.wants_dx ? result_.dx.slice(0, begin, end) : Tensor();
    if (!x_.is_cuda() && std::all_of(targets, targets + (end - begin), [](int32_t id) { return id < 0; })) {
      std::fill(losses, losses + (end - begin), C(0));
      if (dx.defined()) fill_(dx, 0);
      return;
    }
    Tensor x = x_.slice(0, begin, end), logits = logits_.slice(0, 0, end - begin);
    matmul_into(logits, x, weight_, {.transpose_b = true}, 0);
    Tensor dlogits = wants_gradient() ? dlogits_.slice(0, 0, end - begin) : Tensor();
    cpu::LossChunkArgs<C, G> args{.vocabulary = weight_.size(0),
                                  .logits = logits.mutable_data<C>(),
                                  .targets = targets,
                                  .losses = losses,
                                  .dlogits = dlogits.defined() ? dlogits.mutable_data<G>() : nullptr,
                                  .factor = static_cast<C>(o_.factor),
                                  .softcap = static_cast<C>(o_.softcap)};
    run_kernel(args, end - begin);
    if (dx.defined()) {
      if constexpr (std::is_same_v<C, G>) matmul_into(dx, dlogits, weight_, {}, 0);
      else copy_(dx, matmul(dlogits, weight_));
    }
    if (o_.wants_dweight) matmul_into(result_.dweight, dlogits, x, {.transpose_a = true}, has_dweight_ ? 1 : 0);
    has_dweight_ = true;
  }

  const Tensor &x_, &weight_, &targets_;
  const LinearCrossEntropyOptions& o_;
  int64_t chunk_;
  Tensor logits_, dlogits_;
  bool has_dweight_ = false;  // the first chunk writes it, the others add
  LinearCrossEntropy result_;
};

}  // namespace

CrossEntropy cross_entropy(const Tensor& logits_NV, const Tensor& targets_N, const CrossEntropyTargets& options) {
  check_logits(logits_NV, "cross_entropy");
  const int64_t N = logits_NV.size(0);
  Tensor targets = checked_targets(targets_N, logits_NV, logits_NV.size(1), "cross_entropy");
  RowsOf input(logits_NV);
  DType dtype = statistics_dtype(logits_NV);
  const Device device = logits_NV.device();
  CrossEntropy result{Tensor::empty({N}, dtype, device), Tensor::empty({N}, dtype, device)};
  with_floating(logits_NV, "cross_entropy", [&]<class T, class C>() {
    cpu::CrossEntropyArgs<T, C> args{.logits_rows = input.rows,
                                     .logits = input.tensor.data<T>(),
                                     .targets = targets.data<int32_t>(),
                                     .losses = result.losses.mutable_data<C>(),
                                     .lse = result.lse.mutable_data<C>()};
    const Softening<C> softening(options, logits_NV, "cross_entropy");
    softening.set(args);
    if constexpr (kCuda) {
      if (device.is_cuda()) return cuda::CrossEntropyKernels<T, C>::forward(args, device);
    }
    for_rows(input.rows,
             [&]<Isa I>(int64_t begin, int64_t end) { cpu::CrossEntropyKernels<I, T, C>::forward(args, begin, end); });
  });
  return result;
}

Tensor cross_entropy_backward(const Tensor& dlosses_N, const Tensor& logits_NV, const Tensor& targets_N,
                              const Tensor& lse_N, const CrossEntropyTargets& options) {
  check_logits(logits_NV, "cross_entropy_backward");
  Tensor targets = checked_targets(targets_N, logits_NV, logits_NV.size(1), "cross_entropy_backward");
  Tensor dlosses = dlosses_N.defined() ? contiguous(dlosses_N) : dlosses_N;
  check_statistic(dlosses, "dlosses", logits_NV, "cross_entropy_backward");
  check_statistic(lse_N, "lse", logits_NV, "cross_entropy_backward");
  RowsOf input(logits_NV);
  Tensor dlogits = Tensor::empty(logits_NV.shape(), logits_NV.dtype(), logits_NV.device());
  with_floating(logits_NV, "cross_entropy_backward", [&]<class T, class C>() {
    C* lse = const_cast<C*>(lse_N.data<C>());  // the backward only reads it
    cpu::CrossEntropyArgs<T, C> args{.logits_rows = input.rows,
                                     .logits = input.tensor.data<T>(),
                                     .targets = targets.data<int32_t>(),
                                     .lse = lse,
                                     .dlosses = dlosses.data<C>(),
                                     .dlogits = dlogits.mutable_data<T>()};
    const Softening<C> softening(options, logits_NV, "cross_entropy_backward");
    softening.set(args);
    if constexpr (kCuda) {
      if (logits_NV.is_cuda()) return cuda::CrossEntropyKernels<T, C>::backward(args, logits_NV.device());
    }
    for_rows(input.rows,
             [&]<Isa I>(int64_t begin, int64_t end) { cpu::CrossEntropyKernels<I, T, C>::backward(args, begin, end); });
  });
  return dlogits;
}

Tensor target_weights(const Tensor& logits_NV, const Tensor& targets_N, const CrossEntropyTargets& options) {
  check_logits(logits_NV, "target_weights");
  const int64_t N = logits_NV.size(0), V = logits_NV.size(1);
  Tensor targets = checked_targets(targets_N, logits_NV, V, "target_weights");
  Tensor counts = greater_equal(targets, 0);
  if (!options.class_weights.defined() || V == 0) return cast(counts, statistics_dtype(logits_NV));
  Tensor table = contiguous(options.class_weights).reshape({V, 1});
  Tensor own = embedding(table, clamp(targets, 0, static_cast<double>(V - 1))).reshape({N});
  return where(counts, own, 0);
}

Tensor kl_divergence(const Tensor& logits, const Tensor& target) {
  check_floating_rows(logits, "logits", "kl_divergence");
  check_like(target, "the target", logits, "logits", "kl_divergence");
  RowsOf input(logits), wanted(target);
  Tensor losses = Tensor::empty(without_last(logits.shape()), statistics_dtype(logits), logits.device());
  with_floating(logits, "kl_divergence", [&]<class T, class C>() {
    cpu::KlArgs<T, C> args{.x_rows = input.rows,
                           .t_rows = wanted.rows,
                           .x = input.tensor.data<T>(),
                           .t = wanted.tensor.data<T>(),
                           .losses = losses.mutable_data<C>()};
    if constexpr (kCuda) {
      if (logits.is_cuda()) return cuda::KlKernels<T, C>::forward(args, logits.device());
    }
    for_rows(input.rows,
             [&]<Isa I>(int64_t begin, int64_t end) { cpu::KlKernels<I, T, C>::forward(args, begin, end); });
  });
  return losses;
}

KlGrads kl_divergence_backward(const Tensor& dlosses, const Tensor& logits, const Tensor& target, const Tensor& losses,
                               bool wants_dlogits, bool wants_dtarget) {
  check_floating_rows(logits, "logits", "kl_divergence_backward");
  check_like(target, "the target", logits, "logits", "kl_divergence_backward");
  Tensor upstream = dlosses.defined() ? contiguous(dlosses) : dlosses;
  check_statistic(upstream, "dlosses", logits, "kl_divergence_backward");
  check_statistic(losses, "losses", logits, "kl_divergence_backward");
  RowsOf input(logits), wanted(target);
  KlGrads grads;
  if (wants_dlogits) grads.dlogits = Tensor::empty(logits.shape(), logits.dtype(), logits.device());
  if (wants_dtarget) grads.dtarget = Tensor::empty(logits.shape(), logits.dtype(), logits.device());
  with_floating(logits, "kl_divergence_backward", [&]<class T, class C>() {
    cpu::KlArgs<T, C> args{.x_rows = input.rows,
                           .t_rows = wanted.rows,
                           .x = input.tensor.data<T>(),
                           .t = wanted.tensor.data<T>(),
                           .losses = const_cast<C*>(losses.data<C>()),  // the backward only reads them
                           .dlosses = upstream.data<C>(),
                           .dx = wants_dlogits ? grads.dlogits.mutable_data<T>() : nullptr,
                           .dt = wants_dtarget ? grads.dtarget.mutable_data<T>() : nullptr};
    if constexpr (kCuda) {
      if (logits.is_cuda()) return cuda::KlKernels<T, C>::backward(args, logits.device());
    }
    for_rows(input.rows,
             [&]<Isa I>(int64_t begin, int64_t end) { cpu::KlKernels<I, T, C>::backward(args, begin, end); });
  });
  return grads;
}

LinearCrossEntropy linear_cross_entropy(const Tensor& x_ND, const Tensor& weight_VD, const Tensor& targets_N,
                                        const LinearCrossEntropyOptions& options) {
  check_linear(x_ND, weight_VD, options);
  Tensor targets = checked_targets(targets_N, x_ND, weight_VD.size(0), "linear_cross_entropy");
  LinearCrossEntropy result;
  with_floating(x_ND, "linear_cross_entropy",
                [&]<class T, class C>() { result = ChunkedLoss<C, T>(x_ND, weight_VD, targets, options).run(); });
  return result;
}

}  // namespace weft::ops
