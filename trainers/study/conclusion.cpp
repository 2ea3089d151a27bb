#include "trainers/study/conclusion.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace weft::study {

namespace {

std::string count_text(double x) {
  return x < 1e6 ? fmt::format("{:.3g} thousand", x / 1e3) : fmt::format("{:.3g} million", x / 1e6);
}

struct Verdicts {
  std::string better, worse, open, few;  // arms, with their differences; few: of too few runs
  double resolves = 0;                   // the largest of the open ones
};

Verdicts verdicts_of(const StudyData& data, const std::vector<Difference>& differences) {
  const bool is_accuracy = data.grid.metrics[0].find("accuracy") != std::string::npos;
  Verdicts v;
  size_t next = 0;
  for (size_t a = 0; a < data.arms.all.size(); ++a) {
    if (a == data.arms.baseline) continue;
    const Difference& d = differences[next++];
    if (d.count == 0) continue;
    const bool is_clear = d.adjusted_p && *d.adjusted_p < 1 - data.grid.confidence;
    std::string& list = d.count < kFewestForAnInterval ? v.few
                        : !is_clear                    ? v.open
                        : (d.mean > 0) == is_accuracy  ? v.better
                                                       : v.worse;
    list += fmt::format("{}{} ({:+.4f})", list.empty() ? "" : ", ", data.arms.all[a].name, d.mean);
    if (!is_clear && d.resolves) v.resolves = std::max(v.resolves, *d.resolves);
  }
  return v;
}

}  // namespace

std::string conclusion_of(const StudyData& data, const std::vector<Difference>& differences) {
  const auto has_any = std::ranges::any_of(differences, [](const Difference& d) { return d.count > 0; });
  if (!has_any) return {};
  const Combination& baseline = data.arms.all[data.arms.baseline];
  const double tokens = static_cast<double>(baseline.experiment.train().tokens());
  std::string text = fmt::format("These runs have {} parameters without embeddings, {} training tokens and {} seed{}. ",
                                 count_text(static_cast<double>(baseline.params)), count_text(tokens),
                                 data.grid.seeds.size(), data.grid.seeds.size() == 1 ? "" : "s");
  const Verdicts v = verdicts_of(data, differences);
  const std::string& metric = data.grid.metrics[0];
  if (static_cast<int64_t>(data.grid.seeds.size()) < kFewestForAnInterval) {
    text +=
        fmt::format("Fewer than {} seeds cannot tell a difference in {} from noise. ", kFewestForAnInterval, metric);
  } else {
    if (!v.better.empty())
      text += fmt::format("At this size, {} is better than {} for {}. ", metric, baseline.name, v.better);
    if (!v.worse.empty())
      text += fmt::format("At this size, {} is worse than {} for {}. ", metric, baseline.name, v.worse);
    if (!v.open.empty())
      text += fmt::format("No difference was found for {}{}. ", v.open,
                          v.resolves > 0
                              ? fmt::format(": a true one above {:.4f} would have shown in 80 of 100 such studies, a "
                                            "smaller one may be there",
                                            v.resolves)
                              : "");
    if (!v.few.empty()) text += fmt::format("Too few runs count to tell {} from noise. ", v.few);
  }
  text += "They cannot tell what larger models, longer trainings, other texts or other widths would give";
  text += data.tuning ? ". " : ", nor whether an arm wants another learning rate: none was tuned. ";
  return text + "The intervals say what other seeds would change, and nothing else.\n";
}

}  // namespace weft::study
