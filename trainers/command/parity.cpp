// weft parity CONFIG [path=value]... [--ranks 2,3,4] [--layouts all|NAME,...] [--schemes all|NAME,...]: N ranks against one, in float64. Ranks
// are threads, or the processes of mpirun.
#include "trainers/run/parity.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/check.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/run/rank_launch.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  ConfigArguments config;
  std::vector<int64_t> ranks = {};  // none: 2, 3, 4, or all processes
  std::vector<std::string> layouts = {"all"}, schemes = {"all"};
  train::ParityOptions how;
};

constexpr dist::LayoutKind kLayouts[] = {dist::LayoutKind::contiguous, dist::LayoutKind::striped,
                                         dist::LayoutKind::zigzag, dist::LayoutKind::balanced};

// Those of `known` that `names` names.
template <class T>
std::vector<T> chosen(const char* option, const std::vector<std::string>& names, std::span<const T> known) {
  std::vector<std::string> words{"all"};
  for (T value : known) words.emplace_back(to_string(value));
  std::vector<T> values;
  for (const std::string& name : names) {
    config::check_choice(option, name, words, "value");
    for (T value : known)
      if (name == "all" || name == to_string(value)) values.push_back(value);
  }
  return values;
}

std::vector<train::ParityCase> cases_of(const Options& options, const config::Loaded& config) {
  const dist::Communicator* world = options.how.world;
  std::vector<int64_t> numbers = options.ranks;
  if (numbers.empty()) numbers = world ? std::vector<int64_t>{world->size()} : std::vector<int64_t>{2, 3, 4};
  std::vector<train::ParityCase> cases;
  for (int64_t ranks : numbers) {
    if (world && ranks > world->size())
      throw config::ConfigError(str("--ranks ", ranks, " with ", world->size(), " processes."),
                                str("Start ", ranks, " or more, or leave --ranks out."));
    if (ranks < 1 || ranks > config.experiment.model().context())
      throw config::ConfigError(
          str("--ranks ", ranks, " for a sequence of ", config.experiment.model().context(), " tokens."),
          "Use 1 or more, and at most one rank per token (model.context).");
    if (const std::string why = config::refusal_over_ranks(config); ranks > 1 && !why.empty())
      throw config::ConfigError(str(ranks, " ranks that share each sequence: ", why, "."),
                                "Use another mixer; parallel.data alone spreads a training of this one.");
    for (dist::LayoutKind layout : chosen<dist::LayoutKind>("--layouts", options.layouts, kLayouts))
      for (dist::Scheme scheme : chosen<dist::Scheme>("--schemes", options.schemes, dist::all_schemes()))
        cases.push_back({layout, scheme, static_cast<int>(ranks)});
  }
  return cases;
}

// What stands on stderr where the table has no comparison.
std::string all_refused(const std::vector<train::ParityResult>& results) {
  std::string text = "weft parity: nothing was compared, since none of these cases can run:";
  std::vector<std::string> reasons;  // the same one often holds for all layouts
  for (const train::ParityResult& r : results)
    if (std::ranges::find(reasons, r.refused) == reasons.end()) reasons.push_back(r.refused);
  for (const std::string& reason : reasons) text += "\n       " + reason;
  return text + "\n       Use other --ranks or --schemes.";
}

