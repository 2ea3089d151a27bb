// The arms of a grid with their configs: what they say beside the base, what the grid would overwrite, and what cannot be compared.
#include <fmt/format.h>

#include <algorithm>

#include "trainers/config/field_path.h"
#include "trainers/config/row_bound.h"
#include "trainers/run/named_tasks.h"
#include "trainers/study/arm_checks.h"
#include "trainers/study/grid.h"
#include "trainers/study/metric.h"
#include "weft/io/files.h"

namespace weft::study {

namespace {

using config::ConfigError;

// Folders of runs are named after arms. With the value of a try, the seed, the checksum and what files add they stay below the 255 bytes that a
// file system takes.
constexpr size_t kMostArms = 1024, kMostNameBytes = 192;

void check_size(const Grid& grid) {
  size_t arms = 1, bytes = 0;
  std::string longest;
  for (const GridAxis& axis : grid.axes) {
    arms *= axis.arms.size();
    if (arms > kMostArms)
      throw ConfigError(
          str(grid.file, ": the axes up to ", axis.name, " make ", arms, " arms, and every arm of an axis is run ",
              "with every other; ", kMostArms, " are the most."),
          "Make two studies of it, or name the combinations that matter as arms of one axis.");
    const auto size = [](const GridArm& arm) { return arm.name.size(); };
    longest += str(longest.empty() ? "" : ",", axis.name, "=", std::ranges::max(axis.arms, {}, size).name);
  }
  if (grid.tune)
    for (const std::string& value : grid.tune->values) bytes = std::max(bytes, value.size());
  bytes += longest.size();
  if (bytes > kMostNameBytes)
    throw ConfigError(str(grid.file, ": ", longest, " has ", bytes, " letters", grid.tune ? " with a tuned value" : "",
                          ", and folders of runs are named so; ", kMostNameBytes, " are the most."),
                      "Give axes and arms shorter names.");
}

// Whether the field at `path` is one that the pattern names, or stands below it.
bool is_named(const std::vector<config::PathStep>& pattern, const std::string& path) {
  const std::vector<config::PathStep> steps = config::parse_path(path, path);
  if (steps.size() < pattern.size()) return false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const bool is_any = pattern[i].index < 0;  // [*], or an index that is left out
    if (pattern[i].name != steps[i].name || !(is_any || pattern[i].index == steps[i].index)) return false;
  }
  return true;
}

// The values of the fields that a path names, in their order.
std::vector<std::string> values_at(const config::Experiment& e, const std::string& path) {
  const std::vector<config::PathStep> pattern = config::parse_path(path, path);
  std::vector<std::string> values;
  for (const config::Difference& leaf : config::differences(config::Experiment(), e))
    if (is_named(pattern, leaf.path)) values.push_back(leaf.b);
  return values;
}

// What files and overrides say, without defaults.
struct Said {
  config::Experiment base, all, arm;  // the base config; with what the grid sets for all runs; with what the arm sets
};

void refuse_other(const config::Experiment& here, const config::Experiment& without, const std::string& path,
                  const std::string& who) {
  const std::vector<std::string> own = values_at(here, path), others = values_at(without, path);
  if (own == others) return;
  const auto shown = [](const std::vector<std::string>& values) {
    return values.empty() ? std::string("not set") : config::join(values, ", ");
  };
  throw ConfigError(str(path, " is set: it is ", shown(own), " here and ", shown(others), " without that; ", who,
                        " sets it for every run, so that nothing of it would be left."),
                    "Leave one of the two out.");
}

void refuse_any(const config::Experiment& here, const std::string& path) {
  const std::vector<std::string> own = values_at(here, path);
  if (own.empty()) return;
  throw ConfigError(
      str(path, " is set to ", own[0], ", and tuning decides it: tries and runs are asked different data."),
      "Leave one of the two out.");
}

// The arm's own width or number of tokens, which match would put another in the place of. A network of another kind brings a width along.
void check_matched(const Grid& grid, const Said& said, bool is_baseline) {
  if (!grid.match || is_baseline) return;
  if (grid.match->changes_tokens) return refuse_other(said.arm, said.all, "train.tokens", "match");
  const auto kind_of = [](const config::Experiment& e) {
    const config::Ffn::KindCase kind = e.model().ffn().kind_case();
    return kind == config::Ffn::KIND_NOT_SET ? config::Ffn::kSwiglu : kind;
  };
  const config::Ffn::KindCase here = kind_of(said.arm);
  if (here != kind_of(said.all)) return;
  if (here == config::Ffn::kGelu) refuse_other(said.arm, said.all, "model.ffn.gelu.hidden", "match");
  if (here == config::Ffn::kSwiglu) refuse_other(said.arm, said.all, "model.ffn.swiglu.hidden", "match");
}

void check_own_settings(const Grid& grid, const Combination& one, bool is_baseline,
                        const std::vector<std::string>& of_all) {
  const Said said{.base = config::read(grid.base, {}).experiment,
                  .all = config::read(grid.base, of_all).experiment,
                  .arm = config::read(grid.base, one.overrides).experiment};
  refuse_other(said.arm, said.base, "train.threads", str("`threads: ", grid.threads, "` of the grid"));
  check_matched(grid, said, is_baseline);
  if (!grid.tune) return;
  refuse_other(said.arm, said.all, grid.tune->path, "tune");
  for (const char* path : {"data.val.half", "data.task.test_from"}) refuse_any(said.arm, path);
}

void check_tries(const Grid& grid, const std::vector<std::string>& of_all) {
  if (!grid.tune) return;
  std::vector<std::string> of_tries = of_all;
  of_tries.insert(of_tries.end(), grid.tune->set.begin(), grid.tune->set.end());
  config::Experiment runs;
  try {
    runs = config::read(grid.base, of_all).experiment;
  } catch (const ConfigError& e) { throw ConfigError(str(grid.file, ": ", e.problem()), e.fix()); }
  try {
    const config::Experiment tries = config::read(grid.base, of_tries).experiment;
    refuse_other(tries, runs, grid.tune->path, "tune.path");
    for (const char* path : {"data.val.half", "data.task.test_from"}) refuse_any(tries, path);
  } catch (const ConfigError& e) { throw ConfigError(str(grid.file, ": tune: ", e.problem()), e.fix()); }
}

// `eval { by_position: true }` without lengths is a question of one length, which a metric of another one would replace. Diagnostics are off
// unless a config asks for them.
void check_metrics(const Grid& grid, const Combination& one) {
  std::vector<std::string> metrics = grid.metrics;
  if (grid.tune) metrics.push_back(grid.tune->metric);
  const int64_t context = one.experiment.model().context();
  for (const std::string& metric : metrics) {
    const std::optional<int64_t> length = length_of(metric);
    if (length && grid.evals.lengths.empty() && *length != context)
      throw ConfigError(str(grid.file, ": metric ", metric,
                            ": eval { by_position: true } without lengths asks for rows of the training's ", context,
                            " tokens alone."),
                        str("Write eval { length: ", context, " length: ", *length, " by_position: true }."));
    const config::Log& log = one.experiment.log();
    if (is_diagnostic(metric) && log.diagnostics_every() == 0 && log.analysis_every() == 0)
      throw ConfigError(str(grid.file, ": metric ", metric, ": ", one.name, " takes no diagnostics."),
                        "Write set: \"log.diagnostics_every=STEPS\", or leave that metric out.");
  }
}

// Found before anything is trained: a task may need longer rows, and some models have something of their own for each place of the context, so
// longer rows have none.
void check_eval_lengths(const Grid& grid, const Combination& one) {
  const config::Model& model = one.experiment.model();
  for (const std::string& task : grid.evals.tasks)
    for (int64_t length :
         grid.evals.task_lengths.empty() ? std::vector<int64_t>{model.context()} : grid.evals.task_lengths)
      train::rows_of(task, train::named_task(task, one.experiment.data(), train::kUnknownVocab), length,
                     {.task = str(grid.file, ": ", one.name, ": eval: task: "), .length = "task_length: "});
  const std::string bound = config::bound_of_rows(model);
  if (bound.empty()) return;
  for (const std::vector<int64_t>* lengths : {&grid.evals.lengths, &grid.evals.task_lengths})
    for (int64_t length : *lengths)
      if (length > model.context())
        throw ConfigError(
            str(grid.file, ": eval: length ", length, ": ", one.name, " ", bound, " for ", model.context(), " tokens."),
            model.position().has_learned() ? "Ask for lengths up to the training context, or give that arm rope."
                                           : "Ask for lengths up to the training context.");
}

void check_batches(const Grid& grid, const Arms& arms) {
  const bool is_about_speed = std::ranges::all_of(grid.metrics, [](const std::string& metric) {
    return metric.starts_with("speed/") || metric.starts_with("memory/");
  });
  if (is_about_speed) return;  // which is no matter of the text
  const Combination& baseline = arms.all[arms.baseline];
  for (const Combination& one : arms.all)
    if (const std::string other = other_batches(baseline.experiment, one.experiment); !other.empty())
      throw ConfigError(
          str(grid.file, ": ", baseline.name, " and ", one.name, " would see other batches: ", other, "."),
          "Runs of a seed are compared on the same data; study other data in a grid of its own. Where "
          "speed/ or memory/ alone is compared, arms may see other batches.");
}

}  // namespace

