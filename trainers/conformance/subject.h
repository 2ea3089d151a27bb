// One row of the table under test: makes its mixer, feeds it, and compares numbers.
#pragma once

#include "trainers/conformance/conformance.h"

namespace weft::conformance {

struct Outcome {
  Verdict verdict = Verdict::passed;
  std::string reason = {};
  std::vector<Spread> spreads = {};
};

class Subject {
 public:
  // `context`: the longest sequence that it is given.
  explicit Subject(const MixerRow& row, int64_t dim = 16, int64_t context = 16)
      : row_(row), args_(test_args(dim, context)) {
    args_.numbers = row.numbers;
    args_.texts = row.texts;
  }

  static MixerArgs test_args(int64_t dim, int64_t context = 16);
  bool covers_product = false;  // of ranks
  const MixerRow& row() const { return row_; }
  const MixerArgs& args() const { return args_; }
  // Error for a Param or Buffer that the mixer does not name.
  std::unique_ptr<Mixer> make(DType compute, uint64_t seed = 7) const;

  // What the model shares with every layer is shared here too: the input embedding, a linear image of x.
  Var run(Mixer& mixer, const Var& x_BTD, const TokenData& data, const TokensOptions& options = {}) const;

 private:
  const MixerRow& row_;
  MixerArgs args_;
};

TokenData packed_tokens(int64_t batch, int64_t num_tokens);  // in each row a document of 4 tokens and one of the rest

Tensor normal_input(const Shape& shape, DType dtype, uint64_t seed = 3);  // rounded to dtype
std::vector<double> numbers_of(const Tensor& x);
double largest_difference(const std::vector<double>& a, const std::vector<double>& b);
// sqrt(sum (a - b)^2 / sum b^2)
double relative_difference(const std::vector<double>& a, const std::vector<double>& b);
Outcome within(double value, double bound, std::string_view what);

// The checks; each in the table of conformance.cpp.
Outcome check_gradients(const Subject& subject);
Outcome check_causality(const Subject& subject);
Outcome check_decode(const Subject& subject);
Outcome check_documents(const Subject& subject);
Outcome check_order(const Subject& subject);
Outcome check_locality(const Subject& subject);
Outcome check_ranks(const Subject& subject);
Outcome check_bf16(const Subject& subject);
Outcome check_long_bf16(const Subject& subject);
Outcome check_heads(const Subject& subject);
Outcome check_devices(const Subject& subject);
Outcome check_checkpoint(const Subject& subject);
Outcome check_learning(const Subject& subject);
Outcome check_reference(const Subject& subject, const MixerReference* reference);

}  // namespace weft::conformance
