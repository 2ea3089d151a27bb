// weft convert RUN --to KIND --out RUN [path=value]...: a trained softmax model with other parts in it, to train on.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/run/address.h"
#include "trainers/run/conversion.h"

namespace weft::cli {

namespace {

using Json = nlohmann::ordered_json;

// The other way of conversions has commands of its own.
void refuse_other_words(const std::string& word) {
  for (const auto& [name, call] :
       {std::pair("hf-import", "weft import FOLDER --out RUN"), std::pair("hf-export", "weft export RUN --out FOLDER")})
    if (word == name)
      throw config::ConfigError(fmt::format("weft convert: {} is a command of its own.", word),
                                fmt::format("Write {}.", call));
}

int convert(const train::ConversionOptions& options, Console& console) {
  const train::Converted done = train::convert_run(options, console);
  if (console.is_json()) {
    console.result(json_text(Json{{"run", options.out},
                                  {"checkpoint", done.checkpoint},
                                  {"parameters", done.num_params},
                                  {"taken", done.taken},
                                  {"new", done.fresh},
                                  {"left", done.left},
                                  {"lost", done.lost}}));
    return kSuccess;
  }
  std::string text = fmt::format("{} parameters in {}\n{} tensors taken, {} new, {} without a place\n", done.num_params,
                                 done.checkpoint, done.taken.size(), done.fresh.size(), done.left.size());
  for (const auto& [what, names] : {std::pair("new", &done.fresh), std::pair("without a place", &done.left),
                                    std::pair("lost, which no tensor held", &done.lost)})
    for (const std::string& name : *names) text += fmt::format("  {}: {}\n", what, name);
  console.result(text);
  return kSuccess;
}

}  // namespace

Action define_convert(Arguments& app) {
  auto options = std::make_shared<train::ConversionOptions>();
  auto kind = std::make_shared<std::string>();
  app.add_option("RUN", options->run, train::kRunForms).type_name("RUN[@STEP]").required();
  app.add_option("OVERRIDES", options->overrides, "path=value: changes a field of the new run's config")
      .type_name("path=value");
  app.add_option("--to", *kind, "gates, moh, delta_residual or gated_slots").type_name("KIND");
  app.add_option("--out", options->out, "Run folder to make").type_name("RUN");
  app.add_option("--slots", options->slots, "gated_slots: slots of each head")
      .range(int64_t{1}, int64_t{1} << 20)
      .capture_default_str()
      .type_name("N")
      .takes_size();
  return [options, kind, app](Console& console, const Extensions& extensions) {
    refuse_other_words(options->run);
    for (const auto& [option, value] : {std::pair("--to", kind.get()), std::pair("--out", &options->out)})
      if (value->empty())
        throw config::ConfigError(fmt::format("weft convert: {} is missing.", option), "See weft convert --help.");
    const std::vector<std::string> names(std::begin(train::kConversionNames), std::end(train::kConversionNames));
    config::check_choice("--to", *kind, names, "conversion");
    options->kind = static_cast<train::ConversionKind>(std::find(names.begin(), names.end(), *kind) - names.begin());
    if (options->kind != train::ConversionKind::gated_slots && !app.order_of({"--slots"}).empty())
      throw config::ConfigError(fmt::format("--slots: --to {} makes no slots.", *kind),
                                "Leave it out, or use --to gated_slots.");
    options->own = extensions;
    return convert(*options, console);
  };
}

}  // namespace weft::cli
