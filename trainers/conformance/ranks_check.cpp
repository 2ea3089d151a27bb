// The check `ranks`: the tokens of each row are spread over ranks, which are threads. Outputs, the gradient of the input, those of all
// parameters and the buffers must be those of one rank, under every layout, scheme and number of ranks.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "trainers/conformance/subject.h"
#include "weft/core/error.h"
#include "weft/nn/context_group.h"
#include "weft/ops/elementwise.h"

namespace weft::conformance {

namespace {

constexpr int64_t kBatch = 2, kBlock = 4, kBlocksPerRank = 3;

struct Case {
  dist::LayoutKind layout;
  dist::Scheme scheme;
  int ranks;
  bool has_documents;
};
// Each layout, scheme and number of ranks at least once.
constexpr Case kCases[] = {
    {dist::LayoutKind::contiguous, dist::Scheme::ring, 2, false},
    {dist::LayoutKind::zigzag, dist::Scheme::ulysses, 2, true},
    {dist::LayoutKind::striped, dist::Scheme::ring, 3, true},
    {dist::LayoutKind::contiguous, dist::Scheme::bidirectional_ring, 3, true},
    {dist::LayoutKind::balanced, dist::Scheme::usp, 4, true},
    {dist::LayoutKind::zigzag, dist::Scheme::double_ring, 4, false},
    {dist::LayoutKind::striped, dist::Scheme::all_gather, 8, false},
};
std::string to_string(const Case& c) {
  return fmt::format("{}, {}, {} ranks{}", to_string(c.layout), to_string(c.scheme), c.ranks,
                     c.has_documents ? ", documents" : "");
}

// The tokens of both rows; rows differ in their documents. Without documents the length divides, so that none are needed for padding.
struct Sequence {
  explicit Sequence(const Case& c) : length(c.ranks * kBlock * kBlocksPerRank - (c.has_documents ? 3 : 0)) {
    if (!c.has_documents) return;
    for (int64_t b = 0; b < kBatch; ++b) {
      const int64_t first = length / 3 + 2 * b;  // tokens of the first document; the second has all but the last
      for (int64_t t = 0; t < length; ++t) {
        const int32_t document = t < first ? 0 : t + 1 < length ? 1 : 2;
        documents.push_back(document);
        places.push_back(static_cast<int32_t>(document == 0 ? t : document == 1 ? t - first : 0));
      }
    }
  }
  int64_t length;
  std::vector<int32_t> documents, places;  // [kBatch length], or empty
};

dist::Layout layout_of(const Case& c, const Sequence& s) {
  switch (c.layout) {
    case dist::LayoutKind::contiguous: return dist::Layout::contiguous(s.length, c.ranks);
    case dist::LayoutKind::striped: return dist::Layout::striped(s.length, c.ranks, kBlock);
    case dist::LayoutKind::zigzag: return dist::Layout::zigzag(s.length, c.ranks);
    case dist::LayoutKind::balanced: break;
  }
  dist::CausalMask mask;
  if (c.has_documents) mask.documents.assign(s.documents.begin(), s.documents.begin() + s.length);
  return dist::Layout::balanced(s.length, c.ranks, mask, kBlock);
}

TokenData data_at(const Sequence& s, const std::vector<int32_t>& positions) {
  const auto n = static_cast<int64_t>(positions.size());
  std::array<std::vector<int32_t>, 3> all;
  for (int64_t b = 0; b < kBatch; ++b)
    for (int32_t p : positions) {
      const bool is_padding = p >= s.length;
      const auto at = static_cast<size_t>(b * s.length + p);
      all[0].push_back(p);
      if (s.documents.empty()) continue;
      all[1].push_back(is_padding ? -1 : s.documents[at]);
      all[2].push_back(is_padding ? 0 : s.places[at]);
    }
  auto there = [&](const std::vector<int32_t>& numbers) {
    return numbers.empty() ? Tensor()
                           : to(Tensor::from(std::span<const int32_t>(numbers), {kBatch, n}), default_device()).value();
  };
  TokenData data{.positions = there(all[0]), .documents = there(all[1]), .document_positions = there(all[2])};
  data.are_consecutive = are_consecutive(data.positions.cpu());
  return data;
}

// Those tokens of x [kBatch, length, D], zeros for padding.
Tensor tokens_at(const Tensor& x, const std::vector<int32_t>& positions) {
  const int64_t length = x.size(1), n = static_cast<int64_t>(positions.size()), D = x.size(2);
  Tensor out = Tensor::zeros({kBatch, n, D}, x.dtype(), x.device());
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t i = 0; i < n; ++i)
      if (const int32_t p = positions[static_cast<size_t>(i)]; p < length)
        std::copy_n(x.data<double>() + (b * length + p) * D, D, out.mutable_data<double>() + (b * n + i) * D);
  return out;
}

struct Numbers {
  std::vector<double> out, dx;        // of tokens in the order of positions
  std::vector<double> of_parameters;  // gradients and buffers
};

// One rank's share, of `length` tokens in all. Its tokens are added at their places; parameters are summed over ranks.
void run_rank(const Subject& subject, const Sequence& s, const std::vector<int32_t>& positions,
              const ContextGroup* group, Numbers& into, std::mutex& mutex) {
  std::unique_ptr<Mixer> mixer = subject.make(kF64);
  const int64_t D = subject.args().dim, n = static_cast<int64_t>(positions.size());
  const Shape whole{kBatch, s.length, D};
  const Tensor weight = tokens_at(normal_input(whole, kF64, 5), positions);
  Var x = variable(tokens_at(normal_input(whole, kF64), positions));
  Tokens tokens(data_at(s, positions), {.is_training = true, .rng = Rng(11), .context = group});
  tokens.share("embedding", x * 0.5);
  tokens.share(fixed_sequence_name(subject.args().layer), normal_input({1, subject.args().context, D}, kF64, 77));
  Var y = tokens.settled(mixer->forward(x, tokens)), loss = sum_all(y * weight);
  for (const Tokens::Loss& extra : tokens.losses()) loss = loss + cast(extra.value, kF64) * extra.weight;
  backward(loss);
  std::vector<double> of_parameters;
  auto append = [&](Tensor t) {
    std::vector<double> more = numbers_of(t);
    of_parameters.insert(of_parameters.end(), more.begin(), more.end());
  };
  for (const NamedParam& p : mixer->params()) {
    Tensor grad = p.param->grad();
    grad = grad.defined() ? ops::clone(grad) : Tensor::zeros(p.param->value().shape(), kF64, x.device());
    if (group) group->tokens->all_reduce(grad);
    append(grad);
  }
  for (const NamedBuffer& b : mixer->buffers())
    b.buffer->reduce([&](Tensor& sum) {
      if (group) group->tokens->all_reduce(sum);
    });
  mixer->update_buffers();
  for (const NamedBuffer& b : mixer->buffers()) append(b.buffer->value());

  std::lock_guard lock(mutex);
  const std::vector<double> out = numbers_of(y.value()), dx = numbers_of(x.grad());
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t i = 0; i < n; ++i) {
      const int32_t p = positions[static_cast<size_t>(i)];
      if (p >= s.length) continue;
      for (int64_t d = 0; d < D; ++d) {
        const auto to = static_cast<size_t>((b * s.length + p) * D + d),
                   from = static_cast<size_t>((b * n + i) * D + d);
        into.out[to] = out[from], into.dx[to] = dx[from];
      }
    }
  if (!group || group->tokens->rank() == 0) into.of_parameters = of_parameters;
}

