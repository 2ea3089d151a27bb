// The check `decode`: a few tokens at once, then one at a time with a cache, on one rank and on several that share the cache's keys. Outputs
// must be those of a parallel forward, and every rank must have the same bits.
#include <fmt/format.h>

#include <algorithm>

#include "trainers/conformance/subject.h"
#include "weft/comm/communicator.h"
#include "weft/core/error.h"
#include "weft/nn/context_group.h"
#include "weft/ops/elementwise.h"

namespace weft::conformance {

namespace {

constexpr int64_t kBatch = 2, kTokens = 11;

// Tokens begin .. end - 1 of each row.
TokenData part_of(const TokenData& all, int64_t begin, int64_t end) {
  auto part = [&](const Tensor& t) { return t.defined() ? ops::contiguous(t.slice(1, begin, end)) : t; };
  return {.positions = part(all.positions),
          .documents = part(all.documents),
          .document_positions = part(all.document_positions),
          .are_consecutive = all.are_consecutive};
}

// The outputs [kBatch, kTokens, D].
std::vector<double> decoded(const Subject& subject, Mixer& mixer, const Tensor& x_BTD, const TokenData& data,
                            const std::shared_ptr<Cache>& cache) {
  NoGrad no_grad;
  std::vector<Var> parts;
  for (int64_t begin = 0, count = 4; begin < kTokens; begin += count, count = 1)
    parts.push_back(subject.run(mixer, slice(x_BTD, 1, begin, begin + count), part_of(data, begin, begin + count),
                                {.cache = cache}));
  return numbers_of(concatenate(parts, 1).value());
}

// By rank.
std::vector<std::vector<double>> decoded_on_ranks(const Subject& subject, const Tensor& x_BTD, const TokenData& data,
                                                  int ranks) {
  std::vector<std::vector<double>> outputs(static_cast<size_t>(ranks));
  dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
    outputs[static_cast<size_t>(comm.rank())] =
        decoded(subject, *subject.make(kF64), x_BTD, data, make_cache(kBatch, kTokens, comm));
  });
  return outputs;
}

}  // namespace

Outcome check_decode(const Subject& subject) {
  const Tensor x = normal_input({kBatch, kTokens, subject.args().dim}, kF64);
  std::unique_ptr<Mixer> mixer = subject.make(kF64);
  if (const std::string_view missing = subject.row().lacks.decode; !missing.empty()) {
    // What is declared missing must be refused, not computed wrong.
    try {
      decoded(subject, *mixer, x, plain_tokens(kBatch, kTokens), make_cache(kBatch, kTokens));
    } catch (const Error&) { return {Verdict::unsupported, std::string(missing)}; }
    return {Verdict::failed, fmt::format("is said to be missing ({}), but nothing refuses it", missing)};
  }
  double worst = 0;
  for (const TokenData& data : {plain_tokens(kBatch, kTokens), packed_tokens(kBatch, kTokens)}) {
    if (data.documents.defined() && !subject.row().lacks.documents.empty()) continue;
    const std::vector<double> parallel = numbers_of(subject.run(*mixer, x, data).value());
    worst =
        std::max(worst, largest_difference(decoded(subject, *mixer, x, data, make_cache(kBatch, kTokens)), parallel));
    for (int ranks : {2, 3}) {
      const std::vector<std::vector<double>> outputs = decoded_on_ranks(subject, x, data, ranks);
      for (const std::vector<double>& other : outputs)
        if (other != outputs[0])
          return {Verdict::failed, fmt::format("of {} ranks that decode together, some have other bits", ranks)};
      worst = std::max(worst, largest_difference(outputs[0], parallel));
    }
  }
  return within(worst, 1e-10, "on 1, 2 and 3 ranks, largest difference to parallel");
}

}  // namespace weft::conformance
