// weft bench [NAME|all] [--device cpu|cuda] [--quick] [--runs N] [--baseline FILE], weft bench ring [--masks LIST] ...: speed beside the limit
// measured in the same run.
#include "tools/bench/bench.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/conformance/own_parts.h"
#include "trainers/console/console.h"
#include "trainers/run/environment.h"
#include "trainers/run/system_info.h"
#include "weft/core/error.h"
#include "weft/core/stream.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  std::string name = "all", baseline, device = "cpu";
  bool quick = false, plan = false;
  int64_t runs = 1;
  std::string mixer, rows;
  bench::RingOptions ring;
};

constexpr double kTolerance = 0.1;  // the share of a baseline's ratio that noise may take

// What `weft bench --json` wrote: ratios, since they compare across machines that are differently busy.
nlohmann::json read_baseline(const std::string& path) {
  std::ifstream in(path);
  if (!in)
    throw config::ConfigError("--baseline " + path + ": cannot be read.", "Name a file that weft bench --json wrote.");
  nlohmann::json json = nlohmann::json::parse(in, nullptr, false);
  bool is_good = json.is_object() && json.contains("rows") && json["rows"].is_array();
  for (size_t i = 0; is_good && i < json["rows"].size(); ++i) {
    const nlohmann::json& row = json["rows"][i];
    is_good = row.is_object() && row.contains("name") && row["name"].is_string() && row.contains("shape") &&
              row["shape"].is_string() && row.contains("dtype") && row["dtype"].is_string() &&
              row.contains("threads") && row["threads"].is_number_integer() && row.contains("ratio") &&
              row["ratio"].is_number();
  }
  if (!is_good)
    throw config::ConfigError("--baseline " + path + ": not what weft bench --json writes.",
                              "Make it with weft bench NAME --json > FILE.");
  return json["rows"];
}

// Rows that lost more than kTolerance against the baseline, and rows that it does not have; exit code 4 if any is slower.
int compare(const std::vector<bench::Row>& rows, const nlohmann::json& baseline, Console& console) {
  int num_compared = 0, num_slower = 0;
  for (const bench::Row& row : rows)
    for (const nlohmann::json& old : baseline) {
      if (old["name"] != row.name || old["shape"] != row.shape || old["dtype"] != str(row.dtype) ||
          old["threads"] != row.threads)
        continue;
      ++num_compared;
      double was = old["ratio"].get<double>();
      if (row.ratio >= was * (1 - kTolerance)) continue;
      ++num_slower;
      console.message(
          str("slower: ", row.name, " ", row.shape, " ", row.dtype, ": ratio ", row.ratio, ", baseline ", was));
    }
  console.message(str(num_compared, " of ", rows.size(), " rows compared with the baseline, ", num_slower,
                      " slower by more than ", 100 * kTolerance, " %"));
  if (num_compared == 0)
    throw config::ConfigError("--baseline: it has none of these rows.",
                              "Use a baseline of the same benchmark, threads and --quick.");
  return num_slower > 0 ? kCheckFailed : kSuccess;
}

void check_name(const std::string& name) {
  std::vector<std::string> names{"all"};
  for (const bench::Family& family : bench::families()) names.emplace_back(family.name);
  config::check_choice("weft bench", name, names, "benchmark");
}

// Before anything is measured: the family that has mixers comes last.
void check_mixer(const Options& options, const Extensions& extensions) {
  if (options.mixer.empty()) return;
  if (options.name != "all" && options.name != "train")
    throw config::ConfigError(str("--mixer ", options.mixer, ": weft bench ", options.name, " has no mixers."),
                              "Use weft bench train --mixer NAME.");
  std::vector<std::string> names{"all"};
  for (const MixerRow& row : mixer_table()) names.push_back(row.name);
  for (const MixerRow& row : extensions.mixers) names.push_back(row.name);
  for (const conformance::OwnPart& part : conformance::own_parts(extensions)) names.push_back(part.row.name);
  config::check_choice("--mixer", options.mixer, names, "mixer");
}

