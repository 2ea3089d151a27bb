#include "trainers/study/match.h"

#include <fmt/format.h>

#include <cmath>

#include "trainers/run/memory_estimate.h"
#include "weft/core/dry_run.h"

namespace weft::study {

namespace {

using config::ConfigError;

struct Counts {
  int64_t params = 0;
  double flops_per_token = 0;
};

// Without look-up tables of tokens and the output head: all arms have the same ones, and a grid reads no data to know the vocabulary.
Counts counts_of(const config::Loaded& config) {
  constexpr int64_t kAnyVocab = 256;
  const config::Model& m = config.experiment.model();
  const int64_t vocab = m.has_vocab() ? m.vocab() : kAnyVocab, table = vocab * m.dim();
  const LanguageModelOptions options = train::memory_subject(config, vocab, false).model;
  DryRun dry;
  const LanguageModel model(options, Rng(0));
  return {model.num_params() - (m.embedding().tied() ? 1 : 2) * table,
          model.flops_per_token() - 6 * static_cast<double>(table)};
}

config::Loaded loaded(const Grid& grid, const Combination& arm, const std::vector<std::string>& more,
                      const cli::Extensions& own) {
  std::vector<std::string> overrides = arm.overrides;
  overrides.insert(overrides.end(), more.begin(), more.end());
  overrides.push_back(str("seed=", grid.seeds[0]));
  config::Loaded config = config::read(grid.base, overrides);
  config.own = own;
  config::resolve(config);
  return config;
}

std::string width_override(const Grid& grid, const Combination& arm, int64_t width) {
  const config::Ffn& ffn = arm.experiment.model().ffn();
  if (ffn.has_swiglu()) return str("model.ffn.swiglu.hidden=", width);
  if (ffn.has_gelu()) return str("model.ffn.gelu.hidden=", width);
  throw ConfigError(str(grid.file, ": match: ", arm.name, " has a feed-forward network whose width is not known."),
                    "Leave match out, or use swiglu or gelu.");
}

int64_t width_of(const Combination& arm) {
  const config::Ffn& ffn = arm.experiment.model().ffn();
  return ffn.has_swiglu() ? ffn.swiglu().hidden() : ffn.gelu().hidden();
}

// Parameters are a straight line in the width. The smallest width is a quarter of the model's: a narrower network is another architecture.
void match(const Grid& grid, Combination& arm, int64_t target, const cli::Extensions& own) {
  const int64_t step = grid.match->multiple;
  const std::string known = width_override(grid, arm, width_of(arm));  // refuses what cannot be changed
  const auto count = [&](int64_t width) {
    return counts_of(loaded(grid, arm, {width_override(grid, arm, width)}, own));
  };
  const int64_t here = counts_of(loaded(grid, arm, {known}, own)).params, wider = count(width_of(arm) + step).params;
  const double slope = static_cast<double>(wider - here) / static_cast<double>(step);
  const double exact = static_cast<double>(width_of(arm)) + static_cast<double>(target - here) / slope;
  const int64_t width = std::llround(exact / static_cast<double>(step)) * step;
  const int64_t smallest = std::max(step, arm.experiment.model().dim() / 4);
  const std::string fix =
      "Raise match.parameters, lower match.multiple, or give the baseline a wider feed-forward network.";
  if (width < smallest)
    throw ConfigError(
        fmt::format(
            "{}: match: {} would need a feed-forward network of width {}, below the smallest of {}, to have the "
            "baseline's {} parameters.",
            grid.file, arm.name, width, smallest, target),
        fix);
  const config::Loaded matched = loaded(grid, arm, {width_override(grid, arm, width)}, own);
  const Counts counts = counts_of(matched);
  const double difference = std::abs(static_cast<double>(counts.params - target)) / static_cast<double>(target);
  if (difference > grid.match->parameters)
    throw ConfigError(
        fmt::format(
            "{}: match: {} has {} parameters at width {}, {:.2f} % from the baseline's {}; {:.2f} % are allowed.",
            grid.file, arm.name, counts.params, width, 100 * difference, target, 100 * grid.match->parameters),
        fix);
  arm.overrides.push_back(width_override(grid, arm, width));
  arm.experiment = matched.experiment;
  arm.params = counts.params, arm.flops_per_token = counts.flops_per_token, arm.matched_ffn = width;
}

}  // namespace

void count_and_match(const Grid& grid, Arms& arms, const cli::Extensions& own) {
  for (Combination& arm : arms.all) {
    const Counts counts = counts_of(loaded(grid, arm, {}, own));
    arm.params = counts.params, arm.flops_per_token = counts.flops_per_token;
  }
  if (!grid.match) return;
  const int64_t target = arms.all[arms.baseline].params;
  for (Combination& arm : arms.all)
    if (&arm != &arms.all[arms.baseline]) match(grid, arm, target, own);
}

}  // namespace weft::study
