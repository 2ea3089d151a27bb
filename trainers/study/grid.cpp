#include "trainers/study/grid.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <set>

#include "trainers/config/grid.pb.h"
#include "trainers/config/overrides.h"
#include "trainers/config/text_reader.h"
#include "trainers/run/named_tasks.h"
#include "trainers/study/metric.h"
#include "weft/io/files.h"

namespace weft::study {

namespace {

using config::ConfigError;

// Comments of a grid may look like overrides: those of the command line stand below a line of their own.
constexpr std::string_view kOverridesBegin = "# weft ablate was called with:\n", kOverrideMark = "# --set ";

// Names stand in folder names and in tables.
void check_name(const std::string& file, const std::string& what, const std::string& name) {
  const bool is_plain = !name.empty() && name[0] != '.' && name.size() <= 60 && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.' || c == '+';
  });
  if (!is_plain)
    throw ConfigError(str(file, ": ", what, " has the name '", name, "'."),
                      "Use up to 60 letters, digits, '_', '-', '+' and '.'.");
}

template <class Range, class Name>
void check_different(const std::string& file, const std::string& what, const Range& all, const Name& name_of) {
  std::set<std::string> seen;
  for (const auto& one : all)
    if (!seen.insert(name_of(one)).second)
      throw ConfigError(str(file, ": ", what, " ", name_of(one), " stands there twice."), "Give each once.");
}

// Overrides that stand in the grid: their relative paths are relative to its folder, whatever the working directory is.
std::vector<std::string> overrides_of(const std::string& folder, const auto& texts) {
  std::vector<std::string> set;
  for (const std::string& text : texts) set.push_back(config::with_absolute_paths(text, folder));
  return set;
}

GridAxis axis_of(const std::string& file, const std::string& folder, const config::Axis& in) {
  check_name(file, "an axis", in.name());
  GridAxis axis{.name = in.name(), .arms = {}};
  const bool has_values = in.has_path() || in.value_size() > 0;
  if (has_values == (in.arm_size() > 0) || (has_values && (!in.has_path() || in.value_size() == 0)))
    throw ConfigError(
        str(file, ": axis ", in.name(), " needs arms, or a path with values, and has ", in.arm_size(), " arms, ",
            in.has_path() ? "a" : "no", " path and ", in.value_size(), " values."),
        "Write arm { name: \"..\" set: \"path=value\" } for each arm, or path: \"..\" value: \"..\" value: \"..\".");
  for (const config::Arm& arm : in.arm()) axis.arms.push_back({arm.name(), overrides_of(folder, arm.set())});
  for (const std::string& value : in.value())
    axis.arms.push_back({value, overrides_of(folder, std::vector{in.path() + "=" + value})});
  for (const GridArm& arm : axis.arms) check_name(file, "an arm of axis " + in.name(), arm.name);
  check_different(file, "axis " + in.name() + ": arm", axis.arms, [](const GridArm& arm) { return arm.name; });
  return axis;
}

// The arms that "gate=none,lr=1e-3" names; the first arm of an axis that is not named.
std::vector<size_t> arms_named(const Grid& grid, const std::string& what, const std::string& text) {
  std::vector<size_t> arms(grid.axes.size(), 0);
  std::vector<bool> is_named(grid.axes.size(), false);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size()), equals = text.find('=', begin);
    const std::string axis = text.substr(begin, std::min(equals, end) - begin);
    const std::string arm = equals < end ? text.substr(equals + 1, end - equals - 1) : "";
    const auto found = std::ranges::find(grid.axes, axis, &GridAxis::name);
    std::vector<std::string> names;
    if (found == grid.axes.end()) {
      for (const GridAxis& a : grid.axes) names.push_back(a.name);
      config::check_choice(str(grid.file, ": ", what, ":"), axis, names, "axis");
    }
    const auto number = static_cast<size_t>(found - grid.axes.begin());
    if (arm.empty() || is_named[number])
      throw ConfigError(str(grid.file, ": ", what, ": \"", text, "\" names ", arm.empty() ? "no arm" : "two arms",
                            " of axis ", axis, "."),
                        "Write AXIS=ARM once for each axis, with commas between them.");
    is_named[number] = true;
    for (const GridArm& a : found->arms) names.push_back(a.name);
    config::check_choice(str(grid.file, ": ", what, ": axis ", axis, ":"), arm, names, "arm");
    arms[number] = static_cast<size_t>(std::ranges::find(found->arms, arm, &GridArm::name) - found->arms.begin());
    begin = end + 1;
  }
  return arms;
}

std::string name_of(const Grid& grid, const std::vector<size_t>& arms) {
  std::string name;
  for (size_t a = 0; a < arms.size(); ++a)
    name += str(a > 0 ? "," : "", grid.axes[a].name, "=", grid.axes[a].arms[arms[a]].name);
  return name;
}

