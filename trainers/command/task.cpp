// weft task backcopy|trigger|regression|circuits [--mixer NAME]... [--steps N] [--seeds N]: attention sinks on tasks that need something to ignore,
// regression in context, and what heads learn from it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/tasks/circuits.h"
#include "trainers/tasks/regression.h"
#include "weft/core/error.h"
#include "weft/data/tokenize.h"
#include "weft/io/files.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  std::string task, text;
  std::vector<std::string> mixers;
  int64_t seeds = 3;
  std::optional<int> layers = {};
  tasks::Options each = {};
};

std::vector<tasks::Arm> chosen(const std::vector<std::string>& names, const Extensions& extensions) {
  std::vector<tasks::Arm> all = tasks::arms(), found;
  if (names.empty()) return all;
  for (const MixerRow& row : mixer_table()) all.push_back({std::string(row.name), row.make});
  for (const MixerRow& row : extensions.mixers) all.push_back({std::string(row.name), row});
  std::vector<std::string> known;
  for (const tasks::Arm& arm : all) known.push_back(arm.name);
  for (const std::string& name : names) {
    config::check_choice("--mixer", name, known, "mixer");
    found.push_back(*std::find_if(all.begin(), all.end(), [&](const tasks::Arm& arm) { return arm.name == name; }));
  }
  return found;
}

// An option that the task does not read is no part of what it did.
void check_options(const Options& o) {
  struct Own {
    const char* name;
    bool is_given;
    std::vector<std::string> readers;  // the tasks that read it
    const char* why;
  };
  const Own all[] = {
      {"--mixer", !o.mixers.empty(), {"backcopy", "trigger", "regression"}, "it trains heads of softmax attention"},
      {"--layers", o.layers.has_value(), {"backcopy", "trigger", "regression"}, "it trains one layer"},
      {"--piecewise", o.each.is_piecewise, {"regression"}, "only regression has maps"},
      {"--text", !o.text.empty(), {"backcopy"}, "only backcopy reads a text"}};
  for (const Own& own : all)
    if (own.is_given && std::ranges::find(own.readers, o.task) == own.readers.end())
      throw config::ConfigError(str("weft task ", o.task, ": ", own.name, ", but ", own.why, "."),
                                str("Leave ", own.name, " out, or run weft task ", own.readers.back(), "."));
}

// Backcopy trains a language model. The others train mixers alone, to which no model gives its embedding or a fixed sequence.
void check_mixers(const std::string& task, const std::vector<tasks::Arm>& arms) {
  for (const tasks::Arm& arm : arms) {
    const int64_t dim = task == "trigger" ? 16 : task == "regression" ? 32 : 64;
    const std::unique_ptr<Mixer> mixer = arm.make({.dim = dim, .context = 64, .layers = 1}, Rng(1));
    if (mixer->fixed_sequence() == FixedSequence::text)
      throw config::ConfigError(
          str("weft task ", task, ": --mixer ", arm.name, " reads a fixed text, of which the task has none."),
          "Choose another mixer, or train a model with it (weft train).");
    if (task == "backcopy") continue;
    const bool reads_model = mixer->fixed_sequence() != FixedSequence::none || arm.name == "static_embedding";
    if (reads_model)
      throw config::ConfigError(str("weft task ", task, ": --mixer ", arm.name,
                                    " reads what a language model gives it, and the task trains mixers alone."),
                                "Choose another mixer, or run weft task backcopy.");
  }
}

std::vector<tasks::Arm> numbers_of_heads() { return {{"1", {}}, {"2", {}}, {"4", {}}}; }

// Mean over seeds and its standard error, which one seed does not have.
struct Estimate {
  double mean = 0;
  std::optional<double> error = {};
};
Estimate estimate(const std::vector<double>& values) {
  auto n = static_cast<double>(values.size());
  Estimate e;
  for (double x : values) e.mean += x / n;
  double squares = 0;
  for (double x : values) squares += (x - e.mean) * (x - e.mean);
  if (values.size() > 1) e.error = std::sqrt(squares / (n - 1) / n);
  return e;
}

std::string to_text(const Estimate& e) {
  return fmt::format("{:.4g}", e.mean) + (e.error ? fmt::format(" +- {:.2g}", *e.error) : "");
}

nlohmann::ordered_json to_json(const Estimate& e) {
  nlohmann::ordered_json json{{"mean", e.mean}, {"standard_error", nullptr}};
  if (e.error) json["standard_error"] = *e.error;
  return json;
}

std::string text_of(const std::string& path) {
  std::string text = io::read_file(path);
  data::require_text(text, path);
  return text;
}

// What is known of an arm, as columns of the table. Errors by the number of pairs before are a table of their own.
struct ArmFigures {
  std::string name;
  std::vector<std::string> names;
  std::vector<Estimate> values;
};

bool is_by_pairs(const std::string& figure) {
  return std::ranges::any_of(tasks::kAfter, [&](std::string_view start) { return figure.starts_with(start); });
}

std::string head_of(const std::string& first, const std::vector<std::string>& columns) {
  std::string head = "| " + first + " |", line = "\n|---|";
  for (const std::string& column : columns) head += " " + column + " |", line += "---|";
  return head + line + "\n";
}

