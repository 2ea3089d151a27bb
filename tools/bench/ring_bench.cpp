// `weft bench ring`: attention over the tokens of several ranks. First what the layouts promise, as ratios to equal work without waiting, which
// no clock is needed for; then forward and backward on two ranks of one thread each beside one rank with two threads.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tools/bench/bench.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/distributed/context_attention.h"
#include "weft/ops/attention.h"
#include "weft/ops/elementwise.h"

namespace weft::bench {

namespace {

struct Mask {
  const char* name;
  dist::CausalMask mask;
};

// One document of half the sequence, and short ones.
std::vector<int32_t> half_and_short(int64_t tokens) {
  std::vector<int32_t> documents(static_cast<size_t>(tokens));
  for (int64_t t = tokens / 2; t < tokens; ++t)
    documents[static_cast<size_t>(t)] = static_cast<int32_t>(1 + (t - tokens / 2) / 128);
  return documents;
}

std::vector<dist::Layout> layouts(int64_t tokens, int ranks, const dist::CausalMask& mask, int64_t tile) {
  return {dist::Layout::contiguous(tokens, ranks), dist::Layout::striped(tokens, ranks, 1),
          dist::Layout::striped(tokens, ranks, tile), dist::Layout::zigzag(tokens, ranks),
          dist::Layout::balanced(tokens, ranks, mask, tile)};
}

std::string name_of(const dist::Layout& layout) {
  const bool has_blocks = layout.kind() == dist::LayoutKind::striped || layout.kind() == dist::LayoutKind::balanced;
  return str(to_string(layout.kind()), has_blocks ? str(" ", layout.block()) : "");
}

// Lock-step work of 8 ranks of 512 tokens, tiles of 64.
std::vector<Row> plan_rows() {
  constexpr int kRanks = 8;
  constexpr int64_t kTokens = 512, kTile = 64;
  const Mask masks[] = {{"causal", {}},
                        {"window 256", {.window = kTokens / 2}},
                        {"window 1024", {.window = 2 * kTokens}},
                        {"half and short documents", {.documents = half_and_short(kRanks * kTokens)}}};
  std::vector<Row> rows;
  for (const Mask& m : masks)
    for (const dist::Layout& layout : layouts(kRanks * kTokens, kRanks, m.mask, kTile)) {
      const dist::HopPlan plan = dist::plan_hops(layout, m.mask, kTile);
      Row row{.name = str("plan ", m.name, ", ", name_of(layout)),
              .shape = str("P", kRanks, " n", kTokens, " tile ", kTile),
              .dtype = "",
              .value = plan.lockstep_pairs(),
              .unit = "of ideal",
              .limit = 1};
      row.ratio = row.limit / row.value;
      row.extra = {{"tiles", fmt::format("{:.3f}", plan.lockstep_tiles())},
                   {"hops", str(plan.steps)},
                   {"rank pairs", fmt::format("{:.3f}", plan.rank_pairs())},
                   {"rank tiles", fmt::format("{:.3f}", plan.rank_tiles())}};
      rows.push_back(row);
    }
  return rows;
}

constexpr int64_t kHeads = 8, kWidth = 64;

Tensor values(int64_t tokens, uint64_t salt) {
  Tensor t = Tensor::empty({1, tokens, kHeads, kWidth}, kF32, Device::cpu());
  ops::fill_uniform_(t, Rng(7)[salt], -1, 1);
  return t;
}

// Queries, keys, values and gradients of some tokens.
struct Part {
  std::vector<int32_t> positions;
  Tensor q, k, v, dout;
  ops::AttentionTokens tokens;

  Part(std::vector<int32_t> at, Tensor q_, Tensor k_, Tensor v_, Tensor dout_, bool is_consecutive)
      : positions(std::move(at)), q(std::move(q_)), k(std::move(k_)), v(std::move(v_)), dout(std::move(dout_)) {
    tokens = {
        .positions = Tensor::from(std::span<const int32_t>(positions), {1, static_cast<int64_t>(positions.size())}),
        .are_consecutive = is_consecutive};
  }
  Part at(const std::vector<int32_t>& which) const {
    return {which, rows(q, which), rows(k, which), rows(v, which), rows(dout, which), false};
  }
  static Tensor rows(const Tensor& x, const std::vector<int32_t>& which) {
    const int64_t each = kHeads * kWidth;
    Tensor out = Tensor::empty({1, static_cast<int64_t>(which.size()), kHeads, kWidth}, kF32, Device::cpu());
    for (size_t i = 0; i < which.size(); ++i)
      std::copy_n(x.data<float>() + which[i] * each, each, out.mutable_data<float>() + static_cast<int64_t>(i) * each);
    return out;
  }
};

Part all_tokens(int64_t tokens) {
  std::vector<int32_t> all(static_cast<size_t>(tokens));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
  return {all, values(tokens, 1), values(tokens, 2), values(tokens, 3), values(tokens, 4), true};
}

struct Results {
  Tensor out, dk;
};

Results run_one(const Part& p) {
  const ops::AttentionOptions options;
  const ops::Attention y = ops::attend(p.q, p.k, p.v, p.tokens, p.tokens, options);
  return {y.out, ops::attend_backward(p.dout, {}, p.q, p.k, p.v, y, p.tokens, p.tokens, options).dk};
}

struct Spread {
  dist::Layout layout;
  dist::HopPlan plan;
  std::vector<Part> parts;

