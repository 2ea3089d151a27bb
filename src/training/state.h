// What a Training holds, and the parts of a step.
#pragma once

#include "src/core/not_finite.h"
#include "src/training/comm_ranks.h"
#include "src/training/diverged.h"
#include "src/training/shards.h"
#include "src/training/step_losses.h"
#include "weft/core/error.h"
#include "weft/nn/context_group.h"
#include "weft/training/training.h"

namespace weft {

struct Training::State {
  State(Module& trained, TokenLoss its_loss, TrainingOptions its_options);
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  struct Rows {
    int64_t micro_batch, first;  // its number, and its first row among all samples
    bool is_last;
  };
  // f() is a step or a part of one. The other ranks learn why this one does not come to its end.
  template <class F>
  auto as_rank(F&& f) {
    try {
      return f();
    } catch (const NotFinite& e) {
      if (comm_ranks) comm_ranks->note_failure(e.problem());
      throw Diverged(e);
    } catch (const Error& e) {
      if (comm_ranks) comm_ranks->note_failure(e.problem());
      throw;
    } catch (const std::exception& e) {
      if (comm_ranks) comm_ranks->note_failure(e.what());
      throw;
    }
  }
  void make_ranks();
  void make_optimizer();
  StepResult step_of(std::span<const data::RankShare::Rows> micro_batches, const data::SampleSource& samples);
  StepResult begin();
  TokensOptions tokens_options(int64_t micro_batch) const;
  void forward_backward(const data::Batch& batch, const Rows& rows, StepResult& result);
  void differentiate(const Var& computed, bool is_last);
  void finish(StepResult& result, bool is_sample);
  std::vector<Tensor> take_grads(StepResult& result);
  void update(std::span<const Tensor> grads, const StepResult& result);
  void check_params() const;
  const ContextGroup* context() const { return options.context ? options.context : alone ? &group : nullptr; }
  EvaluateOptions evaluate_options(int64_t max_tokens) const;

  Module& model;
  TokenLoss loss;
  TrainingOptions options;
  OutlierGuard guard;
  std::vector<NamedParam> params;
  std::vector<NamedBuffer> buffers;
  std::vector<Tensor> masters;                // of what is trained, as the optimiser has them
  std::vector<Var> leaves;                    // of the same parameters
  std::unique_ptr<Shards> shards;             // of ranks that share the updates
  std::unique_ptr<CommRanks> comm_ranks;      // of several ranks with a communicator
  RankSums* ranks = nullptr;                  // those or sums of the caller's; null: this is the only rank
  data::RankShare share;                      // of the rows of a step
  std::vector<int64_t> targets_of;            // of each micro-batch of the step
  std::unique_ptr<dist::Communicator> alone;  // with other rows than all other ranks
  ContextGroup group;                         // then: sums over a micro-batch are those over all ranks
  std::vector<double> have_grads;  // of several ranks: 1 for parameters that have a gradient of the step here
  bool is_in_backward = false;     // of several ranks: past the parameters that it does not reach
  std::unique_ptr<AnyOptimizer> optimizer;
  std::vector<GradHook> hooks;
  Upload upload;
  StepLosses losses;
  bool takes_reports = false;            // this step
  std::vector<Sharing::Report> reports;  // of its first micro-batch
  int64_t rows_at_once = 1;              // of an evaluation: as many as a forward of the last step took
  int64_t step = 0, num_samples = 0, num_tokens = 0, num_skipped = 0;
};

}  // namespace weft
