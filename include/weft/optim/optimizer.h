// Optimisers on named tensors, in groups chosen by name pattern and number of dimensions.
//   Optimizer optimizer({{.match = "*.layers.*.weight", .num_dims = 2, .algorithm = MuonOptions{}}, {.algorithm = AdamWOptions{}}},
//                       parameters);
//   optimizer.step(grads, schedule_factor(schedule, step, steps), clip_factor(norm, 1.0));
#pragma once

#include <functional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "weft/core/pattern.h"
#include "weft/core/working_copy.h"

namespace weft {

// In the options of all algorithms, `lr` is the peak rate. `weight_decay` acts on every parameter of the group, norm gains and biases
// included, as in a parameter group of PyTorch. To leave vectors out, give them a group with num_dims = 1 and no decay.

// Loshchilov & Hutter, 1711.05101. Decay is decoupled from the gradient and multiplied by the rate. Bias correction counts the updates of
// each parameter, as in torch.optim.AdamW: a step in which a parameter has no gradient does not count for it.
struct AdamWOptions {
  double lr = 3e-4, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
};

// Momentum, orthogonalised by Newton-Schulz steps (K. Jordan, 2024); matrices only. The update of R rows and C columns is
// lr * sqrt(max(1, R / C)) times a matrix of singular values near 1.
struct MuonOptions {
  double lr = 0.02, momentum = 0.95, weight_decay = 0;
  bool is_nesterov = true;
  int num_iterations = 5;
};

// AdamW without a schedule (Defazio et al., 2405.15682). The rate stays constant after a warm-up, and an average of the weights replaces the
// decay of the rate. Parameters hold the point where gradients are taken: beta1 times the average plus (1 - beta1) times the newest weights.
// Evaluate and keep the average; AveragedWeights shows it. Bias correction is as in AdamW.
struct ScheduleFreeOptions {
  double lr = 2.5e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
};

// Chen et al., 2302.06675. Every element moves by lr up or down: only the sign of the update counts. Decay is as in AdamW.
struct LionOptions {
  double lr = 1e-4, beta1 = 0.9, beta2 = 0.99, weight_decay = 0;
};

// As torch.optim.SGD: decay is added to the gradient before the momentum. Without momentum there is no state.
struct SgdOptions {
  double lr = 0.1, momentum = 0.9, weight_decay = 0;
  bool is_nesterov = false;
};

struct ParamGroup {
  std::string name = {};    // of the group in logs; empty: its number
  std::string match = "*";  // pattern for the whole name: * any text, ? one character
  int num_dims = 0;         // 0: any
  std::variant<AdamWOptions, MuonOptions, LionOptions, SgdOptions, ScheduleFreeOptions> algorithm = AdamWOptions{};
};

// Master value, f32 or f64, and under bf16 compute the working copy, which Optimizer rewrites in the same pass. An optimiser that writes the
// value alone need not know of it: the next forward finds the copy out of date and makes it anew.
struct OptimizerParam {
  std::string name;
  Tensor value;
  WorkingCopy working = {};
  // Of ranks that share an Optimizer's work: the elements, row by row, that this one updates and keeps the state of. end < 0: all.
  int64_t begin = 0, end = -1;
};
size_t group_of(std::span<const ParamGroup> groups, const OptimizerParam& param);  // the first match, or their number

// What a training asks of its optimiser: Optimizer, or one of your own.
class AnyOptimizer {
 public:
  virtual ~AnyOptimizer() = default;
  // One update of the parameters in place. grads[i] belongs to parameter i; undefined leaves that one alone. Rates are multiplied by
  // lr_factor, gradients by grad_factor (clipping).
  virtual void step(std::span<const Tensor> grads, double lr_factor, double grad_factor) = 0;
  virtual int64_t num_steps() const = 0;
  // What goes into a checkpoint besides the number of steps, by name. load_state() copies it back, from the CPU.
  virtual std::vector<std::pair<std::string, Tensor>> state() const = 0;
  virtual void load_state(std::span<const std::pair<std::string, Tensor>> state, int64_t num_steps) = 0;

 private:
  friend class AveragedWeights;
  // Of an optimiser that keeps averages: the parameters become them, and show_points() takes that back. False if there is nothing to take back.
  virtual bool show_averages() { return false; }
  virtual void show_points() {}
};

class Optimizer : public AnyOptimizer {
 public:
  // Every parameter goes to the first group that matches it. Error if no group matches, or if a vector comes into a Muon group.
  // `fetch_parts` is called when parts of parameters were written: it gets those of the other ranks.
  Optimizer(std::vector<ParamGroup> groups, std::vector<OptimizerParam> params, std::function<void()> fetch_parts = {});

  // One update in place. grads[i] is the gradient of params()[i], of its dtype, or of the part that is updated here (no numbers where none
  // is). Where it is undefined, the parameter does not change. Zeros are a gradient: weights and momenta decay. Rates are lr * lr_factor. Gradients are
  // multiplied by grad_factor (clipping). Both must be finite.
  void step(std::span<const Tensor> grads, double lr_factor, double grad_factor = 1) override;

  const std::vector<OptimizerParam>& params() const { return params_; }
  const std::vector<ParamGroup>& groups() const { return groups_; }
  size_t group_of(size_t param) const { return group_of_[param]; }
  double lr(size_t group) const;  // peak rate
  int64_t num_steps() const override { return num_steps_; }

  // Moments by name ("<param>.moment1", ...). They share memory with the optimiser, and load_state() needs the same names and shapes; only of
  // a part [end - begin] here it takes those of the whole parameter. If a parameter had no gradient in some steps, "<param>.num_steps" (i64
  // [1], a copy) is its number of updates. Schedule-free groups have also "<param>.point", which outside AveragedWeights is the parameter
  // itself, and "group.<number>.rates" (f64 [1]), the sum of squared rates.
  std::vector<std::pair<std::string, Tensor>> state() const override;
  void load_state(std::span<const std::pair<std::string, Tensor>> state, int64_t num_steps) override;

 private:
  bool show_averages() override;
  void show_points() override;
  Tensor moments_for(size_t param, bool is_kept) const;

  std::vector<ParamGroup> groups_;
  std::vector<OptimizerParam> params_;
  std::vector<size_t> group_of_;
  std::vector<Tensor> moment1_, moment2_;
  std::vector<int64_t> num_updates_;  // of each parameter
  std::vector<Tensor> rates_;         // of schedule-free groups: sum of squared rates, f64 [1]
  std::vector<Tensor> points_;        // while parameters hold averages: the points where their gradients are taken
  int64_t num_steps_ = 0;
  std::function<void()> fetch_parts_;
};

// While it exists, the parameters of schedule-free groups hold their averages. Afterwards they are what they were, bit for bit. Do not call
// step() meanwhile. It does nothing inside another one, or if no group is schedule-free.
class AveragedWeights {
 public:
  explicit AveragedWeights(AnyOptimizer& optimizer);
  ~AveragedWeights();
  AveragedWeights(const AveragedWeights&) = delete;
  AveragedWeights& operator=(const AveragedWeights&) = delete;

 private:
  AnyOptimizer* optimizer_ = nullptr;
};

// Square root of the sum of all squares, f64; undefined gradients count as zero.
double global_norm(std::span<const Tensor> grads);
// min(1, max_norm / norm); 1 if max_norm is 0. Error if the norm is not finite: no factor makes such gradients usable.
double clip_factor(double norm, double max_norm);

}  // namespace weft
