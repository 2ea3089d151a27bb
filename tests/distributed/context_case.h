// A sequence whose tokens are dealt to ranks that are threads, against one call over all of it.
#pragma once

#include <gtest/gtest.h>

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tests/ops/attention_case.h"
#include "weft/distributed/choose_scheme.h"
#include "weft/distributed/context_attention.h"
#include "weft/ops/select.h"

namespace weft::test {

using dist::Communicator;
using dist::HopPlan;
using dist::Layout;
using dist::Scheme;
using dist::SchemeOptions;
using dist::TokenMask;
using dist::Travels;

// Whether a product of cases is tried as a whole: ThreadSanitizer looks at which threads meet, not at numbers.
#ifdef __SANITIZE_THREAD__
inline constexpr bool kIsWhole = false;
#else
inline constexpr bool kIsWhole = true;
#endif

// The tokens of a rank, of x [B, N, ...]; undefined stays so.
inline Tensor tokens_of(const Tensor& x, const std::vector<int32_t>& positions) {
  if (!x.defined()) return {};
  std::vector<Tensor> tokens;
  for (int32_t p : positions) tokens.push_back(x.slice(1, p, p + 1));
  return ops::contiguous(ops::concatenate(tokens, 1));
}

struct Sequence {
  std::string what;
  AttentionCase c;
  TokenMask mask;
};

// A case whose queries and keys are the tokens 0 .. N - 1.
inline Sequence make_sequence(const std::string& what, int64_t tokens, DType dtype, AttentionSizes sizes) {
  sizes.T = sizes.S = tokens;
  Sequence s{what, AttentionCase(sizes, dtype), {}};
  s.c.keys = s.c.queries = {make_positions(sizes.B, tokens, Order::sorted, 1), {}};
  return s;
}

inline void use_documents(Sequence& s, int64_t length) {
  s.c.use_documents(length);
  const auto* documents = s.c.queries.documents.data<int32_t>();
  s.mask.documents.assign(documents, documents + s.c.q.size(1));
}

// What a rank has of a sequence.
struct RankCase {
  ops::AttentionTokens here;
  ops::AttentionOptions options;
  Tensor q, k, v, dout, dlse;
  std::vector<int32_t> positions;

  RankCase(const AttentionCase& c, const Layout& layout, int rank)
      : options(c.options), positions(layout.positions(rank)) {
    auto part = [&](const Tensor& x) { return tokens_of(x, positions); };
    here = {part(c.queries.positions), part(c.queries.documents)};
    options.score.query_bias = part(c.options.score.query_bias),
    options.score.key_bias = part(c.options.score.key_bias);
    q = part(c.q), k = part(c.k), v = c.v.raw() == c.k.raw() ? k.slice(3, 0, c.v.size(3)) : part(c.v),
    dout = part(c.dout), dlse = part(c.used_dlse());
  }
};

// Tensors [B, n, ...] of ranks, put together in the order of positions.
class JoinedTokens {
 public:
  void add(const std::vector<int32_t>& positions, const std::vector<Tensor>& tensors) {
    std::lock_guard lock(mutex_);
    parts_.emplace_back(positions, tensors);
  }
  std::vector<Tensor> joined() const {
    std::vector<Tensor> all;
    for (size_t i = 0; i < parts_.front().second.size(); ++i) {
      std::vector<std::pair<int32_t, Tensor>> tokens;
      for (const auto& [positions, tensors] : parts_)
        for (size_t t = 0; tensors[i].defined() && t < positions.size(); ++t)
          tokens.emplace_back(positions[t], tensors[i].slice(1, static_cast<int64_t>(t), static_cast<int64_t>(t) + 1));
      std::sort(tokens.begin(), tokens.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
      std::vector<Tensor> sorted;
      for (const auto& [position, token] : tokens) sorted.push_back(token);
      all.push_back(sorted.empty() ? Tensor() : ops::concatenate(sorted, 1));
    }
    return all;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::pair<std::vector<int32_t>, std::vector<Tensor>>> parts_;
};

// out, lse, dq, dk, dv, dquery_bias, dkey_bias
using Results = std::vector<Tensor>;

inline Results results_of(const ops::Attention& y, const ops::AttentionGrads& g) {
  return {y.out, y.lse, g.dq, g.dk, g.dv, g.dquery_bias, g.dkey_bias};
}
// Where values are channels of the keys, dk is that of both, as it is over ranks.
inline Results of_one_rank(const AttentionCase& c) {
  const ops::Attention y = c.forward();
  ops::AttentionGrads grads = c.backward(y);
  if (c.v.raw() == c.k.raw()) {
    Tensor in_keys = grads.dk.slice(3, 0, c.v.size(3));
    ops::add_(in_keys, grads.dv);
    grads.dv = {};
  }
  return results_of(y, grads);
}
inline Results of_ranks(const AttentionCase& c, Scheme scheme, const SchemeOptions& scheme_options,
                        const Layout& layout, const HopPlan& plan) {
  JoinedTokens all;
  dist::run_thread_ranks(layout.ranks(), [&](Communicator& comm) {
    const RankCase mine(c, layout, comm.rank());
    const dist::ContextRanks ranks(comm, scheme_options);
    const ops::Attention y = context_attention(ranks, scheme, mine.q, mine.k, mine.v, mine.here, mine.options, plan);
    const ops::AttentionGrads grads = context_attention_backward(ranks, scheme, mine.dout, mine.dlse, mine.q, mine.k,
                                                                 mine.v, y, mine.here, mine.options, plan);
    all.add(mine.positions, results_of(y, grads));
  });
  return all.joined();
}

inline void expect_equal(const Results& got, const Results& want, double tolerance) {
  const char* names[] = {"out", "lse", "dq", "dk", "dv", "dquery_bias", "dkey_bias"};
  auto numbers = [](const Tensor& x) { return reference::numbers(x.defined() ? ops::contiguous(x) : x); };
  for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], numbers(want[i]), tolerance, names[i]);
}

// A scheme with its options, for this number of ranks.
struct SchemeRow {
  std::string what;
  Scheme scheme;
  SchemeOptions options = {};
};
inline std::vector<SchemeRow> scheme_rows(int ranks) {
  std::vector<SchemeRow> rows = {
      {"ring, keys travel", Scheme::ring, {.backward = Travels::keys}},
      {"ring, queries travel", Scheme::ring, {.backward = Travels::queries}},
      {"bidirectional_ring, keys travel", Scheme::bidirectional_ring, {.backward = Travels::keys}},
      {"bidirectional_ring, queries travel", Scheme::bidirectional_ring, {.backward = Travels::queries}},
      {"all_gather", Scheme::all_gather},
      {"all_gather, one head at once", Scheme::all_gather, {.heads_at_once = 1}},
      {"ulysses", Scheme::ulysses},
  };
  for (int part = 1; part <= ranks; ++part) {
    if (ranks % part != 0) continue;
    rows.push_back(
        {str("double_ring, nodes of ", part), Scheme::double_ring, {.node = part, .backward = Travels::keys}});
    rows.push_back({str("usp, groups of ", part), Scheme::usp, {.group = part}});
  }
  if (ranks % 2 == 0)
    rows.push_back({"double_ring, queries travel", Scheme::double_ring, {.node = 2, .backward = Travels::queries}});
  return rows;
}

}  // namespace weft::test
