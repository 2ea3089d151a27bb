// Optimisers on named tensors, in groups chosen by name pattern and number of dimensions.
//   Optimizer optimizer({{.match = "*.layers.*.weight", .num_dims = 2, .algorithm = MuonOptions{}}, {.algorithm = AdamWOptions{}}},
//                       parameters);
//   optimizer.step(grads, schedule_factor(schedule, step, steps), clip_factor(norm, 1.0));
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "weft/core/tensor.h"

namespace weft {

// Loshchilov & Hutter, 1711.05101: decay is decoupled and multiplied by the rate.
struct AdamWOptions {
  double lr = 3e-4, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
};

// Momentum, orthogonalised by Newton-Schulz steps (K. Jordan, 2024); matrices only.
struct MuonOptions {
  double lr = 0.02, momentum = 0.95, weight_decay = 0;
  bool is_nesterov = true;
  int num_iterations = 5;
};

struct ParamGroup {
  std::string name = {};    // of the group in logs; empty: its number
  std::string match = "*";  // pattern for the whole name: * any text, ? one character
  int num_dims = 0;         // 0: any
  std::variant<AdamWOptions, MuonOptions> algorithm = AdamWOptions{};
};

// f32 master value and, under bf16 compute, the working copy that is rewritten with it.
struct OptimizerParam {
  std::string name;
  Tensor value;
  Tensor working = {};
};

class Optimizer {
 public:
  // Every parameter goes to the first group that matches; one that matches none, or a vector in a Muon group, is an Error.
  Optimizer(std::vector<ParamGroup> groups, std::vector<OptimizerParam> params);

  // One update in place. grads[i] belongs to params()[i], f32; undefined leaves that parameter alone. Rates are lr * lr_factor;
  // gradients are multiplied by grad_factor on the way (clipping).
  void step(std::span<const Tensor> grads, double lr_factor, double grad_factor = 1);

  const std::vector<OptimizerParam>& params() const { return params_; }
  const std::vector<ParamGroup>& groups() const { return groups_; }
  size_t group_of(size_t param) const { return group_of_[param]; }
  double lr(size_t group) const;  // peak rate
  int64_t num_steps() const { return num_steps_; }

  // Moments by name ("<param>.moment1", ...), sharing memory with the optimiser; load_state wants the same names and shapes.
  std::vector<std::pair<std::string, Tensor>> state() const;
  void load_state(std::span<const std::pair<std::string, Tensor>> state, int64_t num_steps);

 private:
  std::vector<ParamGroup> groups_;
  std::vector<OptimizerParam> params_;
  std::vector<size_t> group_of_;
  std::vector<Tensor> moment1_, moment2_;
  int64_t num_steps_ = 0;
};

// Square root of the sum of all squares, f64; undefined gradients count as zero.
double global_norm(std::span<const Tensor> grads);
// min(1, max_norm / norm); 1 if max_norm is 0.
double clip_factor(double norm, double max_norm);
// Whether `pattern` (* and ?) matches the whole `text`.
bool matches_pattern(std::string_view pattern, std::string_view text);

}  // namespace weft
