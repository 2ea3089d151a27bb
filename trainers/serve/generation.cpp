// B rows, T tokens of a step, D model width, V ids of the model.
#include "trainers/serve/generation.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "trainers/console/stop_signal.h"
#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/models/sample.h"

namespace weft::serve {

namespace {

constexpr int64_t kLogitsAtOnce = int64_t{1} << 22;

TokenScore score_of(std::span<const float> logits, int32_t id, int64_t top, int64_t vocab) {
  double largest = -INFINITY, sum = 0;
  for (float x : logits) largest = std::max(largest, static_cast<double>(x));
  for (float x : logits) sum += std::exp(static_cast<double>(x) - largest);
  WEFT_CHECK(std::isfinite(sum), str("serve: logits of ", logits.size(), " ids are not finite"),
             "the model's weights are damaged or diverged");
  const double log_sum = largest + std::log(sum);
  auto logprob = [&](int32_t i) { return static_cast<double>(logits[static_cast<size_t>(i)]) - log_sum; };
  TokenScore score{.logprob = logprob(id)};
  std::vector<int32_t> order(static_cast<size_t>(top > 0 ? vocab : 0));
  std::iota(order.begin(), order.end(), 0);
  const auto kept = order.begin() + std::min<int64_t>(top, static_cast<int64_t>(order.size()));
  std::partial_sort(order.begin(), kept, order.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  for (auto i = order.begin(); i != kept; ++i) score.top.emplace_back(*i, logprob(*i));
  return score;
}

class Batch {
 public:
  Batch(LanguageModel& model, std::span<const GenerationRow> rows, const GenerationOptions& options)
      : model_(model), rows_(rows), options_(options), made_(rows.size()), going_(rows.size()) {
    std::iota(going_.begin(), going_.end(), size_t{0});
    int64_t most = 0;
    for (const GenerationRow& row : rows) {
      WEFT_CHECK(!row.prompt.empty(), "generate: a prompt has no tokens", "give at least one");
      longest_ = std::max(longest_, length(row));
      most = std::max(most, row.max_tokens);
    }
    is_padded_ = std::any_of(rows.begin(), rows.end(), [&](const GenerationRow& r) { return length(r) < longest_; });
    slots_ = longest_ + std::max<int64_t>(0, most - 1);
    if (most > 1) cache_ = make_cache(static_cast<int64_t>(rows.size()), slots_);
  }

  std::vector<Generation> run() {
    NoGrad no_grad;
    check_stop();
    Tensor hidden_BTD = read_prompts();
    score_prompts(hidden_BTD);
    std::vector<int32_t> last;
    for (size_t b = 0; b < rows_.size(); ++b)
      last.push_back(static_cast<int32_t>(static_cast<int64_t>(b) * longest_ + length(rows_[b]) - 1));
    for (int64_t step = 0;; ++step) {
      take(step, logits(hidden_BTD, last));
      if (going_.empty()) return std::move(made_);
      check_stop();
      hidden_BTD = read_new(step);
      last.resize(going_.size());
      std::iota(last.begin(), last.end(), 0);
    }
  }

 private:
  static int64_t length(const GenerationRow& row) { return static_cast<int64_t>(row.prompt.size()); }
  void check_stop() const {
    if (options_.should_stop && options_.should_stop()) throw train::Stopped{};
  }

  // What is known of a step's tokens, of the rows that go on. Padding stands at positions of its own, behind all that a row may reach.
  struct Step {
    std::vector<int32_t> ids, positions, documents, document_positions;

    void add(int32_t id, int64_t position) {
      ids.push_back(id);
      positions.push_back(static_cast<int32_t>(position)), documents.push_back(0);
      document_positions.push_back(static_cast<int32_t>(position));
    }
    void pad(int64_t position) {
      ids.push_back(0);
      positions.push_back(static_cast<int32_t>(position)), documents.push_back(-1);
      document_positions.push_back(0);
    }
  };

  // Slots are columns of the cache; `first_slot` is that of the step's first token.
  Tensor read(const Step& step, int64_t first_slot) {
    const auto B = static_cast<int64_t>(going_.size()), T = static_cast<int64_t>(step.ids.size()) / B;
    auto on_cpu = [&](const std::vector<int32_t>& x) { return Tensor::from(std::span<const int32_t>(x), {B, T}); };
    auto on_device = [](const Tensor& x) { return to(x, default_device()).value(); };
    TokenData data;
    if (is_padded_) {
      data.cpu_positions = on_cpu(step.positions), data.cpu_documents = on_cpu(step.documents);
      data.cpu_document_positions = on_cpu(step.document_positions);
      data.positions = on_device(data.cpu_positions), data.documents = on_device(data.cpu_documents);
      data.document_positions = on_device(data.cpu_document_positions);
    } else {
      data = plain_tokens(B, T, first_slot);
    }
    Tokens tokens(std::move(data), {.cache = cache_});
    return model_.hidden(on_device(on_cpu(step.ids)), tokens).value();
  }

  Tensor read_prompts() {
    Step step;
    for (const GenerationRow& row : rows_)
      for (int64_t t = 0; t < longest_; ++t) {
        if (t < length(row)) step.add(row.prompt[static_cast<size_t>(t)], t);
        else step.pad(slots_ + t);
      }
    return read(step, 0);
  }

  // The token that each row got in the last step.
  Tensor read_new(int64_t number) {
    Step step;
    for (size_t b : going_) step.add(made_[b].ids.back(), length(rows_[b]) + number);
    return read(step, longest_ + number);
  }

  // Of these tokens of B T, on the CPU: [N, V] f32.
  Tensor logits(const Tensor& hidden_BTD, std::span<const int32_t> which) const {
    const Tensor rows = Tensor::from(which, {static_cast<int64_t>(which.size())});
    const Var some = take_rows(Var(hidden_BTD.reshape({-1, hidden_BTD.size(2)})), to(rows, default_device()).value());
    return cast(model_.output(some), kF32).value().cpu();
  }
  std::span<const float> row_of(const Tensor& logits_NV, int64_t i) const {
    return {logits_NV.data<float>() + i * logits_NV.size(1), static_cast<size_t>(logits_NV.size(1))};
  }

  void score_prompts(const Tensor& hidden_BTD) {
    struct Target {
      size_t row;
      int32_t from, id;  // the token that it is predicted from, of B T
      TokenScore score = {};
    };
    std::vector<Target> targets;
    for (size_t b = 0; b < rows_.size(); ++b)
      for (int64_t t = 1; rows_[b].scores_prompt && t < length(rows_[b]); ++t)
        targets.push_back({b, static_cast<int32_t>(static_cast<int64_t>(b) * longest_ + t - 1),
                           rows_[b].prompt[static_cast<size_t>(t)]});
    const auto at_once = static_cast<size_t>(std::max<int64_t>(1, kLogitsAtOnce / model_.options().vocab));
    for (size_t begin = 0; begin < targets.size(); begin += at_once) {
      check_stop();
      const size_t end = std::min(targets.size(), begin + at_once);
      std::vector<int32_t> which;
      for (size_t i = begin; i < end; ++i) which.push_back(targets[i].from);
      const Tensor logits_NV = logits(hidden_BTD, which);
      parallel_items(static_cast<int64_t>(end - begin), [&](int64_t i) {
        Target& target = targets[begin + static_cast<size_t>(i)];
        target.score = score_of(row_of(logits_NV, i), target.id, rows_[target.row].top.value_or(0), options_.vocab);
      });
    }
    for (Target& target : targets) made_[target.row].prompt_scores.push_back(std::move(target.score));
  }

  // Draws the next token of each row that goes on. Those that end leave the batch.
  void take(int64_t step, const Tensor& logits_BV) {
    std::vector<int32_t> kept;  // of the batch
    std::vector<size_t> going;
    for (size_t i = 0; i < going_.size(); ++i) {
      const GenerationRow& row = rows_[going_[i]];
      Generation& made = made_[going_[i]];
      if (row.max_tokens <= step) continue;
      const std::span<const float> all = row_of(logits_BV, static_cast<int64_t>(i));
      const auto uniform = static_cast<double>(Rng(row.seed)["sample"].uniform(static_cast<uint64_t>(step)));
      const int32_t id = draw(all.first(static_cast<size_t>(options_.vocab)), row.temperature, row.top_p, uniform);
      made.ended = options_.end_of_text && id == *options_.end_of_text;
      std::optional<TokenScore> score;
      if (row.top) score = score_of(all, id, *row.top, options_.vocab);
      if (made.ended) {
        made.end_score = std::move(score);
      } else {
        made.ids.push_back(id);
        if (score) made.scores.push_back(std::move(*score));
        made.ended = row.goes_on && !row.goes_on(id);
      }
      if (made.ended || step + 1 == row.max_tokens) continue;
      kept.push_back(static_cast<int32_t>(i)), going.push_back(going_[i]);
    }
    if (!kept.empty() && kept.size() < going_.size()) keep_rows(*cache_, kept);
    going_ = std::move(going);
  }

  LanguageModel& model_;
  std::span<const GenerationRow> rows_;
  const GenerationOptions& options_;
  std::vector<Generation> made_;
  std::vector<size_t> going_;        // the rows of the batch, by their numbers
  int64_t longest_ = 0, slots_ = 0;  // of prompts; columns of the cache
  bool is_padded_ = false;
  std::shared_ptr<Cache> cache_;
};

}  // namespace

std::vector<Generation> generate(LanguageModel& model, std::span<const GenerationRow> rows,
                                 const GenerationOptions& options) {
  WEFT_CHECK(options.vocab >= 1 && options.vocab <= model.options().vocab,
             str("generate: vocab ", options.vocab, " of a model with ", model.options().vocab, " ids"),
             "give at most the model's");
  if (rows.empty()) return {};
  return Batch(model, rows, options).run();
}

}  // namespace weft::serve
