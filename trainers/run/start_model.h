// The model of a run: with random weights, or as another run left it, with layers that are new and parts that are frozen.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainers/config/translate.h"
#include "trainers/run/folder.h"
#include "trainers/run/session.h"
#include "weft/training/token_loss.h"

namespace weft::train {

struct StartModel {
  std::unique_ptr<LanguageModel> model;
  std::unique_ptr<LanguageModel> teacher;  // if start.distill is set
  std::vector<std::string> lines = {};     // which parameters were taken, for people
};
// `source`: the checkpoint of another run that it begins as; empty: weights and moments come from elsewhere. ConfigError if nothing of it
// fits, or a pattern of names matches nothing.
StartModel make_start(const config::Loaded& config, const RunData& data, const std::string& source);

// The source of a training. The first start finds what `start.from` means and writes it into the run folder; later ones keep to it, whatever
// the other run has done since. Empty without `start`, and where the run goes on from its own checkpoint and learns from no teacher.
std::string find_start(const config::Loaded& config, const RunFolder& folder);
// The source of a run that has begun. ConfigError if it is gone, or has other weights.
std::string recorded_start(const config::Loaded& config, const std::string& run_folder);

// ConfigError unless `start.from`, where it is set, names a checkpoint, or a run that has one.
void check_start(const config::Experiment& experiment);

// Freezes what the patterns say; returns what it did, for people, or nothing. ConfigError if a pattern matches nothing.
std::string freeze(LanguageModel& model, const StartOptions& options);

// Of the model that a run learns from; nothing without `start.distill`. `source`: the checkpoint; empty: what `start.from` means.
std::optional<LanguageModelOptions> teacher_options(const config::Loaded& config, int64_t num_ids,
                                                    const std::string& source = {});

// Empty: the loss of the text.
TokenLoss start_loss(const config::Experiment& experiment, LanguageModel& model, LanguageModel* teacher);

}  // namespace weft::train
