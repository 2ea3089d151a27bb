// Softmax, log_softmax and logsumexp over the middle dimension of x [outer, n, inner], forward and backward, as softmax.cu says. A
// thread has a column: neighbours read neighbours. The sum is rescaled when the maximum rises, so x is read twice.
#include <limits>

#include "ops/cuda/kernel.cuh"
#include "ops/cuda/softmax.h"
#include "ops/math/scalar.h"

namespace weft::cuda {

namespace {

using cpu::SoftmaxStep;

template <class T, class C>
class Column {
 public:
  using Args = cpu::SoftmaxColumns<T, C>;
  __device__ __forceinline__ Column(const Args& args, int64_t index)
      : args_(args), index_(index), first_(index / args.inner * args.n * args.inner + index % args.inner) {}

  __device__ void forward(SoftmaxStep step) const {
    constexpr C infinity = std::numeric_limits<C>::infinity();
    C top = -infinity, sum = 0, not_finite = 0;
    for (int64_t i = 0; i < args_.n; ++i) {
      const C x = read(args_.x, i);
      if (x > top && x < infinity) {
        sum = sum * math::exp(top - x) + 1;
        top = x;
      } else if (!(x < infinity)) {
        not_finite += x;
      } else if (x != -infinity) {
        sum += math::exp(x - top);
      }
    }
    sum += not_finite;
    if (top == -infinity) top = 0;
    const C log_sum = static_cast<C>(math::log(static_cast<double>(sum)));
    if (step == SoftmaxStep::logsumexp) {
      args_.l_out[index_] = top + log_sum;
      return;
    }
    const C share = sum == 0 ? C(0) : C(1) / sum, shift = sum == 0 ? C(0) : log_sum;
    for (int64_t i = 0; i < args_.n; ++i) {
      const C x = read(args_.x, i) - top;
      write(i, step == SoftmaxStep::log_softmax ? x - shift : math::exp(x) * share);
    }
  }

  __device__ void backward(SoftmaxStep step) const {
    const bool is_log = step == SoftmaxStep::log_softmax_backward;
    C sum = 0;
    for (int64_t i = 0; i < args_.n; ++i) sum += is_log ? read(args_.dy, i) : read(args_.dy, i) * read(args_.x, i);
    for (int64_t i = 0; i < args_.n; ++i) {
      const C y = read(args_.x, i), dy = read(args_.dy, i);
      write(i, is_log ? dy - math::exp(y) * sum : y * (dy - sum));
    }
  }

  __device__ void logsumexp_backward() const {
    const bool is_empty = args_.l[index_] == -std::numeric_limits<C>::infinity();  // exp(-inf - -inf) would be NaN
    const C l = is_empty ? C(0) : args_.l[index_], dl = is_empty ? C(0) : args_.dl[index_];
    for (int64_t i = 0; i < args_.n; ++i) write(i, dl * math::exp(read(args_.x, i) - l));
  }

 private:
  __device__ __forceinline__ C read(const T* from, int64_t i) const {
    return to_compute(from[first_ + i * args_.inner]);
  }
  __device__ __forceinline__ void write(int64_t i, C y) const {
    args_.y[first_ + i * args_.inner] = from_compute<T>(y);
  }

  const Args& args_;
  int64_t index_, first_;
};

template <class T, class C>
__global__ void softmax_columns(SoftmaxStep step, cpu::SoftmaxColumns<T, C> args) {
  for (int64_t i = thread_index(); i < args.outer * args.inner; i += thread_count()) {
    const Column<T, C> column(args, i);
    if (step == SoftmaxStep::logsumexp_backward) column.logsumexp_backward();
    else if (step == SoftmaxStep::softmax_backward || step == SoftmaxStep::log_softmax_backward) column.backward(step);
    else column.forward(step);
  }
}

}  // namespace

template <class T, class C>
void SoftmaxColumnKernels<T, C>::run(SoftmaxStep step, const cpu::SoftmaxColumns<T, C>& args, Device device) {
  launch("softmax over columns", softmax_columns<T, C>, grid_of(args.outer * args.inner), kThreads, 0,
         stream(device.index), step, args);
}

template struct SoftmaxColumnKernels<float, float>;
template struct SoftmaxColumnKernels<BFloat16, float>;
template struct SoftmaxColumnKernels<double, double>;

}  // namespace weft::cuda
