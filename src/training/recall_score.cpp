#include "weft/training/recall_score.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "weft/core/error.h"
#include "weft/training/token_loss.h"

namespace weft {

namespace {

constexpr int64_t kLogitsAtOnce = int64_t{1} << 24;

// Whether the largest logit is the target's. Where one is NaN, or the largest is infinite, the model gives no answer.
bool is_hit(std::span<const float> logits, int32_t target) {
  if (std::any_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x); })) return false;
  const auto most = std::max_element(logits.begin(), logits.end());
  return std::isfinite(*most) && most - logits.begin() == target;
}

double loss_of(std::span<const float> logits, int32_t target) {
  const double most = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0;
  for (float x : logits) sum += std::exp(static_cast<double>(x) - most);
  return most + std::log(sum) - static_cast<double>(logits[static_cast<size_t>(target)]);
}

struct Counter {
  RecallScore score;
  std::vector<HitCount> groups;
  std::vector<HitCount> rows = {};

  void add(const data::RecallRows& batch, const Tensor& logits_BTV);
  RecallScore finished(const std::vector<std::string>& names);
};

void Counter::add(const data::RecallRows& batch, const Tensor& logits_BTV) {
  const int64_t T = batch.groups.size(1), V = logits_BTV.size(2);
  const auto* logits = logits_BTV.data<float>();
  const auto *targets = batch.batch.targets.data<int32_t>(), *group = batch.groups.data<int32_t>();
  for (int64_t i = 0; i < batch.groups.num_elements(); ++i) {
    if (i % T == 0) rows.push_back({});
    if (targets[i] < 0) continue;
    const std::span of_token(logits + i * V, static_cast<size_t>(V));
    const bool hits = is_hit(of_token, targets[i]);
    for (HitCount* count : {&score.all, &rows.back(), &groups[static_cast<size_t>(group[i])]})
      ++count->targets, count->hits += hits;
    score.nats += loss_of(of_token, targets[i]);
  }
}

RecallScore Counter::finished(const std::vector<std::string>& names) {
  score.rows = static_cast<int64_t>(rows.size());
  double squares = 0;
  for (const HitCount& row : rows) {
    score.whole_rows += row.hits == row.targets;
    const double residual = static_cast<double>(row.hits) - score.all.share() * static_cast<double>(row.targets);
    squares += residual * residual;
  }
  const auto n = static_cast<double>(rows.size()), targets = static_cast<double>(score.all.targets);
  score.standard_error =
      rows.size() > 1 ? std::sqrt(n / (n - 1) * squares) / targets : std::numeric_limits<double>::quiet_NaN();
  score.nats /= targets;
  for (size_t g = 0; g < names.size(); ++g)
    if (groups[g].targets > 0) score.groups.emplace_back(names[g], groups[g]);
  score.by_row = std::move(rows);
  return score;
}

}  // namespace

RecallScore score_recall(LanguageModel& model, const data::RecallTask& task, int64_t rows, int64_t batch) {
  const LanguageModelOptions& o = model.options();
  WEFT_CHECK(rows > 0, str("recall: ", rows, " rows"), "score at least one");
  WEFT_CHECK(task.vocab() <= o.vocab,
             str("recall: ", task.name(), " has ", task.vocab(), " ids, and the model ", o.vocab),
             "lower the task's vocabulary, or use a model with more ids");
  WEFT_CHECK(o.position != PositionKind::learned || task.context() <= o.context,
             str("recall: rows of ", task.context(), " tokens, and the model has learned positions for ", o.context),
             "use rows of the training context");
  const std::vector<std::string> names = task.group_names();
  const int64_t at_once = batch > 0 ? batch : std::max<int64_t>(1, kLogitsAtOnce / (task.context() * o.vocab));
  Counter counter{.score = {}, .groups = std::vector<HitCount>(names.size())};
  Upload upload(default_device());
  NoGrad no_grad;
  for (int64_t first = 0; first < rows; first += at_once) {
    const data::RecallRows part = task.rows(data::Split::test, first, std::min(at_once, rows - first));
    Tokens tokens(token_data(part.batch, false, first, upload));
    counter.add(part, cast(Var(model.logits(upload(part.batch.tokens), tokens)), kF32).value().cpu());
  }
  return counter.finished(names);
}

}  // namespace weft