// The errors that start with these words, one after the other.
std::string errors_of(const ArmFigures& arm, std::string_view start, const std::string& label) {
  std::string row = "| " + label + " |";
  for (size_t i = 0; i < arm.names.size(); ++i)
    if (arm.names[i].starts_with(start)) row += fmt::format(" {:.3g} |", arm.values[i].mean);
  return row + "\n";
}

std::string tables_of(const std::vector<ArmFigures>& arms, const std::string& kind, int64_t seeds) {
  std::vector<std::string> columns{"seeds"}, pairs;
  for (const std::string& name : arms[0].names) {
    if (!is_by_pairs(name)) columns.push_back(name);
    else if (name.starts_with(tasks::kAfter[0])) pairs.push_back(name.substr(tasks::kAfter[0].size()));
  }
  std::string text = head_of(kind, columns);
  for (const ArmFigures& arm : arms) {
    text += fmt::format("| {} | {} |", arm.name, seeds);
    for (size_t i = 0; i < arm.names.size(); ++i)
      if (!is_by_pairs(arm.names[i])) text += " " + to_text(arm.values[i]) + " |";
    text += "\n";
  }
  if (pairs.empty()) return text;
  text += str("\n", head_of("squared error after so many pairs", pairs));
  for (const ArmFigures& arm : arms) text += errors_of(arm, tasks::kAfter[0], arm.name);
  return text + errors_of(arms[0], tasks::kAfter[1], "a gradient step") + errors_of(arms[0], tasks::kAfter[2], "ridge");
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  const std::string tasks[] = {"backcopy", "trigger", "regression", "circuits"};
  config::check_choice("weft task", options.task, tasks, "task");
  const bool is_backcopy = options.task == "backcopy", is_circuits = options.task == "circuits";
  check_options(options);
  const std::string kind = is_circuits ? "heads" : "mixer";
  tasks::Bigram bigram;
  if (is_backcopy)
    bigram = options.text.empty() ? tasks::random_bigram(64, Rng(1)["bigram"])
                                  : tasks::bigram_of_text(text_of(options.text));
  const std::vector<tasks::Arm> all = is_circuits ? numbers_of_heads() : chosen(options.mixers, extensions);
  if (!is_circuits) check_mixers(options.task, all);
  auto rows = nlohmann::ordered_json::array();
  std::vector<ArmFigures> arms;
  for (const tasks::Arm& arm : all) {
    ArmFigures& found = arms.emplace_back(ArmFigures{.name = arm.name, .names = {}, .values = {}});
    std::vector<std::vector<double>> values;
    for (int64_t seed = 1; seed <= options.seeds; ++seed) {
      tasks::Options each = options.each;
      each.seed = static_cast<uint64_t>(seed);
      each.layers = options.layers.value_or(1);
      tasks::Figures figures = is_backcopy                 ? tasks::backcopy(arm.make, bigram, each)
                               : options.task == "trigger" ? tasks::trigger(arm.make, each)
                               : is_circuits               ? tasks::circuits(std::stoll(arm.name), each)
                                                           : tasks::regression(arm.make, each);
      found.names.clear();
      values.resize(figures.size());
      for (size_t i = 0; i < figures.size(); ++i) {
        found.names.push_back(figures[i].first);
        values[i].push_back(figures[i].second);
      }
      console.detail(fmt::format("{}, seed {}", arm.name, seed));
    }
    nlohmann::ordered_json row{{kind, arm.name}, {"seeds", options.seeds}};
    for (size_t i = 0; i < values.size(); ++i)
      row[found.names[i]] = to_json(found.values.emplace_back(estimate(values[i])));
    rows.push_back(row);
  }
  console.result(console.is_json() ? json_text(nlohmann::ordered_json{{"task", options.task}, {"rows", rows}})
                                   : tables_of(arms, kind, options.seeds));
  return kSuccess;
}

}  // namespace

Action define_task(Arguments& app) {
  auto o = std::make_shared<Options>();
  app.add_option("TASK", o->task,
                 "backcopy (Bigram-Backcopy), trigger (trigger-conditional mean), regression (in context) or circuits "
                 "(what heads learn from regression)")
      .required()
      .type_name("TASK");
  app.add_option("--mixer", o->mixers,
                 "softmax, relu, sigmoid, off_by_one, sink_logit, key_bias, gate, or a row of the table; all of the "
                 "first if none is named")
      .type_name("NAME")
      .one_word();
  app.add_flag("--piecewise", o->each.is_piecewise,
               "regression: a map that is linear on each side of a plane through 0, and another on each");
  app.add_option("--text", o->text, "backcopy: take the bigram from this text instead of a random one")
      .type_name("FILE");
  app.add_option("--steps", o->each.steps, "Training steps (2000; trigger 5000; regression and circuits 3000)")
      .range(int64_t{1}, int64_t{1000000})
      .type_name("N");
  app.add_option("--layers", o->layers, "Layers (1), of all but circuits")
      .range(int64_t{1}, int64_t{16})
      .type_name("N");
  app.add_option("--lr", o->each.lr, "Learning rate (3e-3; regression 1e-3; circuits 1e-2)")
      .range(1e-8, 1.0)
      .type_name("X");
  app.add_option("--seeds", o->seeds, "Trainings per mixer")
      .range(int64_t{1}, int64_t{1000})
      .capture_default_str()
      .type_name("N");
  return [o](Console& console, const Extensions& extensions) { return run(*o, console, extensions); };
}

}  // namespace weft::cli
