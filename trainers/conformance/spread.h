// A row whose tokens are spread over ranks, which are threads, and the same row on one rank.
#pragma once

#include "trainers/conformance/subject.h"

namespace weft::conformance {

constexpr int64_t kSpreadBlock = 4, kSpreadBlocksPerRank = 3;

// The tokens of two rows, which differ in their documents.
struct SpreadSequence {
  SpreadSequence(int64_t num_tokens, bool has_documents);
  // At least three blocks per rank. With documents the length does not divide; without, none are needed for padding.
  explicit SpreadSequence(const SpreadCase& c)
      : SpreadSequence(c.ranks * kSpreadBlock * kSpreadBlocksPerRank - (c.has_documents ? 3 : 0), c.has_documents) {}

  int64_t length;
  std::vector<int32_t> documents = {}, places = {};  // [2 length], or empty
};

struct SpreadRun {
  DType compute = kF64, inputs = kF64;  // inputs are rounded to one dtype, so that runs in several see the same
  bool is_watched = false;              // by a probe of weights and heads
  bool is_training = true;  // backward follows in any case: analyses and fixed sequences record what is not in training
};

struct SpreadNumbers {
  std::vector<double> out, dx;        // of tokens in the order of positions
  std::vector<double> of_parameters;  // gradients and buffers
  // What a probe is shown, call by call: weights and outputs of heads, as `out`.
  std::vector<std::vector<double>> shown = {};
};
SpreadNumbers run_spread(const Subject& subject, const SpreadCase& c, const SpreadSequence& sequence,
                         const SpreadRun& how = {});
SpreadNumbers run_whole(const Subject& subject, const SpreadSequence& sequence, const SpreadRun& how = {});

}  // namespace weft::conformance