Match match_of(const std::string& file, const config::Match& in) {
  using By = config::MatchBy;
  Match match;
  if (in.has_parameters() && in.has_flops())
    throw ConfigError(file + ": match has parameters and flops.", "Make one of them equal.");
  if (in.has_flops()) match.what = Match::What::flops;
  match.changes_tokens = in.by() == By::tokens;
  if (match.changes_tokens && !in.has_flops())
    throw ConfigError(file + ": match by tokens, which change no parameters.",
                      "Write match { flops: 0.01 by: tokens }.");
  if (in.has_parameters() || in.has_flops()) match.tolerance = in.has_flops() ? in.flops() : in.parameters();
  if (in.has_multiple()) match.multiple = in.multiple();
  if (!(match.tolerance > 0 && match.tolerance < 1) || match.multiple < 1)
    throw ConfigError(str(file, ": match has ", in.has_flops() ? "flops " : "parameters ", match.tolerance,
                          " and multiple ", match.multiple, "."),
                      "The former is a share between 0 and 1, such as 0.01, and multiple 1 or more.");
  return match;
}

// Numbers above 0 that ascend.
void check_values(const std::string& file, const std::vector<std::string>& values) {
  double before = 0;
  for (const std::string& text : values) {
    double value = 0;
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (code != std::errc() || end != text.data() + text.size() || !(value > before) || !std::isfinite(value))
      throw ConfigError(str(file, ": tune: value ", text, " is not a number above ", before, "."),
                        "Give numbers above 0, the smallest first.");
    before = value;
  }
  if (values.size() < 3)
    throw ConfigError(str(file, ": tune has ", values.size(), " values."),
                      "Give three or more: the best of two is always at an edge.");
}

Tune tune_of(const std::string& file, const std::string& folder, const config::Tune& in,
             const std::vector<int64_t>& seeds) {
  Tune tune{.path = in.path(),
            .values = {in.value().begin(), in.value().end()},
            .seeds = {in.seeds().begin(), in.seeds().end()},
            .set = overrides_of(folder, in.set())};
  if (tune.path.empty())
    throw ConfigError(file + ": tune.path is not set.", "Name a field: \"optim.group[0].adamw.lr\".");
  check_values(file, tune.values);
  if (tune.seeds.empty())
    throw ConfigError(file + ": tune has no seeds.", "Give it seeds that the study does not have.");
  check_different(file, "tune: seed", tune.seeds, [](int64_t seed) { return str(seed); });
  for (int64_t seed : tune.seeds)
    if (std::ranges::find(seeds, seed) != seeds.end())
      throw ConfigError(str(file, ": tune: seed ", seed, " is one of the study's."),
                        "Give it others: what was chosen on a seed looks better on it.");
  if (in.has_widen()) tune.widen = in.widen();
  if (tune.widen < 0) throw ConfigError(str(file, ": tune.widen is ", tune.widen, "."), "Use 0 or more.");
  if (in.has_metric()) tune.metric = in.metric();
  if (tune.metric.starts_with("task/"))
    throw ConfigError(str(file, ": tune: metric ", tune.metric,
                          ": what is chosen by it looks better on it. `eval` asks tries and runs the same test rows."),
                      "Use val/loss or val/loss@LENGTH: tries have validation data of their own.");
  return tune;
}

Evals evals_of(const std::string& file, const config::GridEval& in) {
  Evals evals{.lengths = {in.length().begin(), in.length().end()},
              .by_position = in.by_position(),
              .tasks = {in.task().begin(), in.task().end()},
              .task_lengths = {in.task_length().begin(), in.task_length().end()}};
  if (in.has_rows()) evals.rows = in.rows();
  const std::vector<std::string> known = train::task_names();
  for (const std::string& task : evals.tasks) config::check_choice(file + ": eval: task:", task, known, "task");
  check_different(file, "eval: task", evals.tasks, [](const std::string& task) { return task; });
  for (const std::vector<int64_t>* lengths : {&evals.lengths, &evals.task_lengths}) {
    check_different(file, "eval: length", *lengths, [](int64_t length) { return str(length); });
    for (int64_t length : *lengths)
      if (length < 1 || length > kMostLength)
        throw ConfigError(str(file, ": eval: length ", length, "."), str("Use 1 to ", kMostLength, " tokens."));
  }
  if (evals.rows < 2) throw ConfigError(str(file, ": eval.rows is ", evals.rows, "."), "Use 2 or more.");
  return evals;
}

