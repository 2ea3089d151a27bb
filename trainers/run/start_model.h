// The model of a run: with random weights, or as another run left it, with layers that are new and parts that are frozen.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "trainers/run/session.h"
#include "weft/training/token_loss.h"

namespace weft::train {

struct StartModel {
  std::unique_ptr<LanguageModel> model;
  std::unique_ptr<LanguageModel> teacher;  // if start.distill is set
  std::vector<std::string> lines = {};     // which parameters were taken, for people
};
// ConfigError if nothing of `start.from` fits, or a pattern of names matches nothing.
StartModel make_start(const config::Loaded& config, const RunData& data);

// Memory of the teacher's weights; 0 if there is none.
int64_t teacher_bytes(const config::Loaded& config, int64_t num_ids);

// Empty: the loss of the text.
TokenLoss start_loss(const config::Experiment& experiment, LanguageModel& model, LanguageModel* teacher);

}  // namespace weft::train
