// Loss of a model over validation windows, or over samples of your own.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weft/comm/communicator.h"
#include "weft/training/token_loss.h"

namespace weft {

struct Evaluation {
  double nats = 0;  // sum over targets
  int64_t num_targets = 0;
  int64_t num_bytes = 0;      // of the targets' texts; special ids count neither here nor in byte_nats
  double byte_nats = 0;       // sum over targets that have bytes
  double standard_error = 0;  // of loss(), over documents, or windows if those are not apart; NaN: fewer than two
  struct AtPosition {
    double nats = 0;
    int64_t targets = 0;
  };
  std::vector<AtPosition> positions = {};  // by the number of tokens that the model saw before; if asked for

  bool has_targets() const { return num_targets > 0; }  // without any there is no loss to speak of
  double loss() const { return num_targets ? nats / static_cast<double>(num_targets) : 0; }  // nats per token
  double perplexity() const;
  double bits_per_byte() const;
  // Or that no token has a target:
  std::string text() const;  // "validation loss 1.4850 +- 0.0092 nats per token, perplexity 4.415, 2.142 bits per byte"
};

std::string validation_text(double loss, double standard_error, double perplexity, std::optional<double> bits_per_byte);

struct EvaluateOptions {
  int64_t batch = 1;                           // windows at a time
  int64_t max_tokens = 0;                      // 0: all windows
  bool keeps_documents_apart = false;          // attention stays within a document
  bool by_position = false;                    // fills in Evaluation::positions
  std::span<const int64_t> byte_lengths = {};  // per id
  ops::AttentionBackend attention = ops::AttentionBackend::automatic;
  std::function<void(int64_t done, int64_t total)> progress = {};  // an exception breaks the evaluation off
  dist::Communicator* comm = nullptr;     // ranks that share the rows; all of them call evaluate() and have the result
  int ranks_per_row = 1;                  // neighbours that are given different tokens of the same rows
  int64_t tokens_per_row = 0;             // without what rows were padded with for those ranks; 0: all that they hold
  const ContextGroup* context = nullptr;  // those
};
Evaluation evaluate(LanguageModel& model, const data::ValidationWindows& windows, const EvaluateOptions& options);
// Of samples 0 .. num_rows - 1.
Evaluation evaluate(const TokenLoss& loss, const data::SampleSource& samples, int64_t num_rows,
                    const EvaluateOptions& options);

}  // namespace weft
