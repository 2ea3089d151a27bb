// What a report says of the run itself: model, data, seed, build, machine.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "trainers/config/config.h"

namespace weft {
class Optimizer;
}

namespace weft::train {

using Facts = std::vector<std::pair<std::string, std::string>>;  // name, value

// `environment` is the text of the run's environment.txtpb: of the machine and build that the run was started with.
Facts run_facts(const config::Experiment& experiment, const std::string& environment);

// A message on one line without the fields that have their defaults: "softmax { heads: 4 window: 128 }".
std::string brief(const google::protobuf::Message& message);

// What each group trains and how, for legends: "muon: layers.*.weight, 2 dimensions", "adamw: all others".
std::vector<std::string> group_labels(const config::Experiment& experiment);

}  // namespace weft::train
