// The check `locality`: a guard that finds what mixes tokens beside Tokens. Every token is a document of its own, so that each call of Tokens
// gives it its own values alone. One token is then replaced: an output of another token that changes comes from somewhere else.
#include <fmt/format.h>

#include "trainers/conformance/subject.h"

namespace weft::conformance {

namespace {

constexpr int64_t kBatch = 2, kTokens = 9, kAll = kBatch * kTokens;

TokenData lonely_tokens() {
  TokenData data = plain_tokens(kBatch, kTokens);
  Tensor documents = Tensor::empty({kBatch, kTokens}, kI32, Device::cpu());
  for (int64_t i = 0; i < kAll; ++i) documents.mutable_data<int32_t>()[i] = static_cast<int32_t>(i % kTokens);
  data.documents = to(documents, default_device()).value();
  data.document_positions = Tensor::zeros({kBatch, kTokens}, kI32);
  return data;
}

Tensor with_token(const Tensor& x_BTD, int64_t token, const Tensor& other_BTD) {
  const Shape rows{kAll, x_BTD.size(2)};
  Tensor y = add(Var(x_BTD), Var(Tensor::zeros({}, x_BTD.dtype(), x_BTD.device()))).value(),
         place = y.reshape(rows).slice(0, token, token + 1);
  assign(place, other_BTD.reshape(rows).slice(0, token, token + 1));
  return y;
}

}  // namespace

Outcome check_locality(const Subject& subject) {
  if (!subject.row().lacks.documents.empty()) return {Verdict::unsupported, std::string(subject.row().lacks.documents)};
  const double bound = subject.row().lacks.exact_causality.empty() ? 0 : 1e-5;
  const Shape shape{kBatch, kTokens, subject.args().dim};
  const TokenData data = lonely_tokens();
  const Tensor x = normal_input(shape, kF32), other = normal_input(shape, kF32, 99);
  for (bool is_training : {false, true}) {
    std::unique_ptr<Mixer> mixer = subject.make(kF32);
    auto run = [&](const Tensor& input) {
      return numbers_of(subject.run(*mixer, input, data, {.is_training = is_training, .rng = Rng(11)}).value());
    };
    const std::vector<double> expected = run(x);
    for (int64_t token = 0; token < kAll; ++token) {
      const std::vector<double> got = run(with_token(x, token, other));
      for (size_t i = 0; i < got.size(); ++i) {
        const int64_t at = static_cast<int64_t>(i) / shape[2];
        if (at == token || std::abs(got[i] - expected[i]) <= bound) continue;
        return {
            Verdict::failed,
            fmt::format(
                "token {} of row {} reads token {} of row {} beside Tokens{}: let tokens mix through attend(), scan(), "
                "shift() or gather() only",
                at % kTokens, at / kTokens, token % kTokens, token / kTokens, is_training ? " in training" : "")};
      }
    }
  }
  return {Verdict::passed, fmt::format("{} tokens replaced, no other one sees it", 2 * kAll)};
}

}  // namespace weft::conformance
