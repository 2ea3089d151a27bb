// A layer whose matrix is read in another way than by its own product refuses an adapter when it is used. Here it is used without memory: a
// forward and a step of decoding, before anything is read or trained.
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "trainers/config/check.h"
#include "trainers/config/translate.h"
#include "weft/core/dry_run.h"
#include "weft/core/pattern.h"

namespace weft::config {

namespace {

// What the model's layers refuse; nothing if it runs.
std::optional<Error> problem_of(const LanguageModelOptions& options, bool is_decoding) {
  try {
    DryRun dry;
    NoGrad no_grad;
    const int64_t count = std::min<int64_t>(options.context, 2);
    LanguageModel model(options, Rng(0));
    Tokens tokens(plain_tokens(1, count), {.cache = is_decoding ? make_cache(1, options.context) : nullptr});
    model.logits(Tensor::zeros({1, count}, kI32, default_device()), tokens);
    return std::nullopt;
  } catch (const Error& error) { return error; }
}

// The first of the layers that the adapter matches and that takes none, with ": " behind it; empty: it matches none.
std::string refusing_layer(LanguageModelOptions options, const AdapterOptions& adapter, bool is_decoding) {
  options.adapters.clear();
  std::vector<std::string> names;
  {
    DryRun dry;
    LanguageModel model(options, Rng(0));
    for (const NamedModule& part : model.modules())
      if (dynamic_cast<const Linear*>(part.module) && matches_pattern(adapter.match, part.name))
        names.push_back(part.name);
  }
  for (const std::string& name : names) {
    options.adapters = {{.match = name, .rank = adapter.rank, .alpha = adapter.alpha}};
    if (problem_of(options, is_decoding)) return name + ": ";
  }
  return "";
}

}  // namespace

void check_adapters(const Loaded& config) {
  const Model& m = config.experiment.model();
  if (m.adapter_size() == 0 || is_dry_run()) return;
  std::optional<LanguageModelOptions> options;
  try {
    options = train::model_options(config, m.has_vocab() ? m.vocab() : 2);
  } catch (const Error&) { return; }  // of parts that the program has not named yet, or of what is said elsewhere
  options->context = std::min<int64_t>(options->context, 4096);  // says nothing about layers
  options->fixed_text.resize(static_cast<size_t>(options->context));
  const std::vector<AdapterOptions> all = options->adapters;
  for (bool is_decoding : {false, true})
    for (size_t i = 0; i < all.size(); ++i) {
      options->adapters = {all[i]};
      const std::optional<Error> problem = problem_of(*options, is_decoding);
      if (!problem) continue;
      options->adapters.clear();
      if (problem_of(*options, is_decoding)) break;  // not the adapter's
      refuse(config, str("model.adapter[", i, "].match"),
             str("is \"", all[i].match, "\": ", refusing_layer(*options, all[i], is_decoding), problem->problem(), "."),
             problem->fix());
    }
}

}  // namespace weft::config
