// Normalisations.
#include "weft/autograd/norm.h"

#include "weft/autograd/record.h"
#include "weft/ops/norm.h"

namespace weft {

Var rms_norm(const Var& x, const Var& weight, double eps) {
  auto [y, inv_rms] = ops::rms_norm(x.value(), weight.value(), eps);
  return record("rms_norm", y, {x, weight},
                [x = Saved(x.value()), w = Saved(weight.value()), inv_rms = Saved(inv_rms)](const Tensor& dy, Wants) {
                  auto [dx, dweight] = ops::rms_norm_backward(dy, x, w, inv_rms);
                  return Grads{dx, dweight};
                });
}

Var layer_norm(const Var& x, const Var& weight, const Var& bias, double eps) {
  auto [y, mean, inv_std] = ops::layer_norm(x.value(), weight.value(), bias.value(), eps);
  return record("layer_norm", y, {x, weight, bias},
                [x = Saved(x.value()), w = Saved(weight.value()), mean = Saved(mean), inv_std = Saved(inv_std)](
                    const Tensor& dy, Wants) {
                  auto [dx, dweight, dbias] = ops::layer_norm_backward(dy, x, w, mean, inv_std);
                  return Grads{dx, dweight, dbias};
                });
}

// The gradients of both terms are that of the sum: of the norm, and where the sum was read itself, of that.
std::array<Var, 2> add_rms_norm(const Var& x, const Var& added, const Var& weight, double eps) {
  auto [sum, norm] = ops::add_rms_norm(x.value(), added.value(), weight.value(), eps);
  return record(
      "add_rms_norm", std::array{sum, norm.y}, {x, added, weight},
      [sum = Saved(sum), w = Saved(weight.value()), inv_rms = Saved(norm.inv_rms)](std::span<const Tensor> dys, Wants) {
        if (!dys[1].defined()) return Grads{dys[0], dys[0], Tensor()};
        auto [dx, dweight] = ops::rms_norm_backward(dys[1], sum, w, inv_rms, dys[0]);
        return Grads{dx, dx, dweight};
      });
}

std::array<Var, 2> add_layer_norm(const Var& x, const Var& added, const Var& weight, const Var& bias, double eps) {
  auto [sum, norm] = ops::add_layer_norm(x.value(), added.value(), weight.value(), bias.value(), eps);
  return record("add_layer_norm", std::array{sum, norm.y}, {x, added, weight, bias},
                [sum = Saved(sum), w = Saved(weight.value()), mean = Saved(norm.mean), inv_std = Saved(norm.inv_std)](
                    std::span<const Tensor> dys, Wants) {
                  if (!dys[1].defined()) return Grads{dys[0], dys[0], Tensor(), Tensor()};
                  auto [dx, dweight, dbias] = ops::layer_norm_backward(dys[1], sum, w, mean, inv_std, dys[0]);
                  return Grads{dx, dx, dweight, dbias};
                });
}

Var softmax(const Var& x, int64_t dim) {
  Tensor y = ops::softmax(x.value(), dim);
  return record("softmax", y, {x},
                [y = Saved(y), dim](const Tensor& dy, Wants) { return Grads{ops::softmax_backward(dy, y, dim)}; });
}

Var log_softmax(const Var& x, int64_t dim) {
  Tensor y = ops::log_softmax(x.value(), dim);
  return record("log_softmax", y, {x},
                [y = Saved(y), dim](const Tensor& dy, Wants) { return Grads{ops::log_softmax_backward(dy, y, dim)}; });
}

Var logsumexp(const Var& x, int64_t dim) {
  Tensor l = ops::logsumexp(x.value(), dim);
  return record("logsumexp", l, {x}, [x = Saved(x.value()), l = Saved(l), dim](const Tensor& dl, Wants) {
    return Grads{ops::logsumexp_backward(dl, x, l, dim)};
  });
}

}  // namespace weft
