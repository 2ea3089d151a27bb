// weft check [--mixer NAME|all] [--check NAME|all] [--full] [--table] [--page FILE]: the conformance suite.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/config/options_text.h"
#include "trainers/conformance/conformance.h"
#include "trainers/conformance/ranks_table.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "weft/core/parallel.h"

namespace weft::cli {

namespace {

using conformance::Result;
using conformance::Verdict;

struct Options {
  std::string mixer = "all", check = "all", page = {};
  bool is_table = false, is_full = false;
};

struct Counts {
  size_t passed = 0, failed = 0;
  std::map<std::string, std::vector<std::string>> unsupported = {};  // by reason: who

  explicit Counts(const std::vector<Result>& results) {
    for (const Result& r : results) {
      if (r.verdict == Verdict::passed) ++passed;
      else if (r.verdict == Verdict::failed) ++failed;
      else unsupported[str(r.check, ": ", r.reason)].push_back(r.variant);
    }
  }
};

std::string line_of(const Result& r) {
  return fmt::format("{:<24} {:<10} {:<11} {}\n", r.variant, r.check, conformance::name_of(r.verdict), r.reason);
}

std::string failures(const std::vector<Result>& results) {
  std::string text;
  for (const Result& r : results)
    if (r.verdict == Verdict::failed) text += line_of(r);
  return text;
}

std::string summary(std::string_view what, const std::vector<Result>& results) {
  Counts counts(results);
  std::set<std::string> variants;
  for (const Result& r : results) variants.insert(r.variant);
  size_t unsupported = results.size() - counts.passed - counts.failed;
  std::string text = fmt::format("conformance: {} {}, {} checks: {} passed, {} failed, {} unsupported\n",
                                 variants.size(), what, results.size(), counts.passed, counts.failed, unsupported);
  for (const auto& [reason, who] : counts.unsupported)
    text += fmt::format("  {:>3} {} ({}{})\n", who.size(), reason, who[0], who.size() > 1 ? ", ..." : "");
  return text;
}

// "" or what a page lacks of the table of ranks.
std::string missing_in(const std::string& page, const std::vector<Result>& results) {
  std::ifstream file(page);
  if (!file) throw config::ConfigError(str("--page ", page, " cannot be read."), "Give the page that holds the table.");
  const std::string text{std::istreambuf_iterator<char>(file), {}}, table = conformance::ranks_table(results);
  if (text.find(table) != std::string::npos) return "";
  for (size_t begin = 0, end = 0; begin < table.size(); begin = end) {
    end = table.find('\n', begin) + 1;
    if (text.find(table.substr(begin, end - begin)) == std::string::npos)
      return str(page, " lacks this line of `weft check --check ranks --table`:\n", table.substr(begin, end - begin));
  }
  return str(page,
             " has the table of `weft check --check ranks --table` in another order, or with other lines in it\n");
}

// Markdown for docs/mixers.md: a row per variant, a column per check.
std::string table(const std::vector<Result>& results, const std::vector<MixerRow>& rows) {
  std::vector<std::string> checks = conformance::check_names();
  std::string text = "| mixer | equation | config | source | cost | parameters |", rule = "|---|---|---|---|---|---|";
  for (const std::string& check : checks) {
    text += " " + check + " |";
    rule += "---|";
  }
  text += "\n" + rule + "\n";
  for (const MixerRow& row : rows) {
    auto is_of_row = [&](const Result& r) { return r.variant == row.name; };
    if (std::none_of(results.begin(), results.end(), is_of_row)) continue;
    auto mixer = row({.dim = 16, .context = 16, .layers = 4}, Rng(1));
    text += fmt::format("| `{}` | `{}` | `{}` | {} | {} | {} |", row.name, row.equation, train::config_text(row),
                        row.source, row.cost.empty() ? "attention" : row.cost, mixer->num_params());
    for (const std::string& check : checks) {
      auto r = std::find_if(results.begin(), results.end(),
                            [&](const Result& x) { return is_of_row(x) && x.check == check; });
      text += r == results.end()              ? " |"
              : r->verdict == Verdict::passed ? " yes |"
              : r->verdict == Verdict::failed ? " FAILED |"
                                              : " - |";
    }
    text += "\n";
  }
  return text;
}

std::string json_of(const std::vector<Result>& results, bool passed, const std::string& table) {
  auto list = nlohmann::ordered_json::array();
  for (const Result& r : results)
    list.push_back({{"variant", r.variant},
                    {"check", r.check},
                    {"result", conformance::name_of(r.verdict)},
                    {"reason", r.reason}});
  nlohmann::ordered_json out{{"passed", passed}, {"results", list}};
  if (!table.empty()) out["table"] = table;
  return json_text(out);
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  std::vector<MixerRow> rows = all_mixers(extensions);
  std::vector<std::string> names;
  for (const MixerRow& row : rows) names.push_back(row.name);
  names.insert(names.begin(), "all");
  names.emplace_back("option_pairs");
  config::check_choice("--mixer", options.mixer, names, "mixer");
  std::vector<std::string> checks = conformance::check_names();
  checks.insert(checks.begin(), "all");
  config::check_choice("--check", options.check, checks, "check");
  conformance::Options how{.variant = options.mixer,
                           .check = options.check,
                           .references = extensions.references,
                           .covers_product = options.is_full};
  set_num_threads(1);  // inputs are tiny: waiting for another thread would take longer than the work
  bool prints_lines = !options.is_table && !console.is_json();
  how.on_result = [&](const Result& r) {
    if (prints_lines) console.result(line_of(r));
  };
  std::vector<Result> results, option_pairs;
  if (options.mixer != "option_pairs") results = conformance::check_mixers(rows, how);
  how.on_result = {};
  if (options.mixer == "all" || options.mixer == "option_pairs")
    option_pairs = conformance::check_option_pairs(softmax_option_pairs(), how);
  std::string markdown;
  if (options.is_table) markdown = options.check == "ranks" ? conformance::ranks_table(results) : table(results, rows);
  if (!markdown.empty() && !console.is_json()) console.result(markdown);
  if (prints_lines) console.result(failures(option_pairs));
  if (prints_lines && !option_pairs.empty()) console.result(summary("pairs of options", option_pairs));
  if (prints_lines && !results.empty()) console.result(summary("variants", results));
  if (prints_lines) console.result(conformance::ranks_summary(results));
  const std::string missing = options.page.empty() ? "" : missing_in(options.page, results);
  if (!missing.empty()) console.error(missing);
  results.insert(results.end(), option_pairs.begin(), option_pairs.end());
  const Counts counts(results);
  const bool has_checked = counts.passed + counts.failed > 0;  // a check of nothing shows nothing
  const bool passed = has_checked && counts.failed == 0 && missing.empty();
  if (console.is_json()) console.result(json_of(results, passed, markdown));
  if (!has_checked)
    console.error(
        fmt::format("weft check: nothing was checked: --mixer {} does not support --check {}.\n"
                    "       Name another --mixer or --check.",
                    options.mixer, options.check));
  return passed ? kSuccess : kCheckFailed;
}

}  // namespace

Action define_check(Arguments& app) {
  auto options = std::make_shared<Options>();
  app.add_option("--mixer", options->mixer, "Which mixer, or all").type_name("NAME");
  app.add_option("--check", options->check, "Which check, or all").type_name("NAME");
  app.add_flag(
      "--table", options->is_table,
      "A table in Markdown instead of one line per check: of mixers, or with --check ranks of what ran on ranks");
  app.add_flag("--full", options->is_full, "ranks: every layout with every scheme and number of ranks");
  app.add_option("--page", options->page, "A page that must hold the table of ranks: docs/parallel.md")
      .type_name("FILE");
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
