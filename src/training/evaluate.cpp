#include "weft/training/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "src/training/batch.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"

namespace weft {

namespace {

// Sums of one cluster: a document, also across windows; of a text without documents, a window.
struct Cluster {
  double nats = 0;
  int64_t targets = 0;
};

// What the targets of some rows have cost, by row and position.
struct RowLosses {
  int64_t tokens_of_row = 0;
  std::vector<float> nats;
  std::vector<int32_t> targets, documents;
};

struct Counter {
  const EvaluateOptions& options;
  Evaluation result = {};
  std::vector<Cluster> clusters = {};
  bool document_goes_on = false;  // from the window before into the next one
  size_t seen = 0;                // tokens that the model saw before this one

  void add(const RowLosses& rows);
  void add_at_position(double loss);
};

// Standard error of a ratio of sums over independent clusters: sqrt(n/(n-1) sum (nats_c - loss targets_c)^2) / targets. One cluster has none.
double clustered_error(const std::vector<Cluster>& clusters, double loss, int64_t num_targets) {
  double n = static_cast<double>(clusters.size()), sum = 0;
  if (n < 2 || num_targets == 0) return std::numeric_limits<double>::quiet_NaN();
  for (const Cluster& c : clusters) {
    double residual = c.nats - loss * static_cast<double>(c.targets);
    sum += residual * residual;
  }
  return std::sqrt(n / (n - 1) * sum) / static_cast<double>(num_targets);
}

void Counter::add_at_position(double loss) {
  if (result.positions.size() <= seen) result.positions.resize(seen + 1);
  result.positions[seen].nats += loss;
  ++result.positions[seen].targets;
}

void Counter::add(const RowLosses& rows) {
  const auto& [tokens_of_row, nats, targets, documents] = rows;
  const auto context = static_cast<size_t>(tokens_of_row);
  bool opens = false;  // a cluster, with the next target
  for (size_t i = 0; i < targets.size(); ++i) {
    if (i % context == 0) opens |= !document_goes_on;
    else opens |= documents[i] != documents[i - 1];
    if (i % context == context - 1) document_goes_on = options.keeps_documents_apart && targets[i] >= 0;
    const bool begins = i % context == 0 || (options.keeps_documents_apart && documents[i] != documents[i - 1]);
    seen = begins ? 0 : seen + 1;
    if (targets[i] < 0) continue;
    if (opens) clusters.push_back({});
    opens = false;
    double loss = static_cast<double>(nats[i]);
    result.nats += loss;
    ++result.num_targets;
    if (options.by_position) add_at_position(loss);
    clusters.back().nats += loss;
    ++clusters.back().targets;
    int64_t bytes = options.byte_lengths.empty() ? 0 : options.byte_lengths[static_cast<size_t>(targets[i])];
    result.num_bytes += bytes;
    if (bytes > 0) result.byte_nats += loss;
  }
}

// The rows that ranks evaluate together: `batch` of each in their order, so that all ranks of a row have the same.
class SharedRows {
 public:
  SharedRows(const EvaluateOptions& options, Upload& upload) : options_(options), upload_(upload) {
    if (!options.comm) return;
    WEFT_CHECK(
        options.ranks_per_row >= 1 && options.comm->size() % options.ranks_per_row == 0,
        str("evaluate: ranks_per_row is ", options.ranks_per_row, ", and there are ", options.comm->size(), " ranks"),
        "let the ranks of a row divide all ranks");
    per_row_ = options.ranks_per_row;
    sharers_ = options.comm->size() / per_row_;
    index_ = options.comm->rank() / per_row_;
  }

  int64_t rows_at_once() const { return options_.batch * sharers_; }
  int64_t tokens_per_row(const data::Batch& here) const {
    return options_.tokens_per_row > 0 ? options_.tokens_per_row : here.tokens.size(1) * per_row_;
  }
  // Padding is told by its document, whether or not documents are kept apart.
  bool needs_documents(const data::Batch& here) const {
    return options_.keeps_documents_apart || tokens_per_row(here) != here.tokens.size(1) * per_row_;
  }
  int64_t first_here(int64_t first) const { return first + index_ * options_.batch; }

  // Those of rows first .. first + rows_at_once() that this rank evaluates. Where several share, every rank has as many, so that all do the
  // same: behind the last row of all it is repeated without targets.
  data::Batch batch_here(const data::SampleSource& samples, int64_t first, int64_t total) const {
    const int64_t begin = first_here(first), count = std::clamp<int64_t>(total - begin, 0, options_.batch);
    if (sharers_ == 1 || count == options_.batch) return completed(samples(begin, count));
    std::vector<data::Batch> rows;
    for (int64_t i = 0; i < options_.batch; ++i) {
      rows.push_back(completed(samples(std::min(begin + i, total - 1), 1)));
      if (i < count) continue;
      const Shape shape = rows.back().targets.shape();
      rows.back().targets = Tensor::full(shape, -1, kI32, Device::cpu());
    }
    return data::stacked(rows);
  }