// The axis of compare.tune is no axis of arms: its values are tried with every arm, on seeds that the study does not have.
void tune_axis(Grid& grid, const config::Grid& in) {
  if (!in.compare().has_tune()) return;
  const std::string& name = in.compare().tune();
  if (in.has_tune())
    throw ConfigError(str(grid.file, ": compare.tune is ", name, ", and there is tune { }."),
                      "Leave one of the two out.");
  std::vector<std::string> names;
  for (const GridAxis& axis : grid.axes) names.push_back(axis.name);
  config::check_choice(grid.file + ": compare: tune:", name, names, "axis");
  const auto at = std::ranges::find(names, name) - names.begin();
  const config::Axis& axis = in.axis(static_cast<int>(at));
  if (axis.arm_size() > 0)
    throw ConfigError(
        str(grid.file, ": compare.tune: axis ", name, " has arms."),
        "Only values of one field are tuned: write path: \"..\" value: \"..\" value: \"..\" in the axis.");
  config::Tune tune;
  tune.set_path(axis.path());
  for (const std::string& value : axis.value()) tune.add_value(value);
  for (int64_t seed = 1; tune.seeds_size() < 2; ++seed)
    if (std::ranges::find(grid.seeds, seed) == grid.seeds.end()) tune.add_seeds(seed);
  grid.tune = tune_of(grid.file, "", tune, grid.seeds);
  grid.axes.erase(grid.axes.begin() + at);
}

// "/accuracy" of one task, "/accuracy/16" of one of its sizes, "/accuracy@64" of one of several lengths.
void check_task_key(const Grid& grid, const std::string& metric, const std::string& rest) {
  constexpr std::string_view kAccuracy = "/accuracy";
  const std::string who = str(grid.file, ": metric ", metric, ": ");
  const bool is_accuracy = rest.starts_with(kAccuracy);
  const std::string behind = is_accuracy ? rest.substr(kAccuracy.size()) : "";
  int64_t number = 0;
  const char* end = behind.data() + behind.size();
  const bool has_number = behind.size() > 1 && std::from_chars(behind.data() + 1, end, number).ptr == end && number > 0;
  if (is_accuracy && (behind.empty() || (has_number && behind[0] == '/'))) return;
  if (!is_accuracy || !has_number || behind[0] != '@')
    throw ConfigError(who + "runs have accuracies of tasks alone.",
                      "Write task/NAME/accuracy, task/NAME/accuracy/SIZE or task/NAME/accuracy@LENGTH.");
  const std::vector<int64_t>& lengths = grid.evals.task_lengths;
  if (lengths.size() < 2 || std::ranges::find(lengths, number) == lengths.end())
    throw ConfigError(str(who, "is not asked for: eval does not have several lengths with this one."),
                      str("Write eval { task_length: ", number,
                          " task_length: .. } with another one, or task/NAME/accuracy where there is one length."));
}

// A metric of a task is a question to the finished runs, and so is the loss of one length, whether or not `eval` has it too.
void ask_for_metrics(Grid& grid) {
  const std::vector<std::string> known = train::task_names();
  constexpr std::string_view kTask = "task/";
  const bool asks_positions_alone =
      grid.evals.by_position && grid.evals.lengths.empty();  // see check_metrics() of arms
  const auto ask_for_length = [&](const std::string& metric) {
    const std::optional<int64_t> length = length_of(metric);
    std::vector<int64_t>& asked = grid.evals.lengths;
    if (length && !asks_positions_alone && std::ranges::find(asked, *length) == asked.end()) asked.push_back(*length);
  };
  for (const std::string& metric : grid.metrics) {
    check_key(grid.file + ": metric", metric);
    ask_for_length(metric);
    if (!metric.starts_with(kTask)) continue;
    const std::string task = metric.substr(kTask.size(), metric.find('/', kTask.size()) - kTask.size());
    config::check_choice(str(grid.file, ": compare: metric ", metric, ":"), task, known, "task");
    check_task_key(grid, metric, metric.substr(kTask.size() + task.size()));
    if (std::ranges::find(grid.evals.tasks, task) == grid.evals.tasks.end()) grid.evals.tasks.push_back(task);
  }
  if (!grid.tune) return;
  if (grid.tune->metric.find('*') != std::string::npos)
    throw ConfigError(str(grid.file, ": tune: metric ", grid.tune->metric, ": is a pattern."),
                      "Name one metric: the best value is chosen by it.");
  check_key(grid.file + ": tune: metric", grid.tune->metric);
  ask_for_length(grid.tune->metric);
}

}  // namespace