int run_rank(const Options& options, Console& console, const Extensions& extensions) {
  config::Loaded config = config::load(options.config.file(), options.config.overrides());
  config::check_end_of_text(config);
  config.own = extensions;
  const std::vector<train::ParityCase> cases = cases_of(options, config);
  auto rows = nlohmann::ordered_json::array();
  std::string text =
      fmt::format("{:<12}{:<20}{:>6}  {:>9}{:>10}{:>9}\n", "layout", "scheme", "ranks", "loss", "gradients", "weights");
  size_t failed = 0, refused = 0;
  const std::vector<train::ParityResult> results = train::check_parity(config, cases, options.how);
  if (options.how.world && options.how.world->rank() > 0) return kSuccess;
  for (const train::ParityResult& r : results) {
    const std::string layout(to_string(r.of.layout)), scheme(to_string(r.of.scheme));
    if (!r.refused.empty()) {
      ++refused;
      text += fmt::format("{:<12}{:<20}{:>6}  refused: {}\n", layout, scheme, r.of.ranks, r.refused);
      rows.push_back({{"layout", layout}, {"scheme", scheme}, {"ranks", r.of.ranks}, {"refused", r.refused}});
      continue;
    }
    failed += !r.passed;
    text += fmt::format("{:<12}{:<20}{:>6}  {:>9.1e}{:>10.1e}{:>9.1e}  {}\n", layout, scheme, r.of.ranks, r.loss,
                        r.gradient, r.weight,
                        r.passed ? "passed" : "FAILED" + (r.first.empty() ? "" : ", first at " + r.first));
    auto parameters = nlohmann::ordered_json::array();
    for (const train::ParityDifference& p : r.parameters) {
      parameters.push_back({{"name", p.name}, {"gradient", p.gradient}, {"weight", p.weight}});
      if (std::max(p.gradient, p.weight) > options.how.bound)
        text += fmt::format("  {:<38}  {:>19.1e}{:>9.1e}\n", p.name, p.gradient, p.weight);
    }
    rows.push_back({{"layout", layout},
                    {"scheme", scheme},
                    {"ranks", r.of.ranks},
                    {"parameters", parameters},
                    {"loss", r.loss},
                    {"gradient", r.gradient},
                    {"weight", r.weight},
                    {"first", r.first},
                    {"passed", r.passed}});
  }
  const size_t compared = results.size() - refused;
  const bool passed = failed == 0 && compared > 0;  // a check of nothing shows nothing
  text += fmt::format("{} of {} equal one rank to {:.0e}, after {} steps\n", compared - failed, compared,
                      options.how.bound, options.how.steps);
  console.result(console.is_json()
                     ? json_text(nlohmann::ordered_json{
                           {"passed", passed}, {"compared", compared}, {"refused", refused}, {"rows", rows}})
                     : text);
  if (compared == 0) console.error(all_refused(results));
  return passed ? kSuccess : kCheckFailed;
}

// Under mpirun every process is a rank. One of them speaks, also of an error.
int run(const Options& options, Console& console, const Extensions& extensions) {
  const dist::Launch launch = train::this_launch();
  if (!launch.uses_mpi() && launch.size > 1)
    throw config::ConfigError(str("weft parity: ", launch.launcher, " started ", launch.size,
                                  " processes, which would all make the same check."),
                              "Start one process, whose ranks are threads, or use mpirun.");
  if (!launch.uses_mpi()) return run_rank(options, console, extensions);
  set_num_threads(launch.threads);
  const std::unique_ptr<dist::Communicator> world = dist::make_mpi_communicator();
  Options of_rank = options;
  of_rank.how.world = world.get();
  try {
    return run_rank(of_rank, console, extensions);
  } catch (const std::exception& error) {
    world->abort(error.what());
    if (world->is_speaker()) throw;
  }
  return kFailure;
}

}  // namespace

Action define_parity(Arguments& app) {
  auto options = std::make_shared<Options>();
  options->config.add(app, true);
  app.add_option("--ranks", options->ranks,
                 "Numbers of ranks that share each sequence: 2,3,4 or all processes of mpirun")
      .delimiter(',')
      .type_name("N,N");
  app.add_option("--layouts", options->layouts, "all, or some of contiguous, striped, zigzag, balanced")
      .delimiter(',')
      .type_name("NAME,NAME");
  app.add_option("--schemes", options->schemes, "all, or some of ring, all_gather, ulysses, ...")
      .delimiter(',')
      .type_name("NAME,NAME");
  app.add_option("--steps", options->how.steps, "Steps of training before weights are compared")
      .range(int64_t{0}, int64_t{1} << 20)
      .capture_default_str()
      .type_name("N");
  app.add_option("--block", options->how.block, "Tokens per block of striped and balanced layouts")
      .range(int64_t{1}, int64_t{1} << 30)
      .capture_default_str()
      .type_name("N");
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