  Spread(const Part& whole, const dist::Layout& of) : layout(of), plan(dist::plan_hops(of, {})) {
    for (int r = 0; r < of.ranks(); ++r) parts.push_back(whole.at(of.positions(r)));
  }
  std::vector<Results> run(dist::Scheme scheme) const {
    std::vector<Results> results(parts.size());
    dist::run_thread_ranks(layout.ranks(),
                           [&](dist::Communicator& comm) {
                             const Part& p = parts[static_cast<size_t>(comm.rank())];
                             const ops::AttentionOptions options;
                             const ops::Attention y =
                                 dist::context_attention(comm, scheme, p.q, p.k, p.v, p.tokens, options, plan);
                             const ops::AttentionGrads grads = dist::context_attention_backward(
                                 comm, scheme, p.dout, {}, p.q, p.k, p.v, y, p.tokens, options, plan);
                             results[static_cast<size_t>(comm.rank())] = {y.out, grads.dk};
                           },
                           {.threads_per_rank = 1});
    return results;
  }
  // Error unless the results are those of one rank.
  void check(dist::Scheme scheme, const Results& expected) const {
    const std::vector<Results> got = run(scheme);
    for (size_t r = 0; r < parts.size(); ++r)
      for (const auto& [mine, all] : {std::pair(got[r].out, expected.out), std::pair(got[r].dk, expected.dk)}) {
        const Tensor right = Part::rows(all, parts[r].positions);
        for (int64_t i = 0; i < right.num_elements(); ++i) {
          const double a = mine.data<float>()[i], b = right.data<float>()[i];
          WEFT_CHECK(std::abs(a - b) <= 1e-4 * (1 + std::abs(b)),
                     str("bench ring: ", to_string(layout), ", ", to_string(scheme), ": ", a, " instead of ", b),
                     "the tests ContextAttention.* find out why");
        }
      }
  }
};

std::vector<Row> measured_rows(int64_t tokens, bool quick) {
  constexpr int kRanks = 2;
  const Part whole = all_tokens(tokens);
  const std::vector<Spread> spreads = {Spread(whole, dist::Layout::contiguous(tokens, kRanks)),
                                       Spread(whole, dist::Layout::striped(tokens, kRanks)),
                                       Spread(whole, dist::Layout::zigzag(tokens, kRanks))};
  const Results expected = run_one(whole);
  for (const Spread& s : spreads) s.check(dist::Scheme::ring, expected);
  spreads[2].check(dist::Scheme::all_gather, expected);
  const int outer = num_threads();
  std::vector<std::function<void()>> functions{[&] {
    set_num_threads(kRanks);
    run_one(whole);
    set_num_threads(outer);
  }};
  for (const Spread& s : spreads) functions.emplace_back([&s] { s.run(dist::Scheme::ring); });
  functions.emplace_back([&] { spreads[2].run(dist::Scheme::all_gather); });
  const std::vector<double> times = ratios_in_turn(functions, quick ? 3 : 7);
  const double bound =
      2 - 1.0 / kRanks;  // of balanced layouts over the contiguous one: lock-step work of 2 - 1/P against 1

  std::vector<Row> rows;
  const std::string shape = fmt::format("T{} H{} d{}, {} ranks x 1 thread", tokens, kHeads, kWidth, kRanks);
  auto row = [&](std::string name, double value, double limit, const char* unit) {
    Row r{.name = std::move(name),
          .shape = shape,
          .dtype = "f32",
          .threads = kRanks,
          .value = value,
          .unit = unit,
          .limit = limit,
          .ratio = value / limit};
    rows.push_back(std::move(r));
  };
  const char* names[] = {"ring, contiguous", "ring, striped 64", "ring, zigzag", "all_gather, zigzag"};
  for (size_t i = 0; i < std::size(names); ++i)
    row(str(names[i], ": throughput of one rank's"), 1 / times[i + 1], 1, "of 2 threads");
  row("striped over contiguous", times[1] / times[2], bound, "x");
  row("zigzag over contiguous", times[1] / times[3], bound, "x");
  return rows;
}

}  // namespace

std::vector<Row> run_ring(const BenchOptions& options) {
  std::vector<Row> rows = plan_rows();
  if (options.plan_only) return rows;
  for (int64_t tokens : options.quick ? std::vector<int64_t>{4096} : std::vector<int64_t>{16384, 32768})
    for (Row& row : measured_rows(tokens, options.quick)) rows.push_back(std::move(row));
  return rows;
}

}  // namespace weft::bench
