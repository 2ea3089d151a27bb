// Recurrences over ranks: tokens by segments, then weft/distributed/context_recurrence.h. The element-wise one is made of differentiable parts: a
// scan of each segment from zeros, one all-gather, a scan of the segments, and what the states that come in add.
// B batch, T tokens here, J segments here of at most L tokens, S segments on all ranks, H heads, K key width, V value width, D channels.
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

}  // namespace

const Context::SegmentIndex& Context::segment_index() {
  if (segment_index_) return *segment_index_;
  const Segments s = plan_segments(tokens(), group_.tokens->rank());
  const Tensor& like = table_.positions();
  auto mask = [&](const std::vector<int32_t>& numbers) { return cast(Var(index_on(like, numbers)), kBool).value(); };
  const auto count = static_cast<int64_t>(s.chains.size());
  return segment_index_.emplace(
      SegmentIndex{.count = s.count,
                   .longest = s.longest,
                   .most = s.most,
                   .tokens = index_on(like, s.tokens),
                   .documents = index_on(like, s.documents).reshape({s.count, s.longest}),
                   .is_reached = mask(s.is_reached).reshape({s.count, s.longest}),
                   .places = index_on(like, s.places),
                   .is_in_segment = mask(s.is_in_segment).reshape({table_.batch(), table_.num_tokens()}),
                   .order = index_on(like, s.order),
                   .chains = index_on(like, s.chains).reshape({1, count}),
                   .before = index_on(like, s.before),
                   .goes_on = mask(s.goes_on),
                   .are_tokens_in_order = s.are_tokens_in_order(),
                   .have_all_tokens = s.have_all_tokens(),
                   .plan = std::make_shared<const dist::SegmentPlan>(s.plan)});
}

// [B, T, ...] -> [J, L, ...]
Var Context::in_segments(const Var& x) {
  const SegmentIndex& at = segment_index();
  Shape shape = x.shape();
  const int64_t n = shape[0] * shape[1];
  shape[0] = at.count, shape[1] = at.longest;
  if (at.are_tokens_in_order) return shape == x.shape() ? x : reshape(x, shape);
  return reshape(take_rows(reshape(x, {n, x.value().num_elements() / n}), at.tokens), shape);
}

// Padding that is in no segment reads zeros.
Var Context::from_segments(const Var& y) {
  const SegmentIndex& at = segment_index();
  Shape shape = y.shape();
  const int64_t n = shape[0] * shape[1];
  shape[0] = table_.batch(), shape[1] = table_.num_tokens();
  if (at.are_tokens_in_order) return shape == y.shape() ? y : reshape(y, shape);
  const Var tokens = reshape(take_rows(reshape(y, {n, y.value().num_elements() / n}), at.places), shape);
  return at.have_all_tokens ? tokens : kept(at.is_in_segment, tokens);
}

// Numbers of the segments here [J, ...] -> of all, by row and position [S, channels].
Var Context::of_all_segments(const Var& x) {
  const SegmentIndex& at = segment_index();
  Var rows = reshape(x, {at.count, x.value().num_elements() / at.count});
  return take_rows(all_gather(*group_.tokens, with_rows(rows, at.most)), at.order);
}

// States [J, D] from zeros and logs of the decays over whole segments [J, D] -> the states that come in, zeros where none does.
Var Context::carried(const Var& ends, const Var& log_decay) {
  const SegmentIndex& at = segment_index();
  const int64_t D = ends.size(1);
  const Var both[] = {ends, log_decay};
  Var all = unsqueeze(of_all_segments(concatenate(both, 1)), 0);
  Var scanned =
      weft::decay_scan({.x_BTD = slice(all, 2, 0, D), .log_decay = slice(all, 2, D, 2 * D), .documents = at.chains})[0];
  return kept(at.goes_on, take_rows(squeeze(scanned, 0), at.before));
}

dist::Carry Context::carry_of(const RecurrenceVars& local, const ops::RecurrenceOptions& options) {
  if (group_.carry) return *group_.carry;
  return dist::choose_carry({.ranks = group_.tokens->size(),
                             .segments = counts_of(*segment_index().plan),
                             .key_heads = local.q_BTGK.size(2),
                             .heads = local.v_BTHV.size(2),
                             .key_width = local.q_BTGK.size(3),
                             .value_width = local.v_BTHV.size(3),
                             .is_delta = local.beta.defined(),
                             .are_of_values = options.side == ops::DecaySide::value,
                             .dtype = local.v_BTHV.dtype() == kF64 ? kF64 : kF32,
                             .is_on_gpu = !local.v_BTHV.device().is_cpu(),
                             .threads = segment_index().plan->threads})
      .carry;
}

Var Context::recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options) {
  if (is_alone()) return Local::recur(input, options);
  const SegmentIndex& at = segment_index();
  RecurrenceVars local = input;
  for (Var* x : {&local.q_BTGK, &local.k_BTGK, &local.v_BTHV, &local.beta})
    if (x->defined()) *x = in_segments(*x);
  if (input.writes.defined()) local.writes = cast(in_segments(cast(Var(input.writes), kF32)), kBool).value();
  if (local.log_decay.defined() && local.log_decay.num_dims() > 1) local.log_decay = in_segments(local.log_decay);
  local.documents = at.documents;
  return from_segments(context_recur(*group_.tokens, at.plan, carry_of(local, options), local, options)[0]);
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
