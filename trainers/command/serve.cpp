// weft serve RUN [path=value]... [--port N --host H --max-batch N --max-wait-ms N --context N --device D --threads N]: completions over HTTP.
#include <algorithm>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/config/row_bound.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/console/stop_signal.h"
#include "trainers/run/prompt_start.h"
#include "trainers/run/session.h"
#include "trainers/serve/api.h"
#include "trainers/serve/request_error.h"
#include "weft/core/error.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  ConfigArguments run;
  serve::HttpOptions http{.port = 8000};
  serve::BatcherOptions batcher;
  int64_t max_wait_ms = 5, context = 0;
  std::string device;
  int threads = 0;
};

std::vector<std::string> overrides_of(const Options& options) {
  std::vector<std::string> overrides = options.run.overrides();
  if (!options.device.empty()) overrides.push_back("train.device=" + options.device);
  if (options.threads > 0) overrides.push_back(str("train.threads=", options.threads));
  return overrides;
}

// Tries rows of one length and of two: with a mixer that cannot read padding, each completion is a batch of its own.
int64_t batch_of(const Options& options, LanguageModel& model, serve::ServedModel& target, Console& console) {
  const int64_t vocab = target.tokenizer->vocab_size();
  auto problem = [&](int64_t max_tokens, std::initializer_list<size_t> lengths) {
    std::vector<serve::GenerationRow> rows;
    for (size_t length : lengths)
      rows.push_back({.prompt = std::vector<int32_t>(length, 0), .max_tokens = max_tokens, .temperature = 0});
    try {
      serve::generate(model, rows, {.vocab = vocab});
      return std::string();
    } catch (const Error& error) { return error.problem(); }
  };
  if (const std::string text = problem(1, {1}); !text.empty())
    fail("serve: " + text, "choose another run or checkpoint");
  const std::string decoding = model.options().context > 1 ? problem(2, {1}) : "";
  target.can_continue = decoding.empty();
  if (!decoding.empty()) console.message("prompts are scored, and continued by one token at most: " + decoding);
  if (options.batcher.max_batch == 1 || model.options().context < 3) return 1;
  const std::string padding = problem(decoding.empty() ? 2 : 1, {1, 2});
  if (padding.empty()) return options.batcher.max_batch;
  console.message("one completion at a time: " + padding);
  return 1;
}

std::string name_of(const std::string& folder) {
  const std::filesystem::path path = std::filesystem::absolute(folder).lexically_normal();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

serve::ServedModel served(const Options& options, const train::LoadedRun& run) {
  const LanguageModelOptions& model = run.model->options();
  const int64_t context = options.context > 0 ? options.context : model.context;
  const std::string bound = config::bound_of_rows(run.config.experiment.model());
  if (context > model.context && !bound.empty())
    throw config::ConfigError(str("--context ", context, ": the model ", bound, " for ", model.context, " tokens."),
                              str("Use at most ", model.context, "."));
  const std::optional<int32_t> start = train::prompt_start(run.config.experiment.data());
  return {.name = name_of(run.folder),
          .address = options.run.file(),
          .step = run.step,
          .context = context,
          .tokenizer = run.data.tokenizer,
          .end_of_text = run.data.end_of_text,
          .first_token = start ? start : run.data.first_token};
}

// A prompt that the model can read, for the example.
std::string some_prompt(const serve::ServedModel& model) {
  try {
    return model.encode("The").empty() ? "[0]" : "\"The\"";
  } catch (const serve::RequestError&) { return "[0]"; }  // ids alone, or an alphabet without these letters
}

void announce(const Options& options, const serve::ServedModel& model, int port, Console& console) {
  const std::string host =
      options.http.host.find(':') == std::string::npos ? options.http.host : "[" + options.http.host + "]";
  const std::string url = str("http://", host, ":", port);
  if (console.is_json()) {
    console.result(json_text(nlohmann::ordered_json{{"run", options.run.file()},
                                                    {"model", model.name},
                                                    {"step", model.step},
                                                    {"url", url},
                                                    {"port", port},
                                                    {"context", model.context},
                                                    {"max_batch", options.batcher.max_batch}}));
    return;
  }
  console.result(str("serving ", model.name, " (step ", model.step, ", context ", model.context, ") at ", url, "\n",
                     "curl ", url, "/v1/completions -d '{\"prompt\": ", some_prompt(model),
                     ", \"max_tokens\": ", model.can_continue ? 8 : 1, "}'\n"));
}

int run(Options options, Console& console, const Extensions& extensions) {
  train::LoadedRun run = train::load_run(options.run.file(), overrides_of(options), console, extensions);
  serve::ServedModel model = served(options, run);
  const int64_t vocab = run.data.tokenizer->vocab_size();
  options.batcher.max_batch = batch_of(options, *run.model, model, console);
  options.batcher.max_wait_s = 1e-3 * static_cast<double>(options.max_wait_ms);
  options.http.threads = static_cast<int>(std::max<int64_t>(64, 2 * options.batcher.max_batch));
  std::mutex log_mutex;
  if (console.verbosity() == Verbosity::verbose)
    options.http.log = [&](const std::string& line) {
      std::lock_guard lock(log_mutex);
      console.detail(line);
    };
  train::StopSignal signal(false);
  serve::Batcher batcher(options.batcher);
  serve::HttpServer server(options.http, serve::api_routes(model, batcher));
  server.start();
  if (options.http.host != "127.0.0.1" && options.http.host != "localhost" && options.http.host != "::1")
    console.message("whoever reaches " + options.http.host + " may ask: there are no passwords here");
  announce(options, model, server.port(), console);
  batcher.work(
      [&](std::span<const serve::GenerationRow> rows) {
        return serve::generate(*run.model, rows,
                               {.vocab = vocab, .end_of_text = run.data.end_of_text, .should_stop = [] {
                                  return train::StopSignal::was_raised();
                                }});
      },
      [] { return train::StopSignal::was_raised(); });
  console.message(str(train::StopSignal::name(), ": ending"));
  server.stop();
  return kSuccess;
}

}  // namespace

Action define_serve(Arguments& app) {
  auto options = std::make_shared<Options>();
  options->run.add_run(app);
  app.add_option("--port", options->http.port, "Port; 0: one that is free, which is printed")
      .range(int64_t{0}, int64_t{65535})
      .capture_default_str()
      .type_name("N");
  app.add_option("--host", options->http.host, "Address to listen on; the default is reached from this machine alone")
      .capture_default_str()
      .type_name("ADDRESS");
  app.add_option("--max-batch", options->batcher.max_batch, "Completions that are computed together")
      .range(int64_t{1}, int64_t{1024})
      .capture_default_str()
      .type_name("N");
  app.add_option("--max-wait-ms", options->max_wait_ms, "How long the first request of a batch waits for others")
      .range(int64_t{0}, int64_t{10000})
      .capture_default_str()
      .type_name("MS");
  app.add_option("--context", options->context,
                 "Most tokens of a prompt and its completion; default the training context")
      .range(int64_t{1}, int64_t{1} << 24)
      .type_name("N")
      .takes_size();
  app.add_option("--device", options->device, "auto, cpu or cuda: as train.device=").type_name("DEVICE");
  app.add_option("--threads", options->threads, "Threads of the computation: as train.threads=")
      .range(int64_t{1}, int64_t{1024})
      .type_name("N");
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
