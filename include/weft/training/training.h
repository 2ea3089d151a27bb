// One training step for every model: micro-batches, one loss over the targets of the whole step, clipping, guard, update; and all of its state
// in files.
//   Training training(model, {.groups = {{.algorithm = AdamWOptions{.lr = 3e-3}}}, .clip_norm = 1, .compute = kBF16});
//   while (training.num_steps() < 200) training.step(batches.next());
//   training.save("checkpoints");      // in the next process, training.load("checkpoints") goes on bit for bit
// It trains the parameters that are not frozen when it is made. Model and communicator must outlive it. Of several ranks every one makes the
// same calls.
#pragma once

#include <optional>
#include <utility>

#include "weft/io/checkpoint.h"
#include "weft/optim/optimizer.h"
#include "weft/optim/schedule.h"
#include "weft/training/evaluate.h"
#include "weft/training/guard.h"
#include "weft/training/rank_sums.h"

namespace weft {

// The parameters of a module as an optimiser wants them: all that are not frozen, with their working copies.
std::vector<OptimizerParam> optimizer_params(const Module& model);

using OptimizerMaker = std::function<std::unique_ptr<AnyOptimizer>(std::vector<OptimizerParam> params)>;

struct TrainingOptions {
  std::vector<ParamGroup> groups = {};  // of Optimizer; empty: AdamW with its defaults for all
  OptimizerMaker optimizer = {};        // or an optimiser of your own
  ScheduleOptions schedule = {};
  int64_t steps = 0;  // of the schedule, and of what layers follow over the training (Tokens::progress)
  std::function<double(int64_t step)> lr_factor = {};  // or a schedule of your own
  double clip_norm = 0;                                // largest norm of the step's gradient; 0: any
  std::optional<DType> compute = {};                   // set_compute() of the model; unset: as it is
  int64_t micro_batch = 0;                             // rows at a time; 0: all of a step
  GuardOptions guard = {};
  uint64_t seed = 1;                       // of dropout and what else is random in a forward
  bool keeps_documents_apart = false;      // tokens see their own document only
  int64_t diagnostics_every = 0;           // steps; 0: never
  std::vector<int64_t> byte_lengths = {};  // of each id's text, 0 for none: then results tell nats per byte
  ops::AttentionBackend attention = ops::AttentionBackend::automatic;
  RanksOptions ranks = {};  // that train together
  // The ranks that share this one's rows, of which their samples have different tokens (data::spread). It outlives the training.
  const ContextGroup* context = nullptr;
};

struct StepResult {
  double loss = 0;       // nats per target of the step; 0 if no token has one
  double grad_norm = 0;  // before clipping
  double lr_factor = 0;
  int64_t num_targets = 0;
  int64_t num_bytes = 0;  // of the targets' texts
  double byte_nats = 0;   // loss summed over the targets that have bytes
  bool was_skipped = false;
  std::vector<std::pair<std::string, double>> diagnostics = {};  // by path, on the steps that take them
};

// A part of a step whose loss the caller computes; pass `tokens` to the Tokens of that forward.
struct MicroBatch {
  int64_t index, count;  // of the micro-batches
  TokensOptions tokens;
};

// All of a training but its tensors.
struct TrainingState {
  int64_t step = 0, num_samples = 0, num_tokens = 0, optimizer_steps = 0, num_skipped = 0;
  std::vector<OutlierGuard::Entry> guard_window = {};
  int64_t guard_in_a_row = 0;
};

class Training {
 public:
  Training(LanguageModel& model, TrainingOptions options);
  Training(Module& model, TokenLoss loss,
           TrainingOptions options);  // loss may be empty where only the last step() is called
  ~Training();
  Training(const Training&) = delete;
  Training& operator=(const Training&) = delete;

  // Error that names step and loss if it is not finite and no guard is on. A GPU is waited for once, for loss and gradient norm, besides
  // what layers wait for.
  // A step none of whose tokens has a target (documents of one token, padding) is a step like others: its loss and its auxiliary losses
  // are 0, and so are its gradients, which the optimiser applies (momenta go on, weights decay). Only the guard does not learn from it. A
  // micro-batch without targets in a step that has some adds nothing.
  // Of several ranks each gives its own rows, as data::samples_of_rank() has them.
  StepResult step(const data::Batch& batch);
  // Of samples first .. first + rows, of which each rank asks for its own (data::RankShare). Only one micro-batch is held; those behind the
  // first are read twice.
  StepResult step(const data::SampleSource& samples, int64_t first, int64_t rows);
  // Of any data: the loss is the sum of what loss_of() returns, over all ranks, so that each is already divided by what the step counts.
  StepResult step(int64_t micro_batches, const std::function<Var(const MicroBatch&)>& loss_of);

  // With averaged weights, if the optimiser keeps some. Ranks are given the same rows, share them, and all have the result.
  Evaluation evaluate(const data::Batch& batch);
  Evaluation evaluate(const data::ValidationWindows& windows, int64_t max_tokens = 0);  // 0: all

  // A checkpoint of this step in `folder` (weft/io/checkpoint.h). Returns its path. A caller with a state of its own writes its bytes in
  // place of the training's: they must hold state(), for restore(). Of several ranks the first writes, and all call it; any number of ranks
  // can go on from there.
  std::string save(const std::string& folder, const std::string& own_state = {}, const std::string& config = {});
  // The newest good checkpoint, `messages` says which damaged ones were passed over; false if there is none. Error that names what does
  // not fit the model or the optimiser.
  bool load(const std::string& folder, std::vector<std::string>* messages = nullptr);
  TrainingState state() const;
  void restore(const io::Checkpoint& checkpoint, const TrainingState& state);

  int64_t num_steps() const;  // with those skipped
  int64_t num_samples()
      const;  // rows that the steps took on all ranks: the next step's first, where they come in order
  int64_t num_skipped() const;
  AnyOptimizer& optimizer();
  const AnyOptimizer& optimizer() const;
  const OutlierGuard& guard() const;
  void set_diagnostics_every(int64_t steps);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Parameters and buffers as safetensors, by name. Loading is an Error that lists missing, unexpected and wrongly shaped tensors.
void save_model(const Module& model, const std::string& path);
void load_model(Module& model, const std::string& path);
void load_model(Module& model, const io::SafetensorsFile& file);
std::vector<io::NamedTensor> model_tensors(const Module& model);  // sharing its memory

}  // namespace weft
