// `weft bench ring`: attention over the tokens of several ranks, each a thread. First what the layouts promise, as ratios to equal work
// without waiting, which no clock is needed for. Then forward and backward beside one rank with as many threads: kernels, schemes, masks,
// layouts, lengths and ranks that are asked for, or those of which something is expected. A row's limit is the plan's bound.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "distributed/context/bytes.h"
#include "tools/bench/ring/ring.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/io/files.h"

namespace weft::bench {

namespace {

using dist::LayoutKind, dist::Scheme;

constexpr LayoutKind kLayouts[] = {LayoutKind::contiguous, LayoutKind::striped, LayoutKind::zigzag,
                                   LayoutKind::balanced};

std::string shape_text(const RowMask& mask, const RingKernel& kernel, int ranks) {
  return str("T", mask.tokens(), " H", kernel.heads, kernel.kv_heads < kernel.heads ? str(" G", kernel.kv_heads) : "",
             " d64 P", ranks);
}

// Hops at which some rank has work.
std::string hops_with_work(const dist::HopPlan& plan) {
  int hops = 0;
  for (int hop = 0; hop < plan.ranks; ++hop) {
    bool has_work = false;
    for (int rank = 0; rank < plan.ranks; ++rank) has_work |= plan.has_work(rank, hop);
    hops += has_work;
  }
  return str(hops);
}

Row plan_row(const std::string& mask_name, const dist::Layout& layout, const dist::TokenMask& mask) {
  const dist::HopPlan plan = dist::plan_hops(layout, mask, kRingTile);
  Row row{.name = str("plan ", mask_name, ", ", layout_name(layout)),
          .shape = str("P", layout.ranks(), " n", layout.tokens_per_rank(), " tile ", kRingTile),
          .dtype = "",
          .value = plan.lockstep_pairs(),
          .unit = "of ideal",
          .limit = 1};
  row.ratio = row.limit / row.value;
  row.extra = {{"tiles", fmt::format("{:.3f}", plan.lockstep_tiles())},
               {"hops", hops_with_work(plan)},
               {"rank pairs", fmt::format("{:.3f}", plan.rank_pairs())},
               {"rank tiles", fmt::format("{:.3f}", plan.rank_tiles())}};
  return row;
}

// Documents that end at these places.
std::vector<int32_t> documents_to(const std::vector<int64_t>& ends) {
  std::vector<int32_t> documents;
  for (size_t d = 0; d < ends.size(); ++d) documents.resize(static_cast<size_t>(ends[d]), static_cast<int32_t>(d));
  return documents;
}

// Lock-step work of 8 ranks of 512 tokens, tiles of 64; of block-striped layouts also of 4096 tokens, which even it out.
std::vector<Row> plan_rows() {
  constexpr int kRanks = 8;
  constexpr int64_t kTokens = 512, kAll = kRanks * kTokens;
  std::vector<int64_t> half_and_short{kAll / 2}, random;
  for (int64_t end = kAll / 2 + 128; end <= kAll; end += 128) half_and_short.push_back(end);
  for (uint64_t i = 0; i < 15; ++i) random.push_back(1 + static_cast<int64_t>(Rng(1).below(kAll - 1, i)));
  random.push_back(kAll);
  std::sort(random.begin(), random.end());
  const std::pair<const char*, dist::TokenMask> masks[] = {
      {"causal", {}},
      {"window 256", {.window = kTokens / 2}},
      {"window 1024", {.window = 2 * kTokens}},
      {"16 random documents", {.documents = documents_to(random)}},
      {"half and short documents", {.documents = documents_to(half_and_short)}}};
  std::vector<Row> rows;
  for (const auto& [name, mask] : masks)
    for (const dist::Layout& layout :
         {dist::Layout::contiguous(kAll, kRanks), dist::Layout::striped(kAll, kRanks, 1),
          dist::Layout::striped(kAll, kRanks, kRingTile), dist::Layout::zigzag(kAll, kRanks),
          dist::Layout::balanced(kAll, kRanks, mask, kRingTile)})
      rows.push_back(plan_row(name, layout, mask));
  rows.push_back(plan_row("causal", dist::Layout::striped(8 * kAll, kRanks, kRingTile), {}));
  return rows;
}

// What cannot be measured, and why.
Row refused_row(std::string name, std::string shape, std::string why) {
  return {.name = std::move(name),
          .shape = std::move(shape),
          .dtype = "",
          .unit = "",
          .extra = {{"refused", std::move(why)}}};
}

Row measured_row(const RingKernel& kernel, const RowMask& mask, const RingCase& c, int ranks, const RingMeasured& m) {
  const dist::HopPlan plan = plan_of_seen(c.layout, mask);
  const int threads = std::min(ranks, num_threads());
  Row row{.name = str(c.name(), ", ", mask.name, ", ", kernel.name),
          .shape = shape_text(mask, kernel, ranks),
          .dtype = str(kernel.dtype),
          .threads = threads,
          .value = 1 / m.both,
          .unit = str("of 1 rank x ", threads),
          .limit =
              ranks > threads ? 1 : ring_bound(kernel, mask, c)};  // ranks that share a core do not wait for each other
  row.ratio = row.value / row.limit;
  // 2 products forward, 5 backward, of the visible pairs.
  const double flops = 7 * 2.0 * mask.pairs() * static_cast<double>(kernel.heads * 64);
  const dist::MessageBytes planned = dist::message_bytes(c.scheme, ring_shape(kernel, mask, c.layout), c.options, plan);
  auto mib = [](int64_t bytes) { return fmt::format("{:.1f}", static_cast<double>(bytes) / 1048576); };
  row.extra = {{"forward", fmt::format("{:.3f}", 1 / m.forward)},
               {"GFLOP/s", fmt::format("{:.0f}", flops / m.seconds / ranks / 1e9)},
               {"extra MiB", mib(m.extra_bytes)},
               {"sent MiB", mib(m.sent_bytes)},
               {"planned MiB", mib(planned.forward + planned.backward)},
               {"hops", hops_with_work(plan)},
               {"lock-step pairs", fmt::format("{:.3f}", plan.lockstep_pairs())},
               {"lock-step tiles", fmt::format("{:.3f}", plan.lockstep_tiles())},
               {"rank pairs", fmt::format("{:.3f}", plan.rank_pairs())},
               {"rank tiles", fmt::format("{:.3f}", plan.rank_tiles())}};
  return row;
}

// Rows of every scheme and layout, for one kernel, mask and number of ranks.
std::vector<Row> case_rows(const RingKernel& kernel, const RowMask& mask, int ranks, std::span<const Scheme> schemes,
                           std::span<const LayoutKind> layouts, int rounds) {
  std::vector<Row> rows, refused;
  std::vector<RingCase> cases;
  for (Scheme scheme : schemes) {
    const dist::SchemeOptions options = dist::default_options(scheme, ranks, kernel.heads);
    const std::string problem = dist::scheme_problem(scheme, ranks, kernel.heads, options);
    if (problem.empty())
      for (LayoutKind layout : layouts) cases.push_back({scheme, make_ring_layout(layout, mask, ranks), options});
    else
      refused.push_back(refused_row(str(scheme, ", ", mask.name, ", ", kernel.name), shape_text(mask, kernel, ranks),
                                    problem.substr(0, problem.find('\n'))));
  }
  const std::vector<RingMeasured> measured = measure_ring(kernel, mask, cases, ranks, rounds);
  for (size_t i = 0; i < cases.size(); ++i) rows.push_back(measured_row(kernel, mask, cases[i], ranks, measured[i]));
  rows.insert(rows.end(), refused.begin(), refused.end());
  return rows;
}

// The layouts of a causal ring of two ranks in which keys travel, forward and backward, as that of Striped Attention (2311.09431) does.
// Balanced work is worth 2 - 1/P of the contiguous layout's; less where a core is faster while the other one, whose rank has no work, is idle.
std::vector<Row> layout_rows(const RowMask& mask, int rounds) {
  const RingKernel& kernel = ring_kernels()[0];
  std::vector<RingCase> cases;
  for (LayoutKind layout : {LayoutKind::contiguous, LayoutKind::striped, LayoutKind::zigzag})
    cases.push_back({Scheme::ring, make_ring_layout(layout, mask, 2), {.backward = dist::Travels::keys}});
  const std::vector<RingMeasured> measured = measure_ring(kernel, mask, cases, 2, rounds);
  const double shared = shared_core_speed();
  std::vector<Row> rows;
  for (size_t i = 0; i < cases.size(); ++i) rows.push_back(measured_row(kernel, mask, cases[i], 2, measured[i]));
  for (size_t i : {1, 2}) {
    const double gain = measured[0].both / measured[i].both, bound = 0.5 + shared;
    Row row{.name = str(layout_name(cases[i].layout), " over contiguous, ring, causal"),
            .shape = rows[i].shape,
            .dtype = rows[i].dtype,
            .threads = rows[i].threads,
            .value = gain,
            .unit = "x",
            .limit = bound,
            .ratio = gain / bound};
    row.extra = {{"of 2 - 1/P", fmt::format("{:.3f}", gain / 1.5)},
                 {"x in 2311.09431", "1.45"},
                 {"speed of a shared core", fmt::format("{:.3f}", shared)}};
    rows.push_back(row);
  }
  return rows;
}

// Extra memory of a rank under each scheme, of the most ranks beside what it should have fallen to from half as many: a half.
std::vector<Row> memory_rows(const RowMask& mask, std::span<const int> of_ranks) {
  std::vector<Row> rows;
  const RingKernel& kernel = ring_kernels()[0];
  for (Scheme scheme : dist::all_schemes()) {
    Row row{.name = str("memory a rank, ", scheme),
            .shape = str("T", mask.tokens(), " H8 d64"),
            .dtype = "f32",
            .unit = ""};
    for (int ranks : of_ranks) {
      const dist::SchemeOptions options = dist::default_options(scheme, ranks, kernel.heads);
      if (!dist::scheme_problem(scheme, ranks, kernel.heads, options).empty()) continue;
      const RingCase c{scheme, dist::Layout::zigzag(mask.tokens(), ranks), options};
      row.unit = str("MiB, P", ranks), row.limit = row.value / 2;
      row.value = static_cast<double>(measure_ring(kernel, mask, {&c, 1}, ranks, 0)[0].extra_bytes) / 1048576;
      row.extra.emplace_back(str("MiB P", ranks), fmt::format("{:.1f}", row.value));
    }
    row.ratio = row.limit / row.value;
    rows.push_back(row);
  }
  return rows;
}

// Of what something is expected: rings of two ranks, packed documents, memory, steps of trainings; and each mask and kernel once.
std::vector<Row> expected_rows(const BenchOptions& options, const data::DocumentLengths& lengths) {
  std::vector<Row> rows;
  auto add = [&](std::vector<Row> more) {
    for (Row& row : more) rows.push_back(std::move(row));
  };
  const bool quick = options.quick;
  const RingKernel& softmax = ring_kernels()[0];
  constexpr Scheme ring[] = {Scheme::ring}, few[] = {Scheme::ring, Scheme::all_gather, Scheme::ulysses},
                   gather[] = {Scheme::all_gather};
  constexpr LayoutKind zigzag[] = {LayoutKind::zigzag}, balanced[] = {LayoutKind::balanced};
  add(layout_rows(make_ring_mask("causal", quick ? 4096 : 16384, lengths), 3));
  const RingKernel two_heads{.heads = 2, .kv_heads = 2};  // as many as the time allows; more heads are more of the same
  if (!quick) add(case_rows(two_heads, make_ring_mask("causal", 32768, lengths), 2, ring, zigzag, 5));
  add(case_rows(softmax, make_ring_mask("causal_document", quick ? 4096 : 16384, lengths), 2, gather, balanced,
                quick ? 3 : 9));
  add(ring_training_rows(quick));
  const int of_ranks[] = {2, 4, 8, 16};
  add(memory_rows(make_ring_mask("causal", quick ? 1024 : 4096, lengths), of_ranks));
  const int64_t tokens = quick ? 1024 : 2048;
  for (const MaskKind& kind : ring_masks()) {
    if (kind.why_not[0] != '\0') rows.push_back(refused_row(str("mask ", kind.name), "", kind.why_not));
    else
      add(case_rows(softmax, make_ring_mask(kind.name, tokens, lengths), 2,
                    quick ? std::span<const Scheme>(gather) : std::span<const Scheme>(few), balanced, 3));
  }
  for (const RingKernel& kernel : ring_kernels())
    if (&kernel != &softmax) add(case_rows(kernel, make_ring_mask("causal", tokens, lengths), 2, ring, zigzag, 3));
  add(case_rows(softmax, make_ring_mask("causal", tokens, lengths), 4, dist::all_schemes(), zigzag, 3));
  return rows;
}

// Of `known`, those that are asked for; "all", and `otherwise` where nothing is.
template <class T, class Name>
std::vector<T> chosen(const char* option, const std::vector<std::string>& asked, std::span<const T> known, Name name,
                      std::vector<T> otherwise) {
  if (asked.empty()) return otherwise;
  std::vector<T> values;
  for (const std::string& word : asked) {
    std::string names = "all";
    const size_t before = values.size();
    for (const T& value : known) {
      names += str(", ", name(value));
      if (word == "all" || word == name(value)) values.push_back(value);
    }
    WEFT_CHECK(values.size() > before, str("bench ring: ", option, " ", word, ": there is none"), "use " + names);
  }
  return values;
}

// What is asked for of each axis; one value where nothing is.
struct Axes {
  std::vector<RingKernel> kernels;
  std::vector<MaskKind> masks;
  std::vector<Scheme> schemes;
  std::vector<LayoutKind> layouts;
  std::vector<int64_t> tokens, ranks;