  // Of all ranks, in order, `count` rows.
  RowLosses gathered(const data::Batch& batch, const Tensor& losses, int64_t count) const {
    const bool are_shared = sharers_ * per_row_ > 1;
    auto of_all = [&](const Tensor& x) {
      return are_shared ? options_.comm->all_gather(ops::contiguous(upload_(x))) : x;
    };
    RowLosses here{.tokens_of_row = tokens_per_row(batch),
                   .nats = of_all(losses).to_vector<float>(),
                   .targets = of_all(batch.targets).to_vector<int32_t>(),
                   .documents = of_all(batch.documents).to_vector<int32_t>()};
    if (!are_shared) return here;
    const std::vector<int32_t> positions = of_all(batch.positions).to_vector<int32_t>();
    const int64_t tokens = batch.targets.size(1), rows = batch.targets.size(0);
    RowLosses all{.tokens_of_row = here.tokens_of_row, .nats = {}, .targets = {}, .documents = {}};
    for (int64_t row = 0; row < count; ++row) {
      std::vector<size_t> order;  // of the tokens of this row, where they are in what was gathered
      for (int64_t r = 0; r < per_row_; ++r)
        for (int64_t t = 0; t < tokens; ++t)
          order.push_back(static_cast<size_t>((((row / rows) * per_row_ + r) * rows + row % rows) * tokens + t));
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return positions[a] < positions[b]; });
      order.resize(static_cast<size_t>(all.tokens_of_row));  // padding is behind all others
      for (size_t i : order) {
        all.nats.push_back(here.nats[i]);
        all.targets.push_back(here.targets[i]);
        all.documents.push_back(here.documents[i]);
      }
    }
    return all;
  }

 private:
  const EvaluateOptions& options_;
  Upload& upload_;
  int64_t per_row_ = 1, sharers_ = 1, index_ = 0;
};

}  // namespace

double Evaluation::perplexity() const { return std::exp(loss()); }
double Evaluation::bits_per_byte() const {
  return num_bytes ? byte_nats / (std::numbers::ln2 * static_cast<double>(num_bytes)) : 0;
}

std::string Evaluation::text() const {
  if (!has_targets()) return "no validation loss: none of the tokens has a target";
  return validation_text(loss(), standard_error, perplexity(),
                         num_bytes > 0 ? std::optional(bits_per_byte()) : std::nullopt);
}

std::string validation_text(double loss, double standard_error, double perplexity,
                            std::optional<double> bits_per_byte) {
  const std::string error = std::isnan(standard_error) ? "" : fmt::format(" +- {:.4f}", standard_error);
  std::string out = fmt::format("validation loss {:.4f}{} nats per token, perplexity {:.4g}", loss, error, perplexity);
  if (bits_per_byte) out += fmt::format(", {:.4f} bits per byte", *bits_per_byte);
  return out;
}

Evaluation evaluate(LanguageModel& model, const data::ValidationWindows& windows, const EvaluateOptions& options) {
  return evaluate(
      token_loss(model), [&](int64_t first, int64_t count) { return windows.batch(first, count); },
      windows.num_windows(), options);
}

Evaluation evaluate(const TokenLoss& token_loss, const data::SampleSource& samples, int64_t total,
                    const EvaluateOptions& options) {
  NoGrad no_grad;
  Counter counter{options};
  Upload upload(default_device());
  const SharedRows shared(options, upload);
  for (int64_t first = 0; first < total; first += shared.rows_at_once()) {
    data::Batch batch = shared.batch_here(samples, first, total);
    if (first == 0 && options.max_tokens > 0) {
      total = std::clamp<int64_t>(options.max_tokens / shared.tokens_per_row(batch), 1, total);
      if (total < shared.rows_at_once()) batch = shared.batch_here(samples, first, total);
    }
    Tokens tokens(token_data(batch, shared.needs_documents(batch), shared.first_here(first), upload),
                  {.context = options.context, .attention = options.attention});
    LanguageModelLoss loss = token_loss(upload(batch.tokens), upload(batch.targets), tokens, 1);
    WEFT_CHECK(loss.losses.defined(), "evaluate: the loss has no losses per token", "return them, [B, T] f32 nats");
    const int64_t done = std::min(first + shared.rows_at_once(), total);
    counter.add(shared.gathered(batch, loss.losses, done - first));
    if (options.progress) options.progress(done, total);
  }
  Evaluation result = counter.result;
  result.standard_error = clustered_error(counter.clusters, result.loss(), result.num_targets);
  return result;
}

}  // namespace weft