Grid read_grid(const std::string& file, const std::optional<std::string>& study_of) {
  if (!io::file_exists(file) || io::is_folder(file))
    throw ConfigError(file + (io::is_folder(file) ? ": is a folder." : ": no such file."),
                      "Name a grid: see weft ablate --help.");
  Grid grid{.file = file, .text = config::read_text_file(file, config::kGridText)};
  if (!study_of && grid.text.find(kOverridesBegin) != std::string::npos)
    throw ConfigError(file + ": has overrides that weft ablate has written behind the grid of a study.",
                      "Give them with --set, or as set: \"path=value\", and remove those lines.");
  config::Grid in;
  const std::filesystem::path path = std::filesystem::absolute(file);
  const std::string folder = study_of.value_or(path.parent_path().string());
  config::read_text(in, grid.text, {file, true, "", folder}, nullptr);
  grid.name = in.has_name() ? in.name() : path.stem().string();
  check_name(file, "the study", grid.name);
  if (!in.has_base())
    throw ConfigError(file + ": base is not set.", "Name the config that all runs start from: base: \"run.txtpb\".");
  grid.base = in.base();
  grid.seeds.assign(in.seeds().begin(), in.seeds().end());
  if (grid.seeds.empty())
    throw ConfigError(file + ": there are no seeds.", "Write seeds: 1 seeds: 2 seeds: 3; intervals need three.");
  check_different(file, "seed", grid.seeds, [](int64_t seed) { return str(seed); });
  for (const config::Axis& axis : in.axis()) grid.axes.push_back(axis_of(file, folder, axis));
  check_different(file, "axis", grid.axes, [](const GridAxis& axis) { return axis.name; });
  tune_axis(grid, in);
  if (grid.axes.empty())
    throw ConfigError(file + ": there is no axis, so nothing is compared.",
                      "Add axis { name: \"..\" arm {..} arm {..} }.");
  grid.set = overrides_of(folder, in.set());
  for (const std::string& override : overrides_in(grid.text)) grid.set.push_back(override);
  grid.baseline = arms_named(grid, "baseline", in.baseline());
  grid.metrics.assign(in.compare().metric().begin(), in.compare().metric().end());
  if (grid.metrics.empty()) grid.metrics = {"val/loss"};
  check_different(file, "metric", grid.metrics, [](const std::string& metric) { return metric; });
  grid.confidence = in.compare().has_confidence() ? in.compare().confidence() : 0.95;
  if (!(grid.confidence > 0 && grid.confidence < 1))
    throw ConfigError(str(file, ": compare.confidence is ", grid.confidence, "."),
                      "It lies between 0 and 1, such as 0.95.");
  grid.effect = in.compare().effect();
  if (!(grid.effect >= 0 && std::isfinite(grid.effect)))
    throw ConfigError(str(file, ": compare.effect is ", grid.effect, "."), "It is the size of a difference, above 0.");
  if (in.has_match()) grid.match = match_of(file, in.match());
  if (in.has_tune()) grid.tune = tune_of(file, folder, in.tune(), grid.seeds);
  if (in.has_eval()) grid.evals = evals_of(file, in.eval());
  grid.threads = in.has_threads() ? in.threads() : 1;
  if (grid.threads < 1) throw ConfigError(str(file, ": threads is ", grid.threads, "."), "Use 1 or more.");
  grid.keeps_optimizer = in.keep_optimizer();
  if (in.has_minutes()) grid.minutes = in.minutes();
  if (grid.minutes && !(*grid.minutes > 0 && std::isfinite(*grid.minutes)))
    throw ConfigError(str(file, ": minutes is ", *grid.minutes, "."), "It is a time above 0, or is left out.");
  grid.claims = claims_of(grid, in);
  for (const Claim& claim : grid.claims)
    if (std::ranges::find(grid.metrics, claim.metric) == grid.metrics.end()) grid.metrics.push_back(claim.metric);
  ask_for_metrics(grid);
  return grid;
}

std::string full_name(const Grid& grid, const std::string& what, const std::string& text) {
  return name_of(grid, arms_named(grid, what, text));
}

std::vector<std::string> overrides_in(const std::string& text) {
  std::vector<std::string> set;
  const size_t mark = text.rfind(kOverridesBegin);
  if (mark == std::string::npos) return set;
  for (size_t begin = mark + kOverridesBegin.size(); begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    if (line.starts_with(kOverrideMark)) set.push_back(line.substr(kOverrideMark.size()));
    begin = end + 1;
  }
  return set;
}

void add_override(Grid& grid, const std::string& override) {
  if (override.find('\n') != std::string::npos)
    throw ConfigError("--set " + override + ": has a line break.", "Write it in one line.");
  grid.set.push_back(override);
  if (grid.text.find(kOverridesBegin) == std::string::npos)
    grid.text += str(grid.text.ends_with('\n') ? "" : "\n", kOverridesBegin);
  grid.text += str(kOverrideMark, override, "\n");
}

}  // namespace weft::study