  explicit Axes(const RingOptions& asked)
      : tokens(asked.tokens.empty() ? std::vector<int64_t>{4096} : asked.tokens),
        ranks(asked.ranks.empty() ? std::vector<int64_t>{2} : asked.ranks) {
    auto named = [](const auto& value) { return std::string(value.name); };
    auto spelled = [](auto value) { return std::string(to_string(value)); };
    kernels = chosen<RingKernel>("--kernels", asked.kernels, ring_kernels(), named, {ring_kernels()[0]});
    masks = chosen<MaskKind>("--masks", asked.masks, ring_masks(), named, {ring_masks()[1]});
    schemes = chosen<Scheme>("--schemes", asked.schemes, dist::all_schemes(), spelled, {Scheme::ring});
    layouts = chosen<LayoutKind>("--layouts", asked.layouts, kLayouts, spelled, {LayoutKind::zigzag});
    for (int64_t n : tokens) WEFT_CHECK(n >= 1, str("bench ring: --tokens ", n), "use at least one");
    for (int64_t n : ranks) WEFT_CHECK(n >= 1 && n <= 1024, str("bench ring: --ranks ", n), "use 1 to 1024");
  }
};

data::DocumentLengths lengths_of(const RingOptions& asked) {
  return asked.documents.empty() ? data::pretraining_document_lengths() : data::read_document_lengths(asked.documents);
}

std::vector<Row> chosen_rows(const Axes& axes, const data::DocumentLengths& lengths, int rounds) {
  std::vector<Row> rows;
  for (int64_t tokens : axes.tokens)
    for (const MaskKind& kind : axes.masks) {
      if (kind.why_not[0] != '\0') {
        rows.push_back(refused_row(str("mask ", kind.name), str("T", tokens), kind.why_not));
        continue;
      }
      const RowMask mask = make_ring_mask(kind.name, tokens, lengths);
      for (int64_t ranks : axes.ranks)
        for (const RingKernel& kernel : axes.kernels)
          for (Row& row : case_rows(kernel, mask, static_cast<int>(ranks), axes.schemes, axes.layouts, rounds))
            rows.push_back(std::move(row));
    }
  return rows;
}

}  // namespace

std::string layout_name(const dist::Layout& layout) {
  const bool has_blocks = layout.kind() == LayoutKind::striped || layout.kind() == LayoutKind::balanced;
  return str(layout.kind(), has_blocks ? str(" ", layout.block()) : "");
}

std::string RingCase::name() const { return str(scheme, ", ", layout_name(layout)); }

dist::Layout make_ring_layout(LayoutKind kind, const RowMask& mask, int ranks) {
  switch (kind) {
    case LayoutKind::contiguous: return dist::Layout::contiguous(mask.tokens(), ranks);
    case LayoutKind::striped: return dist::Layout::striped(mask.tokens(), ranks, kRingTile);
    case LayoutKind::zigzag: return dist::Layout::zigzag(mask.tokens(), ranks);
    case LayoutKind::balanced: return dist::Layout::balanced(mask.tokens(), ranks, mask.causal, kRingTile);
  }
  fail("bench ring: no such layout", "use one of LayoutKind");
}

dist::ContextShape ring_shape(const RingKernel& kernel, const RowMask& mask, const dist::Layout& layout) {
  return {.ranks = layout.ranks(),
          .tokens = layout.tokens_per_rank(),
          .heads = kernel.heads,
          .kv_heads = kernel.kv_heads,
          .key_width = 64,
          .value_width = 64,
          .dtype = kernel.dtype,
          .has_documents = !mask.documents.empty(),
          .has_lse = kernel.options.normaliser != ops::Normaliser::sum};
}

// 2 products of each pair forward, by the rank of the query, and 5 backward: by the same one, or, where queries travel, by the rank of the key.
// Groups that exchange heads share the work of their ranks.
double ring_bound(const RingKernel& kernel, const RowMask& mask, const RingCase& c) {
  const dist::HopPlan plan = plan_of_seen(c.layout, mask);
  const int group = dist::group_size(c.scheme, plan.ranks, c.options), ring = plan.ranks / group;
  const bool queries_travel = dist::do_queries_travel(c.scheme, c.options.backward, ring_shape(kernel, mask, c.layout));
  std::vector<double> work(static_cast<size_t>(ring));
  double all = 0;
  for (int rank = 0; rank < plan.ranks; ++rank)
    for (int hop = 0; hop < plan.ranks; ++hop) {
      const auto pairs = static_cast<double>(plan.pairs_of(rank, hop));
      const int keys = (rank - hop + plan.ranks) % plan.ranks, backward = queries_travel ? keys : rank;
      work[static_cast<size_t>(rank / group)] += 2 * pairs, work[static_cast<size_t>(backward / group)] += 5 * pairs;
      all += 7 * pairs;
    }
  return all / ring / std::max(1.0, *std::max_element(work.begin(), work.end()));
}

void check_ring(const BenchOptions& options) {
  const RingOptions& asked = options.ring;
  WEFT_CHECK(!options.plan_only || (!asked.has_axis() && asked.documents.empty()),
             "bench ring: --plan has masks, layouts, documents and lengths of its own",
             "leave --plan out to measure what is asked for, or leave the other options out");
  const data::DocumentLengths lengths = lengths_of(asked);
  const Axes axes(asked);
  if (asked.documents.empty() || !asked.has_axis()) return;
  auto has_documents = [&](const MaskKind& kind) {
    return kind.why_not[0] == '\0' && !make_ring_mask(kind.name, 8, lengths).documents.empty();
  };
  if (std::any_of(axes.masks.begin(), axes.masks.end(), has_documents)) return;
  std::string names;
  for (const MaskKind& kind : ring_masks())
    if (has_documents(kind)) names += str(names.empty() ? "" : ", ", kind.name);
  fail("bench ring: --documents: none of the masks has documents", "use --masks with one of " + names);
}

std::vector<Row> run_ring(const BenchOptions& options) {
  check_ring(options);
  const RingOptions& asked = options.ring;
  if (!asked.picture.empty()) io::write_file_atomically(asked.picture, ring_picture());
  if (options.plan_only) return plan_rows();
  const data::DocumentLengths lengths = lengths_of(asked);
  if (asked.has_axis()) return chosen_rows(Axes(asked), lengths, options.quick ? 3 : 5);
  std::vector<Row> rows = plan_rows();
  for (Row& row : expected_rows(options, lengths)) rows.push_back(std::move(row));
  return rows;
}

}  // namespace weft::bench
