// Recurrences over ranks (LASP-2, 2502.07563, for every decay and for the delta rule). Each segment is an affine map of the state that comes
// in: S' = P S + L. Each rank computes its segments from states of zeros, which gives their outputs and L. Two all-gathers, of L and of P, later it
// knows the states that come in, and adds what they change in the outputs. What is gathered does not grow with the number of tokens.
// B batch, T tokens here, J segments here of at most L tokens, H heads, K key width, V value width.
#include "src/nn/mixing/any_order.h"
#include "src/nn/mixing/context.h"
#include "src/nn/mixing/segments.h"

namespace weft {

namespace {

Tensor index_on(const Tensor& like, const std::vector<int32_t>& numbers) {
  return to(Tensor::from(std::span<const int32_t>(numbers), {static_cast<int64_t>(numbers.size())}), like.device())
      .value();
}

Var zeros_like(const Var& x) { return Tensor::zeros({}, x.dtype(), x.device()); }

// x where the mask, which has x's first dimensions, is true; 0 elsewhere.
Var kept(const Tensor& mask, const Var& x) {
  Tensor wide = mask;
  while (wide.num_dims() < x.num_dims()) wide = wide.unsqueeze(-1);
  return where(wide.expand(x.shape()), x, zeros_like(x));
}

Var with_rows(const Var& x, int64_t count) {
  if (x.size(0) == count) return x;
  Shape rest = x.shape();
  rest[0] = count - x.size(0);
  const Var parts[] = {x, Tensor::zeros(rest, x.dtype(), x.device())};
  return concatenate(parts, 0);
}

// [J, L, G, ...] -> [J, L, H, ...]: each key head for the value heads that share it.
Var per_value_head(const Var& x, int64_t heads) {
  const int64_t G = x.size(2), each = heads / G;
  if (each == 1) return x;
  return reshape(expand(unsqueeze(x, 3), {x.size(0), x.size(1), G, each, x.size(3)}),
                 {x.size(0), x.size(1), heads, x.size(3)});
}

// q [J, L, H, K] and states [J, H, K, V] -> [J, L, H, V]
Var read(const Var& q_JLHK, const Var& state_JHKV) {
  return transpose(matmul(transpose(q_JLHK, 1, 2), state_JHKV), 1, 2);
}

}  // namespace

const Context::SegmentIndex& Context::segment_index() {
  if (segment_index_) return *segment_index_;
  const Segments s = plan_segments(tokens(), group_.tokens->rank());
  const Tensor& like = table_.positions();
  auto mask = [&](const std::vector<int32_t>& numbers) { return cast(Var(index_on(like, numbers)), kBool).value(); };
  const auto count = static_cast<int64_t>(s.chains.size());
  return segment_index_.emplace(SegmentIndex{.count = s.count,
                                             .longest = s.longest,
                                             .most = s.most,
                                             .tokens = index_on(like, s.tokens),
                                             .documents = index_on(like, s.documents).reshape({s.count, s.longest}),
                                             .is_reached = mask(s.is_reached).reshape({s.count, s.longest}),
                                             .places = index_on(like, s.places),
                                             .order = index_on(like, s.order),
                                             .chains = index_on(like, s.chains).reshape({1, count}),
                                             .before = index_on(like, s.before),
                                             .goes_on = mask(s.goes_on),
                                             .chain_of = s.chains});
}

// [B, T, ...] -> [J, L, ...]
Var Context::in_segments(const Var& x) {
  const SegmentIndex& at = segment_index();
  Shape shape = x.shape();
  const int64_t n = shape[0] * shape[1];
  Var rows = take_rows(reshape(x, {n, x.value().num_elements() / n}), at.tokens);
  shape[0] = at.count, shape[1] = at.longest;
  return reshape(rows, shape);
}

Var Context::from_segments(const Var& y) {
  const SegmentIndex& at = segment_index();
  Shape shape = y.shape();
  const int64_t n = shape[0] * shape[1];
  Var rows = take_rows(reshape(y, {n, y.value().num_elements() / n}), at.places);
  shape[0] = table_.batch(), shape[1] = table_.num_tokens();
  return reshape(rows, shape);
}

// Numbers of the segments here [J, ...] -> of all, by row and position [S, channels].
Var Context::of_all_segments(const Var& x) {
  const SegmentIndex& at = segment_index();
  Var rows = reshape(x, {at.count, x.value().num_elements() / at.count});
  return take_rows(all_gather(*group_.tokens, with_rows(rows, at.most)), at.order);
}

// Of the states at the ends of all segments [S, channels] those that come into the segments here, zeros where none does.
Var Context::coming_in(const Var& ends, const Shape& shape) {
  const SegmentIndex& at = segment_index();
  return reshape(kept(at.goes_on, take_rows(ends, at.before)), shape);
}

// States [J, ...] from zeros and logs of the decays over whole segments [J, ...] that broadcast against them -> the states that come in.
Var Context::carried(const Var& ends, const Var& log_decay) {
  const SegmentIndex& at = segment_index();
  Var states = of_all_segments(ends), decays = of_all_segments(log_decay);
  const int64_t S = states.size(0);
  Shape of_state = ends.shape(), of_decay = log_decay.shape();
  of_state[0] = of_decay[0] = S;
  decays = reshape(expand(reshape(decays, of_decay), of_state), {1, S, states.size(1)});
  Var scanned = weft::decay_scan({.x_BTD = unsqueeze(states, 0), .log_decay = decays, .documents = at.chains})[0];
  return coming_in(squeeze(scanned, 0), ends.shape());
}

// The same for states that are multiplied by matrices [J, H, K, K].
Var Context::carried_by_matrices(const Var& ends, const Var& matrices) {
  const SegmentIndex& at = segment_index();
  Shape of_one = ends.shape(), of_matrix = matrices.shape();
  of_one[0] = of_matrix[0] = 1;
  Var states = of_all_segments(ends), maps = of_all_segments(matrices);
  std::vector<Var> all;
  for (int64_t i = 0; i < states.size(0); ++i) {
    Var state = reshape(slice(states, 0, i, i + 1), of_one);
    const bool depends = i > 0 && at.chain_of[static_cast<size_t>(i)] == at.chain_of[static_cast<size_t>(i - 1)];
    if (depends) state = state + matmul(reshape(slice(maps, 0, i, i + 1), of_matrix), all.back());
    all.push_back(state);
  }
  Var joined = concatenate(all, 0);
  return coming_in(reshape(joined, states.shape()), ends.shape());
}

Var Context::recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options) {
  if (is_alone()) return Local::recur(input, options);
  const SegmentIndex& at = segment_index();
  RecurrenceVars local = input;
  for (Var* x : {&local.q_BTGK, &local.k_BTGK, &local.v_BTHV, &local.beta})
    if (x->defined()) *x = in_segments(*x);
  if (input.writes.defined()) local.writes = cast(in_segments(cast(Var(input.writes), kF32)), kBool).value();
  local.documents = at.documents;
  const int64_t J = at.count, L = at.longest, H = local.v_BTHV.size(2), K = local.q_BTGK.size(3),
                V = local.v_BTHV.size(3);
  Var& g = local.log_decay;
  if (g.defined()) g = g.num_dims() == 1 ? expand(g, {J, L, H}) : in_segments(g);
  const DType dtype = local.v_BTHV.dtype(), wide = dtype == kF64 ? kF64 : kF32;
  if (input.beta.defined()) return from_segments(delta_in_segments(local, options));

  auto [out, ends] = weft::recur(local, options);
  const Tensor is_token = greater_equal(Var(at.documents), 0.0);
  Var sums = g.defined() ? cumsum(kept(is_token, g), 1) : Var(Tensor::zeros({J, L, H}, wide, out.device()));
  Var total = slice(sums, 1, L - 1, L), q = cast(per_value_head(local.q_BTGK, H), wide);
  const bool is_per_channel = g.defined() && g.num_dims() == 4, is_of_values = options.side == ops::DecaySide::value;
  const Shape of_state = !is_per_channel ? Shape{J, H, 1, 1} : is_of_values ? Shape{J, H, 1, V} : Shape{J, H, K, 1};
  Var state = carried(ends, reshape(total, of_state)), factor = exp(kept(at.is_reached, sums));
  if (!is_per_channel) factor = unsqueeze(factor, 3);
  Var more = is_of_values ? read(q, state) * factor : read(q * factor, state);
  return from_segments(out + cast(kept(at.is_reached, more * options.scale), dtype));
}

