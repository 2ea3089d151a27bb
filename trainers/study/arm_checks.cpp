#include "trainers/study/arm_checks.h"

#include <map>
#include <set>

#include "trainers/config/check.h"
#include "trainers/config/translate.h"
#include "trainers/run/context_choice.h"
#include "trainers/run/data.h"
#include "trainers/run/num_ids.h"
#include "trainers/run/start_checks.h"
#include "trainers/run/start_model.h"
#include "weft/core/dry_run.h"
#include "weft/optim/optimizer.h"
#include "weft/training/training.h"

namespace weft::study {

namespace {

// Every parameter that is trained has a group that can take it, and patterns of frozen ones match some.
void check_groups(const config::Loaded& config) {
  constexpr int64_t kAnyVocab = 256;  // no group chooses by a size
  const config::Experiment& e = config.experiment;
  LanguageModelOptions options = train::model_options(config, train::num_ids_of(config).value_or(kAnyVocab));
  options.fixed_text.resize(static_cast<size_t>(options.context));  // for mixers that read one
  DryRun dry;
  LanguageModel model(options, Rng(0));
  if (e.has_start()) train::freeze(model, train::start_options(e));
  const Optimizer optimizer(train::param_groups(e), optimizer_params(model));
}

// Arms often share their texts and the run they begin as, whose checkpoint is read to its end.
class Checks {
 public:
  void run(const config::Loaded& config) {
    config::check_end_of_text(config);
    train::check_context(config);
    const config::Experiment& e = config.experiment;
    if (inputs_.insert(config::to_text(e.data())).second) train::check_inputs(config);
    if (e.has_start() && starts_.insert(e.start().from()).second) train::check_start(e);
    check_groups(config);
  }

 private:
  std::set<std::string> inputs_, starts_;
};

}  // namespace

void check_arms(const Grid& grid, const Arms& arms, const cli::Extensions& own) {
  Checks checks;
  for (const Combination& arm : arms.all) {
    of_arm(grid, arm.name, [&] { checks.run(config_of(grid, arm, {}, own)); });
    if (!grid.tune) continue;
    for (const std::string& value : grid.tune->values)
      of_arm(grid, str(arm.name, ": tune"), [&] {
        std::vector<std::string> more = grid.tune->set;
        more.push_back(str(grid.tune->path, "=", value));
        const config::Loaded config = config_of(grid, arm, more, own);
        if (&value == &grid.tune->values[0]) checks.run(config);
      });
  }
}

std::string odd_arms(const Grid& grid, const Arms& arms) {
  std::vector<std::string> odd;
  for (const GridAxis& axis : grid.axes)
    if (axis.arms.size() == 1)
      odd.push_back(str("axis ", axis.name, " has one arm, ", axis.arms[0].name, ", and compares nothing"));
  std::map<std::string, std::vector<std::string>> names;  // of each config
  for (const Combination& arm : arms.all) names[config::to_text(arm.experiment)].push_back(arm.name);
  for (const Combination& arm : arms.all)  // in the order of the arms
    if (const auto& same = names[config::to_text(arm.experiment)]; same.size() > 1 && same[0] == arm.name)
      odd.push_back(config::join(same, " and ") + " have the same config, and differ in nothing");
  return odd.empty() ? "" : str("warning: ", grid.file, ": ", config::join(odd, "; "), ".");
}

}  // namespace weft::study
