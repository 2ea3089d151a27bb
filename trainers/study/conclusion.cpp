#include "trainers/study/conclusion.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainers/study/report_parts.h"

namespace weft::study {

namespace {

std::string count_text(double x) {
  return x < 1e6 ? fmt::format("{:.3g} thousand", x / 1e3) : fmt::format("{:.3g} million", x / 1e6);
}

std::string range_text(double low, double high) {
  const std::string first = count_text(low), last = count_text(high);
  return first == last ? first : str(first, " to ", last);
}

// How large the runs are, and how unlike each other.
struct Sizes {
  double fewest_params = HUGE_VAL, most_params = 0, fewest_tokens = HUGE_VAL, most_tokens = 0;
  double other_params = 0, other_tokens = 0;  // the largest share by which an arm differs from the baseline

  explicit Sizes(const Arms& arms) {
    const Combination& baseline = arms.all[arms.baseline];
    const auto tokens_of = [](const Combination& arm) { return static_cast<double>(arm.experiment.train().tokens()); };
    const double of_params = static_cast<double>(baseline.params), of_tokens = tokens_of(baseline);
    for (const Combination& arm : arms.all) {
      const double params = static_cast<double>(arm.params), tokens = tokens_of(arm);
      fewest_params = std::min(fewest_params, params), most_params = std::max(most_params, params);
      fewest_tokens = std::min(fewest_tokens, tokens), most_tokens = std::max(most_tokens, tokens);
      if (of_params > 0) other_params = std::max(other_params, std::abs(params / of_params - 1));
      if (of_tokens > 0) other_tokens = std::max(other_tokens, std::abs(tokens / of_tokens - 1));
    }
  }
  // Empty where arms are alike.
  std::string unlike_text(const std::string& baseline) const {
    constexpr double kAlike = 0.01;
    std::string what;
    if (other_params > kAlike) what = fmt::format("{:.3g} % other parameters", 100 * other_params);
    if (other_tokens > kAlike)
      what += fmt::format("{}{:.3g} % other training tokens", what.empty() ? "" : " and ", 100 * other_tokens);
    return what.empty() ? "" : fmt::format("Arms have up to {} than {}, and may differ by that. ", what, baseline);
  }
};

struct Verdicts {
  std::string lower, higher, open, few;  // arms, with their differences; few: of too few runs
  std::string unpaired;                  // arms with runs, none of a seed of the baseline's
  std::string lost;                      // arms without a value, of which runs are lost
  double resolves = 0;                   // the largest of the open ones
};

bool has_lost_runs(const StudyData& data, size_t arm) {
  for (size_t i = 0; i < data.cells.size(); ++i)
    if (data.cells[i].combination == arm && data.results[i] && data.results[i]->state != CellResult::State::complete)
      return true;
  return false;
}

// A complete one has a value of every arm that has any.
std::string seeds_text(const StudyData& data) {
  std::vector<bool> is_complete(data.grid.seeds.size(), true);
  bool is_any = false;
  for (size_t a = 0; a < data.arms.all.size(); ++a) {
    const std::vector<double> values = values_of(data, a, data.grid.metrics[0]);
    if (mean_of(values).count == 0) continue;
    is_any = true;
    for (size_t s = 0; s < values.size(); ++s) is_complete[s] = is_complete[s] && std::isfinite(values[s]);
  }
  const size_t all = is_complete.size();
  const auto complete = is_any ? std::ranges::count(is_complete, true) : 0;
  const std::string seeds = str(all, all == 1 ? " seed" : " seeds");
  if (complete == std::ssize(is_complete)) return seeds;
  return str(seeds, ", of which ", complete == 0 ? std::string("none") : str(complete), complete > 1 ? " are" : " is",
             " complete");
}

Verdicts verdicts_of(const StudyData& data, const std::vector<Difference>& differences) {
  Verdicts v;
  size_t next = 0;
  for (size_t a = 0; a < data.arms.all.size(); ++a) {
    const bool has_value = mean_of(values_of(data, a, data.grid.metrics[0])).count > 0;
    if (!has_value && has_lost_runs(data, a)) v.lost += (v.lost.empty() ? "" : ", ") + data.arms.all[a].name;
    if (a == data.arms.baseline) continue;
    const Difference& d = differences[next++];
    if (d.count == 0) {
      if (has_value) v.unpaired += (v.unpaired.empty() ? "" : ", ") + data.arms.all[a].name;
      continue;
    }
    const bool is_clear = d.adjusted_p && *d.adjusted_p < 1 - data.grid.confidence;
    std::string& list = d.count < kFewestForAnInterval ? v.few : !is_clear ? v.open : d.mean > 0 ? v.higher : v.lower;
    list += fmt::format("{}{} ({:+.4f})", list.empty() ? "" : ", ", data.arms.all[a].name, d.mean);
    if (!is_clear && d.resolves) v.resolves = std::max(v.resolves, *d.resolves);
  }
  return v;
}

std::string found_text(const StudyData& data, const std::string& arms, Direction side) {
  if (arms.empty()) return {};
  const std::string& metric = data.grid.metrics[0];
  const Direction good = direction_of(metric);
  const char* word = good == Direction::neither ? (side == Direction::lower ? "lower" : "higher")
                     : good == side             ? "better"
                                                : "worse";
  return fmt::format("At this size, {} is {} than {} for {}. ", metric, word, data.arms.all[data.arms.baseline].name,
                     arms);
}

}  // namespace

std::string conclusion_of(const StudyData& data, const std::vector<Difference>& differences) {
  const Verdicts v = verdicts_of(data, differences);
  const auto has_any = std::ranges::any_of(differences, [](const Difference& d) { return d.count > 0; });
  if (!has_any && v.unpaired.empty() && v.lost.empty()) return {};
  const Combination& baseline = data.arms.all[data.arms.baseline];
  const Sizes sizes(data.arms);
  std::string text = fmt::format("These runs have {} parameters without embeddings, {} training tokens and {}. ",
                                 range_text(sizes.fewest_params, sizes.most_params),
                                 range_text(sizes.fewest_tokens, sizes.most_tokens), seeds_text(data));
  const std::string& metric = data.grid.metrics[0];
  if (static_cast<int64_t>(data.grid.seeds.size()) < kFewestForAnInterval) {
    text +=
        fmt::format("Fewer than {} seeds cannot tell a difference in {} from noise. ", kFewestForAnInterval, metric);
  } else {
    const bool is_higher_first = direction_of(metric) == Direction::higher;  // the better ones
    if (is_higher_first) text += found_text(data, v.higher, Direction::higher);
    text += found_text(data, v.lower, Direction::lower);
    if (!is_higher_first) text += found_text(data, v.higher, Direction::higher);
    if (!v.open.empty())
      text += fmt::format("No difference was found for {}{}. ", v.open,
                          v.resolves > 0
                              ? fmt::format(": a true one above {:.4f} would have shown in 80 of 100 such studies, a "
                                            "smaller one may be there",
                                            v.resolves)
                              : "");
    if (!v.few.empty()) text += fmt::format("Too few runs count to tell {} from noise. ", v.few);
  }
  if (!v.unpaired.empty())
    text += fmt::format("No seed has a run of {} and one of {}, so nothing says how they differ. ", baseline.name,
                        v.unpaired);
  if (!v.lost.empty())
    text += fmt::format("Nothing can be said of {}: no run has a {}, and runs are lost. ", v.lost, metric);
  text += sizes.unlike_text(baseline.name);
  if (const size_t origins = origins_of(data).size(); origins > 1)
    text += fmt::format("The runs come from {} builds or machines, and what arms differ by may be theirs. ", origins);
  text += "They cannot tell what larger models, longer trainings, other texts or other widths would give";
  const bool has_tuned_rate = data.tuning && data.grid.tune->path.ends_with(".lr");
  text += has_tuned_rate ? ". " : ", nor whether an arm wants another learning rate: none was tuned. ";
  return text + "The intervals say what other seeds would change, and nothing else.\n";
}

}  // namespace weft::study
