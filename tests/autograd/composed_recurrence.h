// A recurrence over ranks made of differentiable parts, as the reference of context_recur(): each rank its segments from states of zeros, all-gathers
// of what they end in and of the maps of the state that comes in, the states one after the other, and what they add to the outputs. Gradients are
// those of the parts. J segments here of at most L tokens, H heads, K key width, V value width.
#pragma once

#include <array>
#include <vector>

#include "weft/autograd/ranks.h"
#include "weft/autograd/recurrence.h"

namespace weft::test {

// x where the mask, which has x's first dimensions, is 1; 0 elsewhere.
inline Var masked(const std::vector<double>& mask, const Shape& shape, const Var& x) {
  Tensor of = Tensor::from(std::span<const double>(mask), shape);
  while (of.num_dims() < x.num_dims()) of = of.unsqueeze(-1);
  return where(greater(Var(of.expand(x.shape())), 0.5), x, Var(Tensor::zeros({}, kF64)));
}

inline Var of_all_ranks(dist::Communicator& comm, const dist::SegmentPlan& plan, const Var& x) {
  Shape rest = x.shape();
  rest[0] = plan.most - x.size(0);
  const Var parts[] = {x, Tensor::zeros(rest, kF64)};
  return all_gather(comm, concatenate(parts, 0));
}

// [J, L, G, K] -> [J, L, H, K]
inline Var per_value_head(const Var& x, int64_t heads) {
  const int64_t each = heads / x.size(2);
  return reshape(expand(unsqueeze(x, 3), {x.size(0), x.size(1), x.size(2), each, x.size(3)}),
                 {x.size(0), x.size(1), heads, x.size(3)});
}

// {out, state} as context_recur(), in f64.
inline std::array<Var, 2> composed_recur(dist::Communicator& comm, const dist::SegmentPlan& plan,
                                         const RecurrenceVars& in, const ops::RecurrenceOptions& options) {
  const int64_t J = in.v_BTHV.size(0), L = in.v_BTHV.size(1), H = in.v_BTHV.size(2), K = in.q_BTGK.size(3),
                V = in.v_BTHV.size(3);
  const std::vector<int32_t> documents = in.documents.to_vector<int32_t>();
  std::vector<double> is_token, is_reached;
  std::vector<double> starts(static_cast<size_t>(J), 1), goes_on(static_cast<size_t>(J), 0);
  for (const auto& s : plan.segments)
    if (s.rank == comm.rank() && s.comes_in)
      starts[static_cast<size_t>(s.index)] = 0, goes_on[static_cast<size_t>(s.index)] = 1;
  for (int64_t i = 0; i < J * L; ++i) {
    const auto at = static_cast<size_t>(i);
    is_token.push_back(documents[at] >= 0);
    int64_t first = i / L * L;  // of its segment, that is no padding
    while (first < i && documents[static_cast<size_t>(first)] < 0) ++first;
    is_reached.push_back(documents[at] >= 0 && documents[at] == documents[static_cast<size_t>(first)] &&
                         goes_on[static_cast<size_t>(i / L)] > 0);
  }
  const bool is_delta = in.beta.defined(), is_of_values = options.side == ops::DecaySide::value;
  RecurrenceVars local = in;
  if (in.state.defined()) local.state = masked(starts, {J}, in.state);
  Var out, ends, factor, maps,
      read;  // maps [J, H, K, K | 1] or [J, H, 1, V]; read: what q makes of the state that comes in
  if (is_delta) {
    const Var values[] = {in.v_BTHV, Tensor::zeros({J, L, H, K}, kF64)};
    local.v_BTHV = concatenate(values, -1);
    std::vector<double> identity(static_cast<size_t>(K * K), 0.0);
    for (int64_t c = 0; c < K; ++c) identity[static_cast<size_t>(c * K + c)] = 1;
    const Var state[] = {local.state.defined() ? local.state : Var(Tensor::zeros({J, H, K, V}, kF64)),
                         Tensor::from(std::span<const double>(identity), {K, K}).expand({J, H, K, K})};
    local.state = concatenate(state, -1);
    auto [y, behind] = recur(local, options);
    out = slice(y, -1, 0, V), read = slice(y, -1, V, V + K);
    ends = slice(behind, -1, 0, V), maps = slice(behind, -1, V, V + K);
  } else {
    auto [y, behind] = recur(local, options);
    out = y, ends = behind;
    Var g = in.log_decay;
    if (!g.defined()) g = Tensor::zeros({J, L, H}, kF64);
    if (g.num_dims() == 1) g = expand(g, {J, L, H});
    Var sums = cumsum(masked(is_token, {J, L}, g), 1), decays = exp(sums);
    const Shape of_state = g.num_dims() == 3 ? Shape{J, H, 1, 1} : is_of_values ? Shape{J, H, 1, V} : Shape{J, H, K, 1};
    maps = reshape(slice(decays, 1, L - 1, L), of_state);
    if (g.num_dims() == 3) decays = unsqueeze(decays, 3);
    read = per_value_head(in.q_BTGK, H) * options.scale;
    if (is_of_values) factor = decays;
    else read = read * decays;
  }
  const Var all_ends = of_all_ranks(comm, plan, ends), all_maps = of_all_ranks(comm, plan, maps);
  std::vector<Var> coming(static_cast<size_t>(J), Tensor::zeros({1, H, K, V}, kF64)), behind(static_cast<size_t>(J));
  Var state;
  for (const auto& s : plan.segments) {
    const int64_t row = s.rank * plan.most + s.index;
    const auto index = static_cast<size_t>(s.index);
    Var end = slice(all_ends, 0, row, row + 1), map = slice(all_maps, 0, row, row + 1);
    if (s.rank == comm.rank() && s.comes_in) coming[index] = state;
    if (s.comes_in && s.passes) end = end + (is_delta ? matmul(map, state) : map * state);
    if (s.rank == comm.rank()) behind[index] = end;
    state = end;
  }
  Var more = transpose(matmul(transpose(read, 1, 2), concatenate(coming, 0)), 1, 2);
  if (factor.defined()) more = more * factor;
  const Var gathered[] = {all_ends, all_maps};  // their backward runs on every rank
  return {hold(out + masked(is_reached, {J, L}, more), gathered), concatenate(behind, 0)};
}

}  // namespace weft::test
