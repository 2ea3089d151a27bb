#include "weft/ops/optim.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/cpu/optim.h"
#include "ops/cuda/optim.h"
#include "ops/optim_f64.h"
#include "src/core/cuda_build.h"
#include "src/core/dry_allocator.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/matmul.h"
#include "weft/ops/reduce.h"

namespace weft::ops {

namespace {

bool fits(const Tensor& param, const Tensor& other) {
  return param.defined() && other.defined() && param.shape() == other.shape() && param.device() == other.device() &&
         param.is_contiguous() && other.is_contiguous();
}

void check_state(const Tensor& param, const Tensor& other, std::string_view op, std::string_view name) {
  WEFT_CHECK(fits(param, other) && (param.dtype() == kF32 || param.dtype() == kF64) && other.dtype() == param.dtype(),
             str(op, ": param is ", param, ", ", name, " is ", other),
             str("use row-major tensors of one shape and device; param is f32, ", name, " is f32 (or both are f64)"));
}

void check_working(const OptimTensors& t, std::string_view op) {
  if (!t.working.defined()) return;
  WEFT_CHECK(fits(t.param, t.working) && t.param.dtype() == kF32 && t.working.dtype() == kBF16,
             str(op, ": param is ", t.param, ", working is ", t.working),
             "use row-major tensors of one shape and device; param is f32, working is bf16");
}

void check_one_kind(const OptimTensors& t, const OptimTensors& first, std::string_view op) {
  WEFT_CHECK(t.param.device() == first.param.device() && t.param.dtype() == first.param.dtype(),
             str(op, ": params are ", first.param, " and ", t.param),
             "update the parameters of each device and dtype in a call of their own");
}

bool are_f64(std::span<OptimTensors> group) { return group[0].param.dtype() == kF64; }

void check_rates(double lr, double weight_decay, double grad_scale, std::string_view op) {
  const bool are_finite = std::isfinite(lr) && std::isfinite(weight_decay) && std::isfinite(grad_scale);
  WEFT_CHECK(are_finite && lr >= 0 && weight_decay >= 0,
             str(op, ": lr is ", lr, ", weight_decay ", weight_decay, ", grad_scale ", grad_scale),
             "use finite numbers, and rates that are not negative");
}

// What an op with one moment reads and writes.
void check_group(std::span<OptimTensors> group, std::string_view op, bool has_moment) {
  for (const OptimTensors& t : group) {
    check_state(t.param, t.grad, op, "grad");
    if (has_moment) check_state(t.param, t.moment1, op, "moment1");
    check_working(t, op);
    check_one_kind(t, group[0], op);
  }
}

}  // namespace

void adamw_(std::span<OptimTensors> group, const AdamWStep& o) {
  check_group(group, "adamw_", true);
  for (const OptimTensors& t : group) check_state(t.param, t.moment2, "adamw_", "moment2");
  check_rates(o.lr, o.weight_decay, o.grad_scale, "adamw_");
  WEFT_CHECK(o.beta1 >= 0 && o.beta1 < 1 && o.beta2 >= 0 && o.beta2 < 1 && o.eps > 0 && o.step >= 1,
             str("adamw_: beta1 is ", o.beta1, ", beta2 ", o.beta2, ", eps ", o.eps, ", step ", o.step),
             "use betas in [0, 1), a positive eps and a step of at least 1");
  if (group.empty()) return;
  if (are_f64(group)) return adamw_f64(group, o);
  auto steps = static_cast<double>(o.step);
  cpu::AdamWFactors factors{.beta1 = static_cast<float>(o.beta1),
                            .rest1 = static_cast<float>(1 - o.beta1),
                            .beta2 = static_cast<float>(o.beta2),
                            .rest2 = static_cast<float>(1 - o.beta2),
                            .grad_scale = static_cast<float>(o.grad_scale),
                            .keep = static_cast<float>(1 - o.lr * o.weight_decay),
                            .step_size = static_cast<float>(o.lr / (1 - std::pow(o.beta1, steps))),
                            .root_scale = static_cast<float>(1 / std::sqrt(1 - std::pow(o.beta2, steps))),
                            .eps = static_cast<float>(o.eps)};
  if constexpr (kCuda) {
    if (group[0].param.is_cuda()) return cuda::adamw(group, factors);
  }
  for (OptimTensors& t : group) cpu::adamw(t.param, t.grad, t.moment1, t.moment2, t.working, factors);
}

// X / |X| of each matrix, without a wait for a device.
static Tensor unit_matrix(const Tensor& x) {
  auto factor = [](const Tensor& matrix) { return 1 / (std::sqrt(sum_of_squares(matrix)) + 1e-7); };
  if (x.is_cuda()) return div(x, add_scalar(sqrt(sum(sum(mul(x, x), -1, true), -2, true)), 1e-7));
  if (x.num_dims() == 2) return scale(x, factor(x));
  Tensor units = clone(x);
  for (int64_t i = 0; i < x.size(0); ++i) {
    Tensor matrix = units.select(0, i);
    scale_(matrix, factor(matrix));
  }
  return units;
}

// X <- a X + (b A + c A A) X with A = X X^T, from X = matrix / |matrix|. The coefficients (Jordan's Muon) push singular values
// to about 0.7 .. 1.2 in five steps. A tall matrix uses A = X^T X on the other side: the same numbers, the smaller product.
Tensor newton_schulz(const Tensor& matrix, int num_iterations) {
  constexpr double a = 3.4445, b = -4.7750, c = 2.0315;
  const bool is_matrix = matrix.defined() && (matrix.num_dims() == 2 || matrix.num_dims() == 3);
  WEFT_CHECK(is_matrix && (matrix.dtype() == kF32 || matrix.dtype() == kF64), str("newton_schulz: matrix is ", matrix),
             "use a [rows, columns] matrix of dtype f32 or f64, or a batch of them");
  WEFT_CHECK(num_iterations >= 0, str("newton_schulz: ", num_iterations, " iterations"), "use 0 or more; 5 is usual");
  bool is_tall = matrix.size(-2) > matrix.size(-1);
  Tensor x = unit_matrix(matrix);
  for (int i = 0; i < num_iterations; ++i) {
    Tensor gram = matmul(x, x, {.transpose_a = is_tall, .transpose_b = !is_tall});
    Tensor factor = matmul(gram, gram);
    scale_(factor, c);
    add_(factor, gram, b);
    Tensor next = is_tall ? matmul(x, factor) : matmul(factor, x);
    add_(next, x, a);
    x = std::move(next);
  }
  return x;
}

double newton_schulz_flops(int64_t rows, int64_t columns, int num_iterations) {
  const auto shorter = static_cast<double>(std::min(rows, columns)),
             longer = static_cast<double>(std::max(rows, columns));
  return num_iterations * (4 * shorter * shorter * longer + 2 * shorter * shorter * shorter);
}

// As in Jordan's Muon: momentum is a running mean of gradients, the update is scaled by sqrt(max(1, rows / columns)).
struct MuonFactors {
  explicit MuonFactors(const MuonStep& o)
      : beta(static_cast<float>(o.momentum)),
        grad_scale(static_cast<float>(o.grad_scale)),
        keep(static_cast<float>(1 - o.lr * o.weight_decay)) {}
  float beta, grad_scale, keep;
};

static float muon_step_size(const Tensor& param, double lr) {
  const double ratio = static_cast<double>(param.size(0)) / static_cast<double>(param.size(1));
  return static_cast<float>(lr * std::sqrt(std::max(1.0, ratio)));
}

// `same`: of one shape. Their updates are one batch of matrices.
static void muon_on_gpu(std::span<OptimTensors> same, const MuonStep& o) {
  if constexpr (kCuda) {
    const Tensor& first = same[0].param;
    if (first.num_elements() == 0) return;
    const MuonFactors factors(o);
    Tensor updates =
        Tensor::empty({static_cast<int64_t>(same.size()), first.size(0), first.size(1)}, kF32, first.device());
    cuda::muon_momentum(same, updates, factors.beta, factors.grad_scale, o.is_nesterov);
    cuda::muon_apply(same, newton_schulz(updates, o.num_iterations), factors.keep, muon_step_size(first, o.lr));
  }
}

static void muon_of_one(OptimTensors& t, const MuonStep& o) {
  const MuonFactors factors(o);
  Tensor update = Tensor::empty(t.param.shape(), kF32, Device::cpu());
  cpu::muon_momentum(t.moment1, t.grad, update, factors.beta, factors.grad_scale, o.is_nesterov);
  cpu::muon_apply(t.param, newton_schulz(update, o.num_iterations), t.working, factors.keep,
                  muon_step_size(t.param, o.lr));
}

namespace {

// What this thread calls runs on this thread alone.
class OneThread {
 public:
  OneThread() {
    if (outer_ > 1) set_num_threads(1);
  }
  ~OneThread() {
    if (outer_ > 1) set_num_threads(outer_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int outer_ = num_threads();
};

// A product of 128x128 does not fill the cores: a matrix whose products are at most this many multiplications is updated by one thread.
constexpr int64_t kSmallProduct = 1 << 23;
// Several threads for less than this, of all small matrices together, cost more than they save.
constexpr int64_t kSerialProducts = 1 << 17;

}  // namespace

// What an update holds beside the parameter at its peak: the momentum's update, and of newton_schulz() X, X X^T, the factor and the next X.
static std::vector<Tensor> muon_temporaries(const Tensor& param) {
  const int64_t shorter = std::min(param.size(0), param.size(1));
  std::vector<Tensor> held;
  for (int i = 0; i < 3; ++i) held.push_back(Tensor::empty(param.shape(), kF32, Device::cpu()));
  for (int i = 0; i < 2; ++i) held.push_back(Tensor::empty({shorter, shorter}, kF32, Device::cpu()));
  return held;
}

// A dry run counts what threads hold at once: the largest matrix is updated beside the temporaries of the next ones, among them the
// scratch of a product.
static void muon_in_dry_run(std::vector<OptimTensors*> small, size_t at_once, const MuonStep& o) {
  auto size = [](const OptimTensors* t) { return t->param.num_elements(); };
  auto held_bytes = [] { return allocator(Device::cpu()).stats().current_bytes; };
  std::sort(small.begin(), small.end(), [&](auto* a, auto* b) { return size(a) > size(b); });
  std::vector<std::vector<Tensor>> others;
  for (size_t i = 1; i < std::min(at_once, small.size()); ++i) {
    const int64_t peak = dry_peak_bytes([&] {
      const OneThread one;
      muon_of_one(*small[i], o);
    });
    const int64_t before = held_bytes();
    others.push_back(muon_temporaries(small[i]->param));
    if (const int64_t scratch = peak - (held_bytes() - before); scratch > 0)
      others.back().push_back(Tensor::empty({scratch}, kU8, Device::cpu()));
  }
  for (OptimTensors* t : small) {
    const OneThread one;
    muon_of_one(*t, o);
    others.clear();
  }
}

// Which other matrices are updated beside one depends on how many ranks share them. So a small matrix takes one thread even alone, and
// none is part of a batch, whose products have other kernels: its bits are the same in any company.
static void muon_on_cpu(std::span<OptimTensors> group, const MuonStep& o) {
  std::vector<OptimTensors*> small;
  int64_t products = 0;
  for (OptimTensors& t : group) {
    if (t.param.num_elements() == 0) continue;
    const int64_t product = t.param.num_elements() * std::min(t.param.size(0), t.param.size(1));
    if (product <= kSmallProduct) small.push_back(&t), products += product;
    else muon_of_one(t, o);
  }
  const bool is_parallel = products >= kSerialProducts;
  if (is_dry_run()) return muon_in_dry_run(std::move(small), is_parallel ? static_cast<size_t>(num_threads()) : 1, o);
  auto update = [&](int64_t i) {
    const OneThread one;
    muon_of_one(*small[static_cast<size_t>(i)], o);
  };
  const auto count = static_cast<int64_t>(small.size());
  if (is_parallel) return parallel_items(count, update);
  for (int64_t i = 0; i < count; ++i) update(i);
}

void muon_(std::span<OptimTensors> group, const MuonStep& o) {
  for (const OptimTensors& t : group) {
    WEFT_CHECK(t.param.defined() && t.param.num_dims() == 2, str("muon_: param is ", t.param),
               "use Muon for matrices only; give the others to adamw_");
    check_state(t.param, t.grad, "muon_", "grad");
    check_state(t.param, t.moment1, "muon_", "momentum");
    check_working(t, "muon_");
    check_one_kind(t, group[0], "muon_");
  }
  check_rates(o.lr, o.weight_decay, o.grad_scale, "muon_");
  WEFT_CHECK(o.momentum >= 0 && o.momentum < 1, str("muon_: momentum is ", o.momentum), "use a momentum in [0, 1)");
  if (group.empty()) return;
  if (are_f64(group)) return muon_f64(group, o);
  if (!group[0].param.is_cuda()) return muon_on_cpu(group, o);

  constexpr int64_t kMostBytes = int64_t{256} << 20;  // of a batch's updates
  std::vector<std::vector<OptimTensors>> batches;     // of one shape each
  for (const OptimTensors& t : group) {
    auto fits = [&](const std::vector<OptimTensors>& batch) {
      const int64_t bytes = t.param.num_elements() * 4 * (static_cast<int64_t>(batch.size()) + 1);
      return batch[0].param.shape() == t.param.shape() && bytes <= kMostBytes;
    };
    auto batch = std::find_if(batches.begin(), batches.end(), fits);
    if (batch == batches.end()) batches.push_back({t});
    else batch->push_back(t);
  }
  for (std::vector<OptimTensors>& batch : batches) muon_on_gpu(batch, o);
}

void schedule_free_adamw_(std::span<OptimTensors> group, const ScheduleFreeStep& o) {
  constexpr std::string_view kOp = "schedule_free_adamw_";
  check_group(group, kOp, true);
  for (const OptimTensors& t : group) check_state(t.param, t.moment2, kOp, "moment2");
  check_rates(o.lr, o.weight_decay, o.grad_scale, kOp);
  WEFT_CHECK(o.beta1 > 0 && o.beta1 < 1 && o.beta2 >= 0 && o.beta2 < 1 && o.eps > 0 && o.average >= 0 && o.average <= 1,
             str(kOp, ": beta1 is ", o.beta1, ", beta2 ", o.beta2, ", eps ", o.eps, ", average ", o.average),
             "use beta1 in (0, 1), beta2 in [0, 1), a positive eps and an average in [0, 1]");
  if (group.empty()) return;
  if (are_f64(group)) return schedule_free_f64(group, o);
  cpu::ScheduleFreeFactors factors{.beta2 = static_cast<float>(o.beta2),
                                   .rest2 = static_cast<float>(1 - o.beta2),
                                   .grad_scale = static_cast<float>(o.grad_scale),
                                   .eps = static_cast<float>(o.eps),
                                   .decay = static_cast<float>(o.weight_decay),
                                   .lr = static_cast<float>(o.lr),
                                   .average = static_cast<float>(o.average),
                                   .y_step = static_cast<float>(o.lr * (1 - o.beta1 * (1 - o.average)))};
  if constexpr (kCuda) {
    if (group[0].param.is_cuda()) return cuda::schedule_free(group, factors);
  }
  for (OptimTensors& t : group) cpu::schedule_free(t.param, t.grad, t.moment1, t.moment2, t.working, factors);
}

Tensor schedule_free_average(const Tensor& y, const Tensor& z, double beta1) {
  WEFT_CHECK(beta1 > 0 && beta1 < 1, str("schedule_free_average: beta1 is ", beta1), "use a beta1 in (0, 1)");
  Tensor x = scale(y, 1 / beta1);
  add_(x, z, 1 - 1 / beta1);
  return x;
}

void lion_(std::span<OptimTensors> group, const LionStep& o) {
  check_group(group, "lion_", true);
  check_rates(o.lr, o.weight_decay, o.grad_scale, "lion_");
  WEFT_CHECK(o.beta1 >= 0 && o.beta1 < 1 && o.beta2 >= 0 && o.beta2 < 1,
             str("lion_: beta1 is ", o.beta1, ", beta2 ", o.beta2), "use betas in [0, 1)");
  if (group.empty()) return;
  if (are_f64(group)) return lion_f64(group, o);
  cpu::LionFactors factors{.beta1 = static_cast<float>(o.beta1),
                           .rest1 = static_cast<float>(1 - o.beta1),
                           .beta2 = static_cast<float>(o.beta2),
                           .rest2 = static_cast<float>(1 - o.beta2),
                           .grad_scale = static_cast<float>(o.grad_scale),
                           .keep = static_cast<float>(1 - o.lr * o.weight_decay),
                           .lr = static_cast<float>(o.lr)};
  if constexpr (kCuda) {
    if (group[0].param.is_cuda()) return cuda::lion(group, factors);
  }
  for (OptimTensors& t : group) cpu::lion(t.param, t.grad, t.moment1, t.working, factors);
}

void sgd_(std::span<OptimTensors> group, const SgdStep& o) {
  check_group(group, "sgd_", o.momentum > 0);
  check_rates(o.lr, o.weight_decay, o.grad_scale, "sgd_");
  WEFT_CHECK(o.momentum >= 0 && o.momentum < 1, str("sgd_: momentum is ", o.momentum), "use a momentum in [0, 1)");
  WEFT_CHECK(o.momentum > 0 || !o.is_nesterov, "sgd_: nesterov without momentum",
             "set a momentum, or leave nesterov out");
  if (group.empty()) return;
  if (are_f64(group)) return sgd_f64(group, o);
  cpu::SgdFactors factors{.momentum = static_cast<float>(o.momentum),
                          .grad_scale = static_cast<float>(o.grad_scale),
                          .decay = static_cast<float>(o.weight_decay),
                          .lr = static_cast<float>(o.lr),
                          .is_nesterov = o.is_nesterov};
  if constexpr (kCuda) {
    if (group[0].param.is_cuda()) return cuda::sgd(group, factors);
  }
  for (OptimTensors& t : group) cpu::sgd(t.param, t.grad, t.moment1, t.working, factors);
}

}  // namespace weft::ops
