// weft config CONFIG [path=value]... [--as text|json] [--explain PATH]; weft config --reference
#include "trainers/config/config.h"

#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/check.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/run/context_choice.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  ConfigArguments config;
  std::string format = "text", explained;
  bool wants_reference = false;
};

void print(const std::string& text, const char* key, Console& console) {
  console.result(console.is_json() ? json_text(nlohmann::ordered_json{{key, text}}) : text);
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  using config::ConfigError;
  if (options.wants_reference) {
    print(config::reference(), "reference", console);
    return kSuccess;
  }
  if (options.config.file().empty()) {
    if (options.explained.empty())
      throw ConfigError("weft config: the argument CONFIG is missing.",
                        "Name a config, or use --explain PATH or --reference.");
    print(config::explain(options.explained, nullptr), "explanation", console);
    return kSuccess;
  }
  const std::string formats[] = {"text", "json"};
  config::check_choice("--as", options.format, formats, "format");
  config::Loaded loaded = config::load(options.config.file(), options.config.overrides());
  config::check_end_of_text(loaded);
  loaded.own = extensions;
  train::check_context(loaded);
  bool is_json = options.format == "json" || console.is_json();
  if (!options.explained.empty()) print(config::explain(options.explained, &loaded), "explanation", console);
  else console.result(is_json ? config::to_json(loaded.experiment) : config::to_text(loaded.experiment));
  return kSuccess;
}

}  // namespace

Action define_config(Arguments& app) {
  auto options = std::make_shared<Options>();
  options->config.add(app, false);
  app.add_option("--as", options->format, "Format of the resolved config: text or json").type_name("FORMAT");
  app.add_option("--explain", options->explained, "Explain one field; with CONFIG also its value and where it was set")
      .type_name("PATH");
  app.add_flag("--reference", options->wants_reference, "Print every field as a Markdown table");
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
