#include "trainers/conformance/spread.h"

#include <algorithm>
#include <cmath>
#include <mutex>

#include "weft/nn/context_group.h"
#include "weft/ops/elementwise.h"

namespace weft::conformance {

namespace {

constexpr int64_t kBatch = 2;

dist::Layout layout_of(const SpreadCase& c, const SpreadSequence& s) {
  switch (c.layout) {
    case dist::LayoutKind::contiguous: return dist::Layout::contiguous(s.length, c.ranks);
    case dist::LayoutKind::striped: return dist::Layout::striped(s.length, c.ranks, kSpreadBlock);
    case dist::LayoutKind::zigzag: return dist::Layout::zigzag(s.length, c.ranks);
    case dist::LayoutKind::balanced: break;
  }
  dist::TokenMask mask;
  if (!s.documents.empty()) mask.documents.assign(s.documents.begin(), s.documents.begin() + s.length);
  return dist::Layout::balanced(s.length, c.ranks, mask, kSpreadBlock);
}

TokenData data_at(const SpreadSequence& s, const std::vector<int32_t>& positions) {
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

// Those tokens of random numbers [kBatch, length, D], zeros for padding.
Tensor input_at(int64_t length, int64_t dim, const std::vector<int32_t>& positions, const SpreadRun& how,
                uint64_t seed) {
  const Tensor x = cast(Var(normal_input({kBatch, length, dim}, how.inputs, seed)), kF64).value();
  const auto n = static_cast<int64_t>(positions.size());
  Tensor out = Tensor::zeros({kBatch, n, dim}, kF64, x.device());
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t i = 0; i < n; ++i)
      if (const int32_t p = positions[static_cast<size_t>(i)]; p < length)
        std::copy_n(x.data<double>() + (b * length + p) * dim, dim, out.mutable_data<double>() + (b * n + i) * dim);
  return cast(Var(out), how.compute).value();
}

// Weights or outputs of heads [kBatch, n, H, V] of a call, as a probe is shown them.
struct Shown {
  Tensor numbers;
  bool are_weights;
};

// Puts them to those of the other tokens. Keys of padding stand behind the others: nobody sees them.
void add_shown(const Shown& shown, const std::vector<int32_t>& positions, int64_t length, std::vector<double>& into) {
  const int64_t n = shown.numbers.size(1), H = shown.numbers.size(2), V = shown.numbers.size(3);
  const int64_t kept = shown.are_weights ? std::min(V, length) : V;
  const std::vector<double> all = numbers_of(shown.numbers);
  into.resize(static_cast<size_t>(kBatch * length * H * kept));
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t i = 0; i < n; ++i) {
      const int32_t p = positions[static_cast<size_t>(i)];
      if (p >= length) continue;
      for (int64_t h = 0; h < H; ++h)
        for (int64_t v = 0; v < V; ++v) {
          const double x = all[static_cast<size_t>(((b * n + i) * H + h) * V + v)];
          const auto row = static_cast<size_t>(((b * length + p) * H + h) * kept);
          if (v < kept) into[row + static_cast<size_t>(v)] = x;
          else if (x != 0) into[row] = HUGE_VAL;
        }
    }
}

// One rank's share. Its tokens are added at their places; parameters are summed over ranks.
void run_rank(const Subject& subject, const SpreadSequence& s, const std::vector<int32_t>& positions,
              const ContextGroup* group, const SpreadRun& how, SpreadNumbers& into, std::mutex& mutex) {
  std::unique_ptr<Mixer> mixer = subject.make(how.compute);
  const int64_t D = subject.args().dim, n = static_cast<int64_t>(positions.size());
  const DType wide = how.compute == kF64 ? kF64 : kF32;
  const Tensor weight = cast(Var(input_at(s.length, D, positions, how, 5)), wide).value();
  Var x = variable(input_at(s.length, D, positions, how, 3));
  std::vector<Shown> shown;
  const Probe probe{.weights =
                        [&](std::string_view, const Tensor& weights, bool) {
                          shown.push_back({weights, true});
                        },
                    .heads =
                        [&](std::string_view, const Var& y) {
                          shown.push_back({y.value(), false});
                          return y;
                        }};
  Tokens tokens(
      data_at(s, positions),
      {.is_training = how.is_training, .rng = Rng(11), .probe = how.is_watched ? &probe : nullptr, .context = group});
  tokens.share("embedding", x * 0.5);
  tokens.share(fixed_sequence_name(subject.args().layer),
               normal_input({1, subject.args().context, D}, how.compute, 77));
  Var y = tokens.settled(mixer->forward(x, tokens)), loss = sum_all(cast(y, wide) * weight);
  for (const Tokens::Loss& extra : tokens.losses()) loss = loss + cast(extra.value, wide) * extra.weight;
  backward(loss);
  std::vector<double> of_parameters;
  auto append = [&](Tensor t) {
    std::vector<double> more = numbers_of(t);
    of_parameters.insert(of_parameters.end(), more.begin(), more.end());
  };
  for (const NamedParam& p : mixer->params()) {
    Tensor grad = p.param->grad();
    grad = grad.defined() ? ops::clone(grad) : Tensor::zeros(p.param->value().shape(), wide, x.device());
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
  into.shown.resize(shown.size());
  for (size_t call = 0; call < shown.size(); ++call) add_shown(shown[call], positions, s.length, into.shown[call]);
  if (!group || group->tokens->rank() == 0) into.of_parameters = of_parameters;
}

SpreadNumbers numbers_for(const Subject& subject, const SpreadSequence& s) {
  const auto count = static_cast<size_t>(kBatch * s.length * subject.args().dim);
  return {std::vector<double>(count), std::vector<double>(count), {}};
}

}  // namespace

SpreadSequence::SpreadSequence(int64_t num_tokens, bool has_documents) : length(num_tokens) {
  if (!has_documents) return;
  for (int64_t b = 0; b < kBatch; ++b) {
    const int64_t first = length / 3 + 2 * b;  // tokens of the first document; the second has all but the last
    for (int64_t t = 0; t < length; ++t) {
      const int32_t document = t < first ? 0 : t + 1 < length ? 1 : 2;
      documents.push_back(document);
      places.push_back(static_cast<int32_t>(document == 0 ? t : document == 1 ? t - first : 0));
    }
  }
}

SpreadNumbers run_spread(const Subject& subject, const SpreadCase& c, const SpreadSequence& sequence,
                         const SpreadRun& how) {
  SpreadNumbers numbers = numbers_for(subject, sequence);
  std::mutex mutex;
  const dist::Layout layout = layout_of(c, sequence);
  dist::run_thread_ranks(c.ranks, [&](dist::Communicator& comm) {
    const ContextGroup group{.tokens = &comm, .scheme = c.scheme};
    run_rank(subject, sequence, layout.positions(comm.rank()), &group, how, numbers, mutex);
  });
  return numbers;
}

SpreadNumbers run_whole(const Subject& subject, const SpreadSequence& sequence, const SpreadRun& how) {
  SpreadNumbers numbers = numbers_for(subject, sequence);
  std::mutex mutex;
  run_rank(subject, sequence, dist::Layout::contiguous(sequence.length, 1).positions(0), nullptr, how, numbers, mutex);
  return numbers;
}

}  // namespace weft::conformance
