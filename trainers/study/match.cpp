#include "trainers/study/match.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainers/run/memory_estimate.h"
#include "trainers/study/arm_checks.h"
#include "weft/core/dry_run.h"

namespace weft::study {

namespace {

using config::ConfigError;

struct Counts {
  int64_t params = 0, idle = 0;                // idle: those that a token does not choose
  double flops_per_token = 0, head_flops = 0;  // of the output head alone
};

// Without look-up tables of tokens and the output head: all arms have the same ones, and a grid reads no data to know the vocabulary.
Counts counts_of(const config::Loaded& config) {
  constexpr int64_t kAnyVocab = 256;
  const config::Model& m = config.experiment.model();
  const int64_t vocab = m.has_vocab() ? m.vocab() : kAnyVocab, table = vocab * m.dim();
  LanguageModelOptions options = train::model_options(config, vocab);
  options.fixed_text.resize(static_cast<size_t>(options.context));  // for mixers that read one
  DryRun dry;
  const LanguageModel model(options, Rng(0));
  const double head = 6 * static_cast<double>(table);
  return {.params = model.num_params() - (m.embedding().tied() ? 1 : 2) * table,
          .idle = model.num_params() - model.num_active_params(),
          .flops_per_token = model.flops_per_token() - head,
          .head_flops = head};
}

std::string width_override(const Grid& grid, const Combination& arm, int64_t width) {
  const config::Ffn& ffn = arm.experiment.model().ffn();
  if (ffn.has_swiglu()) return str("model.ffn.swiglu.hidden=", width);
  if (ffn.has_gelu()) return str("model.ffn.gelu.hidden=", width);
  const std::string problem = str(grid.file, ": match: ", arm.name);
  if (ffn.has_none())
    throw ConfigError(
        problem + " has no feed-forward network (model.ffn={none{}}), whose width could be changed.",
        "Make that arm the baseline, match with { flops: .. by: tokens }, or leave match out and make the "
        "arms equal by dim or layers.");
  throw ConfigError(problem + " has a feed-forward network whose width is not known.",
                    "Leave match out, or use swiglu or gelu.");
}

int64_t width_of(const Grid& grid, const Combination& arm) {
  width_override(grid, arm, 1);  // refuses what cannot be changed
  const config::Ffn& ffn = arm.experiment.model().ffn();
  return ffn.has_swiglu() ? ffn.swiglu().hidden() : ffn.gelu().hidden();
}

void set_counts(Combination& arm, const Counts& counts) {
  arm.params = counts.params, arm.idle_params = counts.idle, arm.flops_per_token = counts.flops_per_token;
}

// What is made equal, of one token or of a whole training.
double quantity(const Grid& grid, const Combination& arm, const Counts& counts) {
  if (grid.match->what == Match::What::parameters) return static_cast<double>(counts.params);
  return (counts.flops_per_token + counts.head_flops) * static_cast<double>(arm.experiment.train().tokens());
}

const char* unit(const Grid& grid) { return grid.match->what == Match::What::parameters ? "parameters" : "FLOPs"; }

void check_tolerance(const Grid& grid, const Combination& arm, double here, double target, const std::string& at,
                     const std::string& fix) {
  const double difference = std::abs(here - target) / target;
  if (difference <= grid.match->tolerance) return;
  throw ConfigError(
      fmt::format("{}: match: {} has {:.10g} {} at {}, {:.2f} % from the baseline's {:.10g}; {:.2f} % are allowed.",
                  grid.file, arm.name, here, unit(grid), at, 100 * difference, target, 100 * grid.match->tolerance),
      fix);
}

// Both are straight lines in the width. The smallest width is a quarter of the model's: a narrower network is another architecture.
void match_width(const Grid& grid, Combination& arm, const Combination& baseline, double target,
                 const cli::Extensions& own) {
  const int64_t step = grid.match->multiple;
  const auto count = [&](int64_t width) {
    return counts_of(config_of(grid, arm, {width_override(grid, arm, width)}, own));
  };
  const int64_t width_here = width_of(grid, arm);
  const double here = quantity(grid, arm, count(width_here)), wider = quantity(grid, arm, count(width_here + step));
  const double slope = (wider - here) / static_cast<double>(step);
  const int64_t width =
      std::llround((static_cast<double>(width_here) + (target - here) / slope) / static_cast<double>(step)) * step;
  const int64_t smallest = std::max(step, arm.experiment.model().dim() / 4);
  const config::Ffn& of_baseline = baseline.experiment.model().ffn();
  const std::string fix =
      str("Raise match.", grid.match->what == Match::What::parameters ? "parameters" : "flops",
          ", lower match.multiple, or ",
          of_baseline.has_none() ? "give the baseline, which has no feed-forward network, more layers or another dim."
                                 : "give the baseline a wider feed-forward network.");
  if (width < smallest)
    throw ConfigError(
        fmt::format(
            "{}: match: {} would need a feed-forward network of width {}, below the smallest of {}, to have the "
            "baseline's {:.10g} {}.",
            grid.file, arm.name, width, smallest, target, unit(grid)),
        fix);
  const config::Loaded matched = config_of(grid, arm, {width_override(grid, arm, width)}, own);
  const Counts counts = counts_of(matched);
  check_tolerance(grid, arm, quantity(grid, arm, counts), target, str("width ", width), fix);
  arm.overrides.push_back(width_override(grid, arm, width));
  arm.experiment = matched.experiment;
  arm.off_by = quantity(grid, arm, counts) / target - 1;
  arm.matched_ffn = width;
  set_counts(arm, counts);
}

// Whole steps.
void match_tokens(const Grid& grid, Combination& arm, double target, const Counts& counts, const cli::Extensions& own) {
  const double per_token = counts.flops_per_token + counts.head_flops;
  const int64_t step = arm.experiment.train().tokens_per_step();
  const int64_t tokens = std::max<int64_t>(1, std::llround(target / per_token / static_cast<double>(step))) * step;
  check_tolerance(grid, arm, per_token * static_cast<double>(tokens), target, str(tokens, " tokens"),
                  "Raise match.flops, or train with more steps: tokens come in whole steps.");
  arm.overrides.push_back(str("train.tokens=", tokens));
  arm.off_by = per_token * static_cast<double>(tokens) / target - 1;
  arm.experiment = config_of(grid, arm, {}, own).experiment;
}

// Training tokens are matched with the output head, which is as large as the vocabulary.
void require_vocab(const Grid& grid, const Combination& arm) {
  const config::Data& data = arm.experiment.data();
  if (arm.experiment.model().has_vocab() || (!data.has_task() && data.tokenizer().has_bytes())) return;
  throw ConfigError(str(grid.file, ": match by tokens: ", arm.name,
                        " has no model.vocab, and a grid reads no data to know how large the output head is."),
                    "Set model.vocab in the config: the number of the tokenizer's ids, or more.");
}

}  // namespace

void count_and_match(const Grid& grid, Arms& arms, const cli::Extensions& own) {
  std::vector<Counts> counts;
  for (Combination& arm : arms.all) {
    counts.push_back(of_arm(grid, arm.name, [&] { return counts_of(config_of(grid, arm, {}, own)); }));
    set_counts(arm, counts.back());
  }
  if (!grid.match) return;
  if (grid.match->changes_tokens)
    for (const Combination& arm : arms.all) require_vocab(grid, arm);
  const double target = quantity(grid, arms.all[arms.baseline], counts[arms.baseline]);
  for (size_t a = 0; a < arms.all.size(); ++a) {
    if (a == arms.baseline) continue;
    if (grid.match->changes_tokens) match_tokens(grid, arms.all[a], target, counts[a], own);
    else match_width(grid, arms.all[a], arms.all[arms.baseline], target, own);
  }
}

std::string match_text(const Grid& grid, const Arms& arms) {
  if (!grid.match) return {};
  const Match& match = *grid.match;
  double most = 0;
  for (const Combination& arm : arms.all) most = std::max(most, std::abs(arm.off_by.value_or(0)));
  return fmt::format("matched in {} within {:g} %, by {}: arms are off by up to {:.2f} %",
                     match.what == Match::What::parameters ? "parameters" : "operations of a training",
                     100 * match.tolerance,
                     match.changes_tokens ? "whole steps" : str("widths in multiples of ", match.multiple), 100 * most);
}

}  // namespace weft::study