// The options of `ring` that were given.
std::vector<std::string> given_of(const bench::RingOptions& ring) {
  std::vector<std::string> names;
  for (const auto& [name, is_given] : {std::pair("--kernels", !ring.kernels.empty()),
                                       {"--schemes", !ring.schemes.empty()},
                                       {"--masks", !ring.masks.empty()},
                                       {"--layouts", !ring.layouts.empty()},
                                       {"--tokens", !ring.tokens.empty()},
                                       {"--ranks", !ring.ranks.empty()},
                                       {"--documents", !ring.documents.empty()},
                                       {"--picture", !ring.picture.empty()}})
    if (is_given) names.emplace_back(name);
  return names;
}

// Options that a family does not read, and names that it does not have.
void check_options(const Options& options, const bench::BenchOptions& how) {
  if (options.plan && options.name != "ring")
    throw config::ConfigError(str("--plan: weft bench ", options.name, " has no plan."), "Use weft bench ring --plan.");
  if (const std::vector<std::string> given = given_of(options.ring); options.name != "ring" && !given.empty())
    throw config::ConfigError(str(config::join(given, ", "), given.size() > 1 ? ": options" : ": an option",
                                  " of weft bench ring alone; weft bench ", options.name,
                                  " has no ranks, schemes or masks, and lengths of its own."),
                              str("Leave ", given.size() > 1 ? "them" : "it", " out, or use weft bench ring."));
  if (!options.rows.empty() && options.name != "train")
    throw config::ConfigError(str("--rows ", options.rows, ": weft bench ", options.name, " measures all its rows."),
                              "Use weft bench train --rows TEXT.");
  if (options.plan && options.runs > 1)
    throw config::ConfigError(str("--runs ", options.runs, ": --plan measures nothing."), "Leave one of them out.");
  const std::string devices[] = {"cpu", "cuda"};
  config::check_choice("--device", options.device, devices, "device");
  if (options.name == "all") return;
  const bench::Family& family = bench::family(options.name);
  if (options.device == "cuda" && *family.why_not_on_gpu)
    throw config::ConfigError(str("--device cuda: not for weft bench ", family.name, ": ", family.why_not_on_gpu, "."),
                              "Use --device cpu.");
  if (!family.check) return;
  try {
    family.check(how);
  } catch (const Error& error) { throw config::ConfigError(error.problem(), error.fix()); }
}

std::vector<bench::Row> measure(const Options& options, const bench::BenchOptions& how, Console& console) {
  if (options.name != "all") return bench::family(options.name).run(how);
  std::vector<bench::Row> rows;
  for (const bench::Family& family : bench::families()) {
    if (options.device == "cuda" && *family.why_not_on_gpu) {
      console.message(str("bench ", family.name, ": left out: ", family.why_not_on_gpu));
      continue;
    }
    console.message(str("bench ", family.name, ": ", family.what));
    for (bench::Row& row : family.run(how)) rows.push_back(std::move(row));
  }
  return rows;
}

// The command line, as it has to be given again for the same rows.
std::string command_text(const Options& options) {
  std::string text = "weft bench " + options.name;
  auto add = [&](const char* option, const std::string& value) {
    if (!value.empty()) text += str(" ", option, " ", value.find(' ') == std::string::npos ? value : "'" + value + "'");
  };
  auto add_list = [&](const char* option, const auto& values) {
    std::string all;
    for (const auto& value : values) all += str(all.empty() ? "" : ",", value);
    add(option, all);
  };
  if (options.device != "cpu") add("--device", options.device);
  add("--mixer", options.mixer), add("--rows", options.rows);
  if (options.plan) text += " --plan";
  const bench::RingOptions& ring = options.ring;
  add_list("--kernels", ring.kernels), add_list("--schemes", ring.schemes), add_list("--masks", ring.masks);
  add_list("--layouts", ring.layouts), add_list("--tokens", ring.tokens), add_list("--ranks", ring.ranks);
  add("--documents", ring.documents);
  if (options.quick) text += " --quick";
  if (options.runs > 1) text += str(" --runs ", options.runs);
  return text;
}