std::string other_batches(const config::Experiment& a, const config::Experiment& b) {
  for (const config::Difference& d : config::differences(a, b)) {
    const bool decides = d.path.starts_with("data.") || d.path == "seed" || d.path == "model.context" ||
                         d.path == "train.tokens_per_step" || d.path.starts_with("eval.");
    if (decides)
      return str(d.path, " is ", d.a.empty() ? "not set" : d.a, " in one and ", d.b.empty() ? "not set" : d.b,
                 " in the other");
  }
  return {};
}

int64_t ranks_of(const config::Experiment& e) { return e.parallel().data() * e.parallel().context(); }

config::Loaded config_of(const Grid& grid, const Combination& arm, const std::vector<std::string>& more,
                         const cli::Extensions& own) {
  std::vector<std::string> overrides = arm.overrides;
  overrides.insert(overrides.end(), more.begin(), more.end());
  overrides.push_back(str("seed=", grid.seeds[0]));
  config::Loaded config = config::read(arm.base.empty() ? grid.base : arm.base, overrides);
  config.own = own;
  config::resolve(config);
  return config;
}

Arms resolve_arms(const Grid& grid, const cli::Extensions& own) {
  check_size(grid);
  Arms arms;
  std::vector<std::string> of_all{"checkpoint.keep_last=1", "checkpoint.keep_best=false"};
  of_all.insert(of_all.end(), grid.set.begin(), grid.set.end());
  check_tries(grid, of_all);
  std::vector<size_t> at(grid.axes.size(), 0);
  for (bool is_done = false; !is_done;) {
    Combination one{.arms = at, .name = {}, .overrides = of_all};
    for (size_t a = 0; a < at.size(); ++a) {
      const GridArm& arm = grid.axes[a].arms[at[a]];
      one.name += str(a > 0 ? "," : "", grid.axes[a].name, "=", arm.name);
      one.overrides.insert(one.overrides.end(), arm.set.begin(), arm.set.end());
    }
    for (const std::string& override : one.overrides)
      if (override.starts_with("seed="))
        throw ConfigError(str(grid.file, ": ", one.name, " sets the seed."),
                          "Give seeds to the grid: all arms run with each of them.");
    of_arm(grid, one.name, [&] {
      check_own_settings(grid, one, at == grid.baseline, of_all);
      one.overrides.push_back(str("train.threads=", grid.threads));
      one.experiment = config_of(grid, one, {}, own).experiment;
      if (grid.tune && one.experiment.data().has_val() && !one.experiment.data().has_task()) {
        one.overrides.push_back("data.val.half=2");  // the tries have the first half
        one.experiment = config_of(grid, one, {}, own).experiment;
      }
    });
    check_metrics(grid, one);
    check_eval_lengths(grid, one);
    if (at == grid.baseline) arms.baseline = arms.all.size();
    arms.all.push_back(std::move(one));
    size_t axis = at.size();
    while (axis > 0 && ++at[axis - 1] == grid.axes[axis - 1].arms.size()) at[--axis] = 0;
    is_done = axis == 0;
  }
  check_batches(grid, arms);
  return arms;
}

Cell cell_of(size_t combination, const std::string& name, int64_t seed, config::Experiment experiment,
             std::vector<std::string> overrides) {
  experiment.set_seed(seed);
  experiment.clear_name();
  const uint64_t checksum = io::xxh3_64(config::to_text(experiment));
  overrides.push_back(str("seed=", seed));
  const config::Train& train = experiment.train();
  return {.combination = combination,
          .seed = seed,
          .folder = fmt::format("{},seed={}-{:08x}", name, seed, checksum >> 32),
          .experiment = experiment,
          .overrides = std::move(overrides),
          .ranks = ranks_of(experiment),
          .steps = std::max<int64_t>(1, train.tokens() / std::max<int64_t>(1, train.tokens_per_step())),
          .tokens = train.tokens()};
}

std::vector<Cell> cells_of(const Grid& grid, const Arms& arms) {
  std::vector<Cell> cells;
  for (int64_t seed : grid.seeds)  // so that a study that is stopped early has whole seeds
    for (size_t c = 0; c < arms.all.size(); ++c)
      cells.push_back(cell_of(c, arms.all[c].name, seed, arms.all[c].experiment, arms.all[c].overrides));
  return cells;
}

}  // namespace weft::study
