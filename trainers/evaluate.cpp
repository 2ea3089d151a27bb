#include "trainers/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace weft::train {

namespace {

// Sums of one cluster (a document in a window).
struct Cluster {
  double nats = 0;
  int64_t targets = 0;
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

void count(const data::Batch& batch, const Tensor& losses, std::span<const int64_t> byte_lengths, Evaluation& result,
           std::vector<Cluster>& clusters) {
  auto nats = losses.to_vector<float>();
  auto targets = batch.targets.to_vector<int32_t>();
  auto documents = batch.documents.to_vector<int32_t>();
  int64_t context = batch.targets.size(1);
  for (size_t i = 0; i < targets.size(); ++i) {
    bool opens = i % static_cast<size_t>(context) == 0 || documents[i] != documents[i - 1];
    if (opens && documents[i] >= 0) clusters.push_back({});
    if (targets[i] < 0) continue;
    double loss = static_cast<double>(nats[i]);
    result.nats += loss;
    ++result.num_targets;
    clusters.back().nats += loss;
    ++clusters.back().targets;
    int64_t bytes = byte_lengths.empty() ? 0 : byte_lengths[static_cast<size_t>(targets[i])];
    result.num_bytes += bytes;
    if (bytes > 0) result.byte_nats += loss;
  }
}

}  // namespace

double Evaluation::perplexity() const { return std::exp(loss()); }
double Evaluation::bits_per_byte() const {
  return num_bytes ? byte_nats / (std::numbers::ln2 * static_cast<double>(num_bytes)) : 0;
}

TokenData token_data(const data::Batch& batch, bool keeps_documents_apart, int64_t first_row) {
  if (!keeps_documents_apart) return {batch.positions, {}, {}, first_row};
  return {batch.positions, batch.documents, batch.document_positions, first_row};
}

Evaluation evaluate(LanguageModel& model, const data::ValidationWindows& windows, const EvaluateOptions& options) {
  NoGrad no_grad;
  Evaluation result;
  std::vector<Cluster> clusters;
  int64_t total = windows.num_windows();
  for (int64_t first = 0; first < total; first += options.batch) {
    data::Batch batch = windows.batch(first, std::min(options.batch, total - first));
    if (first == 0 && options.max_tokens > 0)
      total = std::clamp<int64_t>(options.max_tokens / batch.tokens.size(1), 1, total);
    Tokens tokens(token_data(batch, options.keeps_documents_apart, first));
    LanguageModelLoss loss = model.loss(batch.tokens, batch.targets, tokens, 1);
    count(batch, loss.losses, options.byte_lengths, result, clusters);
    if (options.progress) options.progress(std::min(first + options.batch, total), total);
  }
  result.standard_error = clustered_error(clusters, result.loss(), result.num_targets);
  return result;
}

}  // namespace weft::train
