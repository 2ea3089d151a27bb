// The check `ranks`: the tokens of each row are spread over ranks, which are threads. Outputs, the gradient of the input, those of all
// parameters, the buffers and what a probe is shown must be those of one rank, under every layout, scheme and number of ranks.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "trainers/conformance/spread.h"
#include "weft/core/error.h"

namespace weft::conformance {

namespace {

using dist::LayoutKind;
using dist::Scheme;

// Each layout, scheme and number of ranks at least once, and heads that 8 ranks exchange.
constexpr SpreadCase kCases[] = {
    {LayoutKind::contiguous, Scheme::ring, 2, false},    {LayoutKind::zigzag, Scheme::ulysses, 2, true},
    {LayoutKind::striped, Scheme::ring, 3, true},        {LayoutKind::contiguous, Scheme::bidirectional_ring, 3, true},
    {LayoutKind::balanced, Scheme::usp, 4, true},        {LayoutKind::zigzag, Scheme::double_ring, 4, false},
    {LayoutKind::striped, Scheme::all_gather, 8, false}, {LayoutKind::contiguous, Scheme::ulysses, 8, true},
};

std::vector<SpreadCase> cases_for(const Subject& subject) {
  std::vector<SpreadCase> cases;
  if (subject.covers_product) {
    for (int ranks : kSpreadRanks)
      for (LayoutKind layout : kSpreadLayouts)
        for (Scheme scheme : dist::all_schemes())
          for (bool has_documents : {false, true}) cases.push_back({layout, scheme, ranks, has_documents});
  } else {
    cases.assign(std::begin(kCases), std::end(kCases));
  }
  if (subject.row().lacks.documents.empty()) return cases;
  for (SpreadCase& c : cases) c.has_documents = false;
  return cases;
}

// A row of the library gets 8 query heads in every call of attention, which ulysses deals to 2, 4 and 8 ranks.
template <class Options>
void widen(Options& o) {
  if constexpr (requires { o.heads; }) {
    if (o.heads < 1 || o.heads > 8 || 8 % o.heads != 0) return;
    const int64_t times = 8 / o.heads;
    o.heads = 8;
    if constexpr (requires { o.kv_heads; }) o.kv_heads *= times;
    if constexpr (requires { o.components; }) o.components *= times;
    if constexpr (requires { o.relational_heads; }) o.relational_heads *= times;
    if constexpr (requires { o.head_mixture; }) o.head_mixture.active *= times, o.head_mixture.shared *= times;
  }
}
void widen(NexusOptions& o) {  // whose inner calls have as many heads as keys
  const int64_t times = 8 / (o.kv_heads > 0 ? o.kv_heads : o.heads);
  o.heads *= times, o.kv_heads *= times;
}
void widen(MoaOptions& o) { o.experts = 16, o.active = 8; }
void widen(UmoeOptions& o) { o.experts = 8, o.active = 7; }  // and the shared one
MixerRow widened(MixerRow row) {
  try {
    std::visit(
        [&](auto options) {
          widen(options);
          row.make = options;
        },
        options_of(row));
  } catch (const Error&) {  // a program's own row sizes itself
  }
  return row;
}

// The largest, over 1 plus the largest number: gradients of parameters are sums over all tokens.
double difference(const std::vector<double>& got, const std::vector<double>& expected) {
  double largest = 0;
  for (double x : expected) largest = std::max(largest, std::abs(x));
  const double worst = largest_difference(got, expected);
  return std::isfinite(worst) && std::isfinite(largest) ? worst / (1 + largest) : HUGE_VAL;
}

// Of all calls that a probe is shown.
double difference(const std::vector<std::vector<double>>& got, const std::vector<std::vector<double>>& expected) {
  double worst = got.size() == expected.size() ? 0 : HUGE_VAL;
  for (size_t call = 0; call < std::min(got.size(), expected.size()); ++call)
    worst = std::max(worst, difference(got[call], expected[call]));
  return worst;
}

// Rows on which f32 and bf16 are looked at too: plain attention and what stands around it, recurrences with each kind of decay and write.
constexpr std::string_view kRowsInFewBits[] = {
    "mha", "gqa", "window", "sink_logit",      "gate_out", "affine",         "sigmoid",
    "moh", "mla", "fox",    "differential",    "nexus",    "residual.delta", "retnet",
    "gla", "gsa", "hgrn",   "gated_delta_net", "kda"};
constexpr double kAtMost = 2;  // of the error of one rank
// From 2 ranks to 8. In f32 each hop rounds the output so far, which fox (1.2) and nexus (1.1) can see: merged in f64, they do not grow.
constexpr double kGrowth = 1.1, kGrowthF32 = 1.25;

// Errors against f64, of outputs and gradients, over those of one rank in the same dtype: the largest.
Outcome few_bits(const Subject& subject) {
  const SpreadSequence sequence(8 * kSpreadBlock * kSpreadBlocksPerRank, false);
  const SpreadNumbers exact = run_whole(subject, sequence, {.inputs = kBF16});
  auto errors = [&](const SpreadNumbers& got) {
    return std::array{relative_difference(got.out, exact.out), relative_difference(got.dx, exact.dx),
                      relative_difference(got.of_parameters, exact.of_parameters)};
  };
  std::string text;
  bool has_passed = true;
  for (DType dtype : {kF32, kBF16}) {
    const SpreadRun how{.compute = dtype, .inputs = kBF16};
    const auto of_one = errors(run_whole(subject, sequence, how));
    double of_two = 0;
    text += str("; ", dtype, " errors over one rank's");
    for (int ranks : {2, 4, 8}) {
      double of_ranks = 0;
      for (Scheme scheme : {Scheme::ring, Scheme::all_gather}) {
        const auto of_many = errors(run_spread(subject, {LayoutKind::zigzag, scheme, ranks, false}, sequence, how));
        for (size_t i = 0; i < of_one.size(); ++i)
          if (of_many[i] > 0) of_ranks = std::max(of_ranks, of_many[i] / of_one[i]);
      }
      if (ranks == 2) of_two = of_ranks;
      has_passed = has_passed && of_ranks <= kAtMost && of_ranks <= (dtype == kF32 ? kGrowthF32 : kGrowth) * of_two;
      text += fmt::format(" {:.2f}", of_ranks);
    }
  }
  return {has_passed ? Verdict::passed : Verdict::failed, text + " on 2, 4, 8"};
}

// Outside training too: what a rank records must not depend on what its own tokens chose.
constexpr SpreadCase kUntrained = {LayoutKind::contiguous, Scheme::ring, 3, true};

// What is declared missing must be refused, not computed wrong.
Outcome refused(const Subject& subject, std::string_view missing) {
  for (const SpreadCase& c : cases_for(subject)) {
    const SpreadSequence sequence(c);
    const Subject longer(subject.row(), subject.args().dim, sequence.length);
    try {
      run_spread(longer, c, sequence);
    } catch (const Error&) { continue; }
    return {Verdict::failed, fmt::format("is said to be missing ({}), but {} is not refused", missing, to_string(c))};
  }
  return {Verdict::unsupported, std::string(missing)};
}

}  // namespace

std::string to_string(const SpreadCase& c) {
  return fmt::format("{}, {}, {} ranks{}", to_string(c.layout), to_string(c.scheme), c.ranks,
                     c.has_documents ? ", documents" : "");
}

Outcome check_ranks(const Subject& narrow) {
  const MixerRow row = widened(narrow.row());
  Subject subject(row, 2 * narrow.args().dim);
  subject.covers_product = narrow.covers_product;
  if (const std::string_view missing = row.lacks.order; !missing.empty()) return refused(subject, missing);
  Outcome outcome;
  double worst = 0;
  std::string worst_case = "none";
  std::map<std::pair<int, bool>, SpreadNumbers> of_one;
  size_t number = 0;
  auto compare = [&](const SpreadCase& c, const SpreadNumbers& got, const SpreadNumbers& expected, bool is_watched) {
    const double differences[] = {difference(got.out, expected.out), difference(got.dx, expected.dx),
                                  difference(got.of_parameters, expected.of_parameters),
                                  is_watched ? difference(got.shown, expected.shown) : 0};
    const double largest = *std::max_element(std::begin(differences), std::end(differences));
    if (largest > worst)
      worst = largest, worst_case = fmt::format(
                           "{}: outputs {:.2g}, input gradients {:.2g}, parameters {:.2g}, weights and heads {:.2g}",
                           to_string(c), differences[0], differences[1], differences[2], differences[3]);
  };
  for (SpreadCase c : cases_for(subject)) {
    const SpreadSequence sequence(c);
    const Subject longer(row, subject.args().dim, sequence.length);
    const SpreadRun how{.is_watched = number++ % 4 != 3};  // a probe exchanges keys: some run without
    auto [expected, is_new] = of_one.try_emplace({c.ranks, c.has_documents});
    if (is_new) expected->second = run_whole(longer, sequence, {.is_watched = true});
    SpreadNumbers got;
    try {
      got = run_spread(longer, c, sequence, how);
    } catch (const Error& error) {  // a scheme may refuse a number of ranks
      if (!error.problem().starts_with(str(to_string(c.scheme), ": "))) throw;
      outcome.spreads.push_back({c, error.problem()});
      if (subject.covers_product) continue;
      c.scheme = Scheme::ring;
      got = run_spread(longer, c, sequence, how);
    }
    outcome.spreads.push_back({c});
    compare(c, got, expected->second, how.is_watched);
  }
  SpreadCase untrained = kUntrained;
  untrained.has_documents = row.lacks.documents.empty();
  const SpreadSequence sequence(untrained);
  const Subject longer(row, subject.args().dim, sequence.length);
  const SpreadRun how{.is_watched = true, .is_training = false};
  compare(untrained, run_spread(longer, untrained, sequence, how), run_whole(longer, sequence, how), true);
  const auto num_refused =
      std::count_if(outcome.spreads.begin(), outcome.spreads.end(), [](const Spread& s) { return !s.refused.empty(); });
  const Outcome equal =
      within(worst, 1e-10,
             fmt::format("{} cases{}, largest difference", outcome.spreads.size() - static_cast<size_t>(num_refused),
                         num_refused ? ", heads that ulysses cannot divide" : ""));
  outcome.verdict = equal.verdict, outcome.reason = equal.reason;
  if (outcome.verdict == Verdict::failed) outcome.reason += fmt::format(" ({})", worst_case);
  if (std::ranges::find(kRowsInFewBits, std::string_view(row.name)) != std::end(kRowsInFewBits)) {
    const Outcome more = few_bits(Subject(row, subject.args().dim, 8 * kSpreadBlock * kSpreadBlocksPerRank));
    if (more.verdict == Verdict::failed) outcome.verdict = more.verdict;
    outcome.reason += more.reason;
  }
  return outcome;
}

}  // namespace weft::conformance
