// A plan of the tiny config.
#pragma once

#include <string>
#include <vector>

#include "tests/trainers/config_text.h"
#include "trainers/config/translate.h"
#include "trainers/run/mesh_plan.h"

namespace weft::train {

inline MeshPlan plan_of(const std::vector<std::string>& overrides) {
  std::vector<std::string> all = {"model.vocab=512", "model.context=256", "train.tokens=1M",
                                  "train.tokens_per_step=4096"};
  all.insert(all.end(), overrides.begin(), overrides.end());
  return MeshPlan(config::test::load_string(config::test::kTiny, all), 512, dist::hardware_profile("h200"));
}

}  // namespace weft::train
