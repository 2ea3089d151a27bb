// From a resolved config to the plain option structs of the library.
#pragma once

#include <optional>
#include <vector>

#include "trainers/config/config.h"
#include "weft/data/recall.h"
#include "weft/distributed/context_attention.h"
#include "weft/models/language_model.h"
#include "weft/optim/optimizer.h"
#include "weft/optim/schedule.h"
#include "weft/training/distillation.h"

namespace weft::train {

RoutedResidualOptions residual_options(const config::Residual& residual);
SoftmaxOptions softmax_options(const config::Softmax& softmax);
MixerMaker mixer_maker(const config::Mixer& mixer);  // all but custom ones
FfnOptions umoe_ffn_options(const config::Model& model);
data::RecallOptions recall_options(const config::Task& task);
// `vocab` is the tokenizer's, used where model.vocab is not set.
LanguageModelOptions model_options(const config::Loaded& config, int64_t vocab);
std::vector<ParamGroup> param_groups(const config::Experiment& experiment);
ScheduleOptions schedule_options(const config::Experiment& experiment);
DType compute_dtype(const config::Experiment& experiment);
ops::AttentionBackend attention_backend(const config::Experiment& experiment);
int64_t memory_limit(const config::Experiment& experiment);  // train.memory_gib in bytes; INT64_MAX where it is not set

// Of ranks: data x context of them. Without a layout or scheme the run chooses (trainers/run/context_choice.h).
struct ParallelOptions {
  int data = 1, context = 1;
  int zero = 0;
  std::optional<dist::LayoutKind> layout = {};
  std::optional<dist::Scheme> scheme = {};
  int64_t block = 64;
  double timeout_s = 600;

  int ranks() const { return data * context; }
};
ParallelOptions parallel_options(const config::Experiment& experiment);

// What is trained of a model that begins as another one, and by which loss.
struct StartOptions {
  std::vector<std::string> frozen = {}, trained = {};  // patterns of names
  std::optional<DistillationOptions> distill = {};
};
StartOptions start_options(const config::Experiment& experiment);

// How a run is cut into steps.
struct StepSizes {
  int64_t context = 0, micro_batch = 0;  // micro_batch: sequences of a data rank at a time
  int64_t rows_per_step = 0;             // sequences of an optimiser step
  int64_t micro_batches = 0;             // per step
  int64_t tokens_per_step = 0;
  int64_t steps = 0;
};
StepSizes step_sizes(const config::Experiment& experiment);

}  // namespace weft::train
