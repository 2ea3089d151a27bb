// Layers that work on each token alone: linear map, embedding, norms, feed-forward networks.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "weft/autograd/functions.h"
#include "weft/nn/module.h"
#include "weft/nn/tokens.h"

namespace weft {

// Initial values of parameters. Random ones depend only on (rng, element index).
Tensor normal_init(const Shape& shape, Rng rng, double std);
Tensor uniform_init(const Shape& shape, Rng rng, double bound);  // in [-bound, bound)

struct LinearOptions {
  bool has_bias = false;
  double std = 0.02;  // of the initial weight; the bias starts at 0
};

// y = x W^T + bias, x [..., in], weight [out, in].
class Linear final : public Module {
 public:
  Linear(int64_t in, int64_t out, Rng rng, LinearOptions options = {});
  Var operator()(const Var& x) const;
  Param& weight();                 // Error with an adapter, which who multiplies by the matrix itself would leave out
  Var bias_as(DType dtype) const;  // undefined without one
  // From here on y has scale * x down^T up^T more (LoRA, 2106.09685); up starts at 0.
  void add_adapter(int64_t rank, double scale, Rng rng);
  bool has_adapter() const { return adapter_up_ != nullptr; }

 private:
  Param weight_;
  std::unique_ptr<Param> bias_, adapter_down_, adapter_up_;  // [rank, in], [out, rank]
  double adapter_scale_ = 0;
};

// Low-rank adapters of the linear layers whose path matches (weft/core/pattern.h): "layers.*.mixer.q". The first that matches is taken.
struct AdapterOptions {
  std::string match = "*";
  int64_t rank = 8;
  double alpha = 16;  // scale: alpha / rank
};
// Error if one of them matches no linear layer.
void add_adapters(Module& module, const std::vector<AdapterOptions>& adapters, Rng rng);

// Rows of a table [count, dim].
class Embedding final : public Module {
 public:
  Embedding(int64_t count, int64_t dim, Rng rng, double std = 0.02);
  Var operator()(const Tensor& ids) const;
  Param& weight() { return weight_; }

 private:
  Param weight_;
};

// Numbers and texts of a config's `custom` message, for the maker of a part of one's own.
using CustomNumbers = std::map<std::string, double>;
using CustomTexts = std::map<std::string, std::string>;

// A norm of one's own, over the last dimension: x [..., dim] -> the same.
struct NormArgs {
  int64_t dim = 0;
  double eps = 1e-6;
  CustomNumbers numbers = {};
  CustomTexts texts = {};
};
class OwnNorm : public Module {
 public:
  virtual Var forward(const Var& x) const = 0;
};
using NormMaker = std::function<std::unique_ptr<OwnNorm>(const NormArgs&, Rng)>;

enum class NormKind { rms, layer };
struct NormOptions {
  NormKind kind = NormKind::rms;
  double eps = 1e-6;
  bool has_bias = true;  // layer norm only
};

// RMSNorm (1910.07467) or LayerNorm over the last dimension, with a gain of ones; or one's own.
class Norm final : public Module {
 public:
  Norm(int64_t dim, const NormOptions& options, const NormMaker& own = {}, Rng rng = Rng(0));
  Var operator()(const Var& x) const;
  // {x + y, the norm of that}: the same numbers as the sum and then its norm, with less traffic unless the norm is one's own.
  std::array<Var, 2> of_sum(const Var& x, const Var& y) const;

 private:
  NormOptions options_;
  std::unique_ptr<Param> weight_, bias_;
  std::unique_ptr<OwnNorm> own_;
};

// What the maker of a feed-forward network of one's own is given.
struct FfnArgs {
  int64_t dim = 0, layers = 1;
  double std = 0.02, out_std = 0.02;  // of initial weights; out_std of what writes to the residual stream
  CustomNumbers numbers = {};
  CustomTexts texts = {};
};
class Ffn;
using FfnMaker = std::function<std::unique_ptr<Ffn>(const FfnArgs&, Rng)>;

enum class FfnKind { swiglu, gelu, umoe };
struct FfnOptions {
  FfnKind kind = FfnKind::swiglu;
  int64_t dim = 0;
  int64_t hidden = 0;  // 0: 4 dim for gelu, 8/3 dim rounded up to a multiple of 64 for swiglu
  bool has_bias = false;
  double std = 0.02, out_std = 0.02;
  // umoe: experts (0: as many as the block's mixer has), how many a token uses, layers of the model; dense: every expert on every token
  int64_t experts = 0, active = 0, layers = 1;
  bool is_dense = false;
};
int64_t ffn_hidden(const FfnOptions& options);

// Per token: down(silu(gate x) * up x), or down(gelu(up x)) with the tanh form of GELU. The third kind (umoe, 2505.07260) uses the experts of
// the block's umoe mixer, two maps with silu between them; it has a router and a shared expert of its own.
class Ffn : public Module {
 public:
  virtual Var forward(const Var& x_BTD, Tokens& tokens) = 0;
};
std::unique_ptr<Ffn> make_ffn(const FfnOptions& options, Rng rng);

}  // namespace weft
