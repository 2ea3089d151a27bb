// weft sample RUN --prompt TEXT [--n N --tokens N --top-p P --temperature T --seed S] [--ranks N | --logits FILE]
#include "weft/models/sample.h"

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/run/address.h"
#include "trainers/run/prompt_start.h"
#include "trainers/run/rank_launch.h"
#include "trainers/run/session.h"
#include "weft/io/safetensors.h"
#include "weft/ops/elementwise.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  ConfigArguments run;
  std::string prompt, logits;
  int64_t count = 1, tokens = 200;
  std::optional<int> ranks = {};
  double top_p = 1, temperature = 0.8;
  uint64_t seed = 1;
};

struct Prompt {
  std::vector<int32_t> ids;
  std::optional<int32_t> first;  // stands before them
};

Prompt prompt_of(const train::LoadedRun& run, const std::string& text) {
  const std::optional<int32_t> start = train::prompt_start(run.config.experiment.data());
  if (start && text.empty()) return {{*start}, {}};
  return {train::prompt_ids(run.data, text), start ? start : run.data.first_token};
}

// What the model says behind each token that it reads, for other programs.
int write_logits(const train::LoadedRun& run, const Prompt& given, const std::string& path, Console& console) {
  std::vector<int32_t> prompt = given.ids;
  if (given.first) prompt.insert(prompt.begin(), *given.first);
  const auto count = static_cast<int64_t>(prompt.size());
  const Tensor ids = ops::to(Tensor::from(std::span<const int32_t>(prompt), {1, count}), default_device());
  Tokens tokens(plain_tokens(1, count, 0));
  const Tensor logits = run.model->logits(ids, tokens).cpu();
  io::write_safetensors(path, {{"ids", ids.cpu()}, {"logits", logits.reshape({count, -1})}});
  console.result(console.is_json()
                     ? json_text(nlohmann::ordered_json{{"run", run.folder}, {"step", run.step}, {"logits", path}})
                     : str("logits of ", count, " tokens in ", path, "\n"));
  return kSuccess;
}

// On every rank; the first one speaks.
int sample_run(const Options& options, const config::Loaded& config, dist::Communicator* world, Console& console) {
  const bool speaks = !world || world->rank() == 0;
  Console silent(Verbosity::quiet, false);
  train::LoadedRun run =
      train::load_on_ranks(options.run.file(), options.run.overrides(), speaks ? console : silent, config, world);
  const Prompt prompt = prompt_of(run, options.prompt);
  if (!options.logits.empty()) return write_logits(run, prompt, options.logits, console);
  const int64_t context = run.model->options().context;
  const int64_t given = static_cast<int64_t>(prompt.ids.size()) + (prompt.first ? 1 : 0);
  std::string warning = run.warning;
  if (given > context && forgets_beyond_context(*run.model)) {
    const std::string cut = str("warning: the prompt has ", given, " tokens, and the model reads the last ", context);
    if (speaks) console.message(cut);
    warning += str(warning.empty() ? "" : "; ", cut);
  }
  auto samples = nlohmann::ordered_json::array();
  std::string shown_prompt = data::show_utf8(run.data.tokenizer->decode(prompt.ids));
  for (int64_t i = 0; i < options.count; ++i) {
    auto ids = weft::sample(*run.model, prompt.ids,
                            {.tokens = options.tokens,
                             .temperature = options.temperature,
                             .top_p = options.top_p,
                             .seed = Rng(options.seed)[static_cast<uint64_t>(i)].key(),
                             .vocab = run.data.tokenizer->vocab_size(),
                             .end_of_text = run.data.end_of_text,
                             .first_token = prompt.first,
                             .ranks = world});
    if (!speaks) continue;
    std::string text = data::show_utf8(run.data.tokenizer->decode(ids));
    samples.push_back(text);
    if (!console.is_json()) console.result((i ? "---\n" : "") + shown_prompt + text + "\n");
  }
  if (speaks && console.is_json()) {
    nlohmann::ordered_json out{{"run", run.folder}, {"step", run.step}, {"prompt", shown_prompt}, {"samples", samples}};
    if (!warning.empty()) out["warning"] = warning;
    console.result(json_text(out));
  }
  return kSuccess;
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  config::Loaded config;
  auto prepare = [&] {
    config = train::config_of_run(options.run.file(), options.run.overrides(), extensions);
    return train::RankLaunch{.config = &config,
                             .folder = train::find_run(options.run.file()).folder + "/eval",
                             .check = [&](int ranks, const std::string& started_by) {
                               if (ranks > 1 && !options.logits.empty())
                                 throw config::ConfigError(str(started_by, ": --logits is written by one rank."),
                                                           "Start one process, without --ranks.");
                             }};
  };
  return train::run_on_ranks(console, options.ranks, prepare,
                             [&](dist::Communicator* world) { return sample_run(options, config, world, console); });
}

}  // namespace

Action define_sample(Arguments& app) {
  auto options = std::make_shared<Options>();
  options->run.add_run(app);
  app.add_option("--prompt", options->prompt, "Text to continue; default the start of the validation data")
      .type_name("TEXT");
  app.add_option("--n", options->count, "Number of samples")
      .range(int64_t{1}, int64_t{10000})
      .type_name("N")
      .takes_size();
  app.add_option("--tokens", options->tokens, "Length of a sample")
      .range(int64_t{1}, int64_t{10000000})
      .type_name("N")
      .takes_size();
  app.add_option("--top-p", options->top_p, "Draw among the most likely tokens with this probability")
      .check([](const std::string& text) {
        char* end = nullptr;
        const double p = std::strtod(text.c_str(), &end);
        return !text.empty() && *end == 0 && p > 0 && p <= 1 ? std::string() : "Value " + text + " not in (0, 1]";
      })
      .type_name("P");
  app.add_option("--temperature", options->temperature, "0: the most likely token").range(0.0, 1000.0).type_name("T");
  app.add_option("--logits", options->logits, "Writes the logits behind each token of the prompt instead of a sample")
      .type_name("FILE.safetensors");
  app.add_option("--ranks", options->ranks, "Ranks that share the keys of the text, as threads").type_name("N");
  app.add_option("--seed", options->seed, "Seed of the draws").type_name("S");
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