// What a page says above its figures. Asked before anything is measured, so that the load is that of others.
bench::Facts facts_of(const Options& options) {
  const SystemInfo info = system_info();
  bench::Facts facts = {{"cpu", info.cpu},
                        {"kernels", info.multiplies_bf16 ? info.isa + ", products of bf16" : info.isa},
                        {"cores", str(info.cores)},
                        {"threads", str(info.threads)}};
  if (options.device == "cuda") {
    facts.emplace_back("device", info.devices.at(1));
    for (auto& library : gpu_libraries()) facts.push_back(std::move(library));
  }
  facts.push_back(info.libraries.at(0));  // oneDNN
  facts.emplace_back("compiler", info.compiler);
  facts.emplace_back("weft",
                     str(info.version, " ", info.build_type, info.sanitizers.empty() ? "" : " " + info.sanitizers));
  facts.emplace_back("commit", train::build_commit());
  std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char date[32];
  std::strftime(date, sizeof date, "%Y-%m-%d %H:%M UTC", &utc);
  facts.emplace_back("date", date);
  double load = 0;
  facts.emplace_back("load", getloadavg(&load, 1) == 1 ? fmt::format("{:.2f}", load) : "unknown");
  facts.emplace_back("command", command_text(options));
  return facts;
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  check_name(options.name);
  check_mixer(options, extensions);
  bench::BenchOptions how{.quick = options.quick,
                          .plan_only = options.plan,
                          .rows = options.rows,
                          .ring = options.ring,
                          .mixer = options.mixer,
                          .mixers = extensions.mixers};
  for (conformance::OwnPart& part : conformance::own_parts(extensions))
    how.parts.emplace_back(part.row.name, std::move(part.put_into));
  const bool has_device = options.device != "cuda" || num_cuda_devices() > 0;
  if (has_device) set_default_device(options.device == "cuda" ? Device::cuda() : Device::cpu());
  check_options(options, how);
  if (!has_device) throw config::ConfigError("--device cuda: " + cuda_problem(), "Use --device cpu.");
  nlohmann::json baseline = options.baseline.empty() ? nlohmann::json() : read_baseline(options.baseline);
  const bench::Facts facts = facts_of(options);
  std::vector<std::vector<bench::Row>> runs;
  for (int64_t i = 1; i <= options.runs; ++i) {
    if (options.runs > 1) console.message(str("run ", i, " of ", options.runs));
    bench::forget_gemm_peaks();
    runs.push_back(measure(options, how, console));
  }
  const std::vector<bench::Row> rows = options.runs > 1 ? bench::middle_rows(runs) : std::move(runs[0]);
  if (console.is_json()) bench::print_json(rows, facts, stdout);
  else bench::print_table(rows, facts, stdout);
  return baseline.is_null() ? kSuccess : compare(rows, baseline, console);
}

}  // namespace

Action define_bench(Arguments& app) {
  auto options = std::make_shared<Options>();
  std::string names;
  for (const bench::Family& family : bench::families()) names += str(family.name, ", ");
  app.add_option("NAME", options->name, str("Family of benchmarks: ", names, "or all")).type_name("NAME");
  app.add_option("--device", options->device, "cpu or cuda").type_name("DEVICE");
  app.add_option("--mixer", options->mixer, "train: steps with this row of the table of mixers, or all")
      .type_name("NAME");
  app.add_option("--rows", options->rows, "train: only rows that have each word of TEXT in name, shape or dtype")
      .type_name("TEXT");
  app.add_flag("--plan", options->plan, "ring: the work that layouts promise, without measurements");
  auto axis = [&app](const char* name, auto& values, const char* help) {
    app.add_option(name, values, help).delimiter(',').type_name("LIST");
  };
  bench::RingOptions& ring = options->ring;
  axis("--kernels", ring.kernels, "ring: kernels, separated by commas, or all");
  axis("--schemes", ring.schemes, "ring: schemes, or all");
  axis("--masks", ring.masks, "ring: masks, or all");
  axis("--layouts", ring.layouts, "ring: layouts, or all");
  axis("--tokens", ring.tokens, "ring: lengths of the row");
  axis("--ranks", ring.ranks, "ring: numbers of ranks, each a thread");
  app.add_option("--documents", ring.documents,
                 "ring: file with a line from,to,share per range of lengths of documents")
      .type_name("FILE");
  app.add_option("--picture", ring.picture, "ring: SVG file of layouts and hop plans, to write").type_name("FILE");
  app.add_flag("--quick", options->quick, "At most 30 s for a family");
  app.add_option("--runs", options->runs,
                 "Measure so many times: rows of the middle ratio, with the lowest and the highest")
      .range(int64_t{1}, int64_t{100})
      .type_name("N");
  app.add_option("--baseline", options->baseline,
                 "File of an earlier weft bench --json: exit code 4 if a ratio fell by more than a tenth")
      .type_name("FILE");
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
