#include "weft/training/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "src/training/batch.h"
#include "weft/core/error.h"

namespace weft {

namespace {

// Sums of one cluster: a document, also across windows; of a text without documents, a window.
struct Cluster {
  double nats = 0;
  int64_t targets = 0;
};

struct Counter {
  const EvaluateOptions& options;
  Evaluation result = {};
  std::vector<Cluster> clusters = {};
  bool document_goes_on = false;  // from the window before into the next one

  void add(const data::Batch& batch, const Tensor& losses);
};

// Standard error of a ratio of sums over independent clusters: sqrt(n/(n-1) sum (nats_c - loss targets_c)^2) / targets.
double clustered_error(const std::vector<Cluster>& clusters, double loss, int64_t num_targets) {
  double n = static_cast<double>(clusters.size()), sum = 0;
  if (n < 2 || num_targets == 0) return 0;
  for (const Cluster& c : clusters) {
    double residual = c.nats - loss * static_cast<double>(c.targets);
    sum += residual * residual;
  }
  return std::sqrt(n / (n - 1) * sum) / static_cast<double>(num_targets);
}

void Counter::add(const data::Batch& batch, const Tensor& losses) {
  auto nats = losses.to_vector<float>();
  auto targets = batch.targets.to_vector<int32_t>();
  auto documents = batch.documents.to_vector<int32_t>();
  auto context = static_cast<size_t>(batch.targets.size(1));
  bool opens = false;  // a cluster, with the next target
  for (size_t i = 0; i < targets.size(); ++i) {
    if (i % context == 0) opens |= !document_goes_on;
    else opens |= documents[i] != documents[i - 1];
    if (i % context == context - 1) document_goes_on = options.keeps_documents_apart && targets[i] >= 0;
    if (targets[i] < 0) continue;
    if (opens) clusters.push_back({});
    opens = false;
    double loss = static_cast<double>(nats[i]);
    result.nats += loss;
    ++result.num_targets;
    clusters.back().nats += loss;
    ++clusters.back().targets;
    int64_t bytes = options.byte_lengths.empty() ? 0 : options.byte_lengths[static_cast<size_t>(targets[i])];
    result.num_bytes += bytes;
    if (bytes > 0) result.byte_nats += loss;
  }
}

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
  std::string out = fmt::format("validation loss {:.4f} +- {:.4f} nats per token, perplexity {:.4g}", loss,
                                standard_error, perplexity);
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
  for (int64_t first = 0; first < total; first += options.batch) {
    data::Batch batch = completed(samples(first, std::min(options.batch, total - first)));
    if (first == 0 && options.max_tokens > 0)
      total = std::clamp<int64_t>(options.max_tokens / batch.tokens.size(1), 1, total);
    Tokens tokens(token_data(batch, options.keeps_documents_apart, first, upload), {.attention = options.attention});
    LanguageModelLoss loss = token_loss(upload(batch.tokens), upload(batch.targets), tokens, 1);
    WEFT_CHECK(loss.losses.defined(), "evaluate: the loss has no losses per token", "return them, [B, T] f32 nats");
    counter.add(batch, loss.losses);
    if (options.progress) options.progress(std::min(first + options.batch, total), total);
  }
  Evaluation result = counter.result;
  result.standard_error = clustered_error(counter.clusters, result.loss(), result.num_targets);
  return result;
}

}  // namespace weft