// With [v | 0] as values and [0 | I] as the state that comes in, the recurrence returns what it returns without it, and beside that q_t and
// the end as linear maps of it.
Var Context::delta_in_segments(RecurrenceVars local, const ops::RecurrenceOptions& options) {
  const int64_t J = local.v_BTHV.size(0), L = local.v_BTHV.size(1), H = local.v_BTHV.size(2), K = local.q_BTGK.size(3),
                V = local.v_BTHV.size(3);
  const DType dtype = local.v_BTHV.dtype(), wide = dtype == kF64 ? kF64 : kF32;
  const Device device = local.v_BTHV.device();
  const Var values[] = {local.v_BTHV, Tensor::zeros({J, L, H, K}, dtype, device)};
  local.v_BTHV = concatenate(values, -1);
  std::vector<double> identity(static_cast<size_t>(K * (V + K)), 0.0);
  for (int64_t c = 0; c < K; ++c) identity[static_cast<size_t>(c * (V + K) + V + c)] = 1;
  Var start = cast(to(Tensor::from(std::span<const double>(identity), {K, V + K}), device), wide);
  local.state = expand(start, {J, H, K, V + K}) * 1.0;
  auto [out, ends] = weft::recur(local, options);
  Var state = carried_by_matrices(slice(ends, -1, 0, V), slice(ends, -1, V, V + K));
  Var more = read(cast(slice(out, -1, V, V + K), wide), state);
  return slice(out, -1, 0, V) + cast(kept(segment_index().is_reached, more), dtype);
}

Var Context::decay_scan(const Var& x_BTD, const Var& log_decay) {
  if (is_alone()) return Local::decay_scan(x_BTD, log_decay);
  const SegmentIndex& at = segment_index();
  Var x = in_segments(x_BTD);
  Var g = log_decay.num_dims() == 1 ? expand(log_decay, x.shape()) : in_segments(log_decay);
  auto [y, ends] = weft::decay_scan({.x_BTD = x, .log_decay = g, .documents = at.documents});
  Var sums = cumsum(kept(greater_equal(Var(at.documents), 0.0), g), 1);
  Var state = carried(ends, squeeze(slice(sums, 1, at.longest - 1, at.longest), 1));
  Var more = kept(at.is_reached, exp(kept(at.is_reached, sums)) * unsqueeze(state, 1));
  return from_segments(y + cast(more, y.dtype()));
}

}  // namespace weft