Numbers run_over(const Subject& subject, const Case& c, const Sequence& s, bool is_spread) {
  const auto count = static_cast<size_t>(kBatch * s.length * subject.args().dim);
  Numbers numbers{std::vector<double>(count), std::vector<double>(count), {}};
  std::mutex mutex;
  if (!is_spread) {
    run_rank(subject, s, dist::Layout::contiguous(s.length, 1).positions(0), nullptr, numbers, mutex);
    return numbers;
  }
  const dist::Layout layout = layout_of(c, s);
  dist::run_thread_ranks(c.ranks, [&](dist::Communicator& comm) {
    const ContextGroup group{.tokens = &comm, .scheme = c.scheme};
    run_rank(subject, s, layout.positions(comm.rank()), &group, numbers, mutex);
  });
  return numbers;
}

// The largest, over 1 plus the largest number: gradients of parameters are sums over all tokens.
double difference(const std::vector<double>& got, const std::vector<double>& expected) {
  double largest = 0;
  for (double x : expected) largest = std::max(largest, std::abs(x));
  return largest_difference(got, expected) / (1 + largest);
}

}  // namespace

Outcome check_ranks(const Subject& subject) {
  const std::string_view missing = subject.row().lacks.order;
  double worst = 0;
  std::string worst_case = "none";
  int count = 0, undivided = 0;
  for (const Case& c : kCases) {
    if (c.has_documents && !subject.row().lacks.documents.empty()) continue;
    const Sequence sequence(c);
    const Subject longer(subject.row(), subject.args().dim, sequence.length);
    if (!missing.empty()) {  // what is declared missing must be refused, not computed wrong
      try {
        run_over(longer, c, sequence, true);
      } catch (const Error&) { continue; }
      return {Verdict::failed, fmt::format("is said to be missing ({}), but {} is not refused", missing, to_string(c))};
    }
    const Numbers expected = run_over(longer, c, sequence, false);
    Numbers got;
    try {
      got = run_over(longer, c, sequence, true);
    } catch (const Error& error) {  // the only thing that a scheme may refuse
      if (c.scheme != dist::Scheme::ulysses || !error.problem().starts_with("ulysses: ")) throw;
      ++undivided;
      got = run_over(longer, {c.layout, dist::Scheme::ring, c.ranks, c.has_documents}, sequence, true);
    }
    const double differences[] = {difference(got.out, expected.out), difference(got.dx, expected.dx),
                                  difference(got.of_parameters, expected.of_parameters)};
    const double largest = *std::max_element(std::begin(differences), std::end(differences));
    if (largest > worst)
      worst = largest, worst_case = fmt::format("{}: outputs {:.2g}, input gradients {:.2g}, parameters {:.2g}",
                                                to_string(c), differences[0], differences[1], differences[2]);
    ++count;
  }
  if (!missing.empty()) return {Verdict::unsupported, std::string(missing)};
  Outcome outcome = within(
      worst, 1e-10,
      fmt::format("{} cases{}, largest difference", count, undivided ? ", heads that ulysses cannot divide" : ""));
  if (outcome.verdict == Verdict::failed) outcome.reason += fmt::format(" ({})", worst_case);
  return outcome;
}

}  // namespace weft::conformance
