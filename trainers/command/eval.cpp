// weft eval RUN [path=value]... [--lengths 1024,4096]: validation loss of a run's checkpoint.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/command/stored_result.h"
#include "trainers/config/config_error.h"
#include "trainers/config/translate.h"
#include "trainers/console/console.h"
#include "trainers/run/evaluate.h"
#include "trainers/run/session.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  ConfigArguments run;
  std::vector<int64_t> lengths;
};

nlohmann::ordered_json to_json(const Evaluation& e, int64_t length) {
  nlohmann::ordered_json row{{"length", length}};
  if (e.has_targets()) row.update({{"loss", e.loss()}, {"loss_se", e.standard_error}, {"ppl", e.perplexity()}});
  if (e.num_bytes > 0) row["bpb"] = e.bits_per_byte();
  row["targets"] = e.num_targets;
  return row;
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  for (int64_t length : options.lengths)
    if (length < 1)
      throw config::ConfigError(fmt::format("--lengths {}: not a length.", length), "Use lengths of 1 token or more.");
  train::LoadedRun run = train::load_run(options.run.file(), options.run.overrides(), console, extensions);
  WEFT_CHECK(run.data.validation, "eval: the run's config names no validation data",
             "add data.val.path=FILE after the run");
  const auto& e = run.config.experiment;
  std::vector<int64_t> lengths = options.lengths.empty() ? std::vector<int64_t>{e.model().context()} : options.lengths;
  auto rows = nlohmann::ordered_json::array();
  std::string text;
  for (int64_t length : lengths) {
    if (e.model().position().has_learned() && length > e.model().context())
      throw config::ConfigError(
          fmt::format("--lengths {}: the model has learned positions for {} tokens.", length, e.model().context()),
          "Use lengths between 1 and the training context.");
    Evaluation result =
        weft::evaluate(*run.model, run.data.windows(length),
                       {.batch = std::max<int64_t>(1, e.train().micro_batch() * e.model().context() / length),
                        .keeps_documents_apart = run.data.keeps_documents_apart(),
                        .byte_lengths = run.data.byte_lengths,
                        .attention = train::attention_backend(e)});
    rows.push_back(to_json(result, length));
    text += fmt::format("length {}: {} ({} targets)\n", length, result.text(), result.num_targets);
  }
  nlohmann::ordered_json out{{"run", run.folder}, {"step", run.step}, {"validation", rows}};
  if (!run.warning.empty()) out["warning"] = run.warning;
  std::vector<std::string> arguments = options.run.overrides();
  if (lengths != std::vector<int64_t>{e.model().context()})
    arguments.push_back(fmt::format("--lengths {}", fmt::join(lengths, ",")));
  const std::string name = result_name(fmt::format("step-{:08}", run.step), arguments);
  print_and_store(console, std::move(out), text, run.folder, name, arguments);
  return kSuccess;
}

}  // namespace

Action define_eval(Arguments& app) {
  auto options = std::make_shared<Options>();
  options->run.add_run(app);
  app.add_option("--lengths", options->lengths, "Lengths of the windows; default the training context")
      .delimiter(',')
      .one_word()
      .type_name("N,N")
      .takes_size();
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
