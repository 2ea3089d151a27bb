#include "distributed/context/ring_call.h"

#include <cmath>

#include "weft/ops/select.h"

namespace weft::dist {

namespace {

// The call in chunks of heads, which the route moves one after another.
std::vector<Call> parts_of(const Ring& ring, const Call& call) {
  if (ring.route.parts == 1) return {call};
  const int64_t heads = call.keys.k.size(2);
  std::vector<Call> parts;
  for (int64_t begin = 0; begin < heads; begin += ring.heads_at_once)
    parts.push_back(heads_of(call, begin, std::min(heads, begin + ring.heads_at_once)));
  return parts;
}

Tensor join_heads(const std::vector<Tensor>& parts) {
  if (parts.size() == 1 || !parts.front().defined()) return parts.front();
  return ops::concatenate(parts, 2);
}
template <class T, class Member>
Tensor join_heads(const std::vector<T>& parts, Member member) {
  std::vector<Tensor> tensors;
  for (const T& part : parts) tensors.push_back(part.*member);
  return join_heads(tensors);
}

template <class Packet>
Packet as_packet(Packet packet) {
  for (Tensor* part : packet.parts()) *part = ops::contiguous(*part);
  return packet;
}
std::vector<Keys> keys_of(const Ring& ring, const std::vector<Call>& parts) {
  std::vector<Keys> keys;
  for (const Call& part : parts) keys.push_back(ring.route.ranks() > 1 ? as_packet(part.keys) : part.keys);
  return keys;
}

// Its lse is f64 where kernels take that: rounded to f32 at each hop, it would change the weights of all keys before.
ops::AttentionState running_state(const Call& call) {
  ops::AttentionState state = ops::attention_state(call.queries.q, call.keys.values().size(3), call.options);
  if (state.lse.defined() && state.lse.device().is_cpu()) state.lse = ops::cast(state.lse, kF64);
  return state;
}

class ForwardWork {
 public:
  using Packet = Keys;
  using Sums = NoSums;

  explicit ForwardWork(const std::vector<Call>& parts) : parts_(parts) {
    for (const Call& part : parts) states_.push_back(running_state(part));
  }
  NoSums operator()(int part, const Keys& keys) {
    const auto at = static_cast<size_t>(part);
    parts_[at].forward(states_[at], keys);
    return {};
  }
  NoSums zeros(int) const { return {}; }
  NoSums new_sums(int, int64_t) const { return {}; }
  int64_t tokens() const { return parts_.front().keys.k.size(1); }
  const std::vector<ops::AttentionState>& states() const { return states_; }

 private:
  const std::vector<Call>& parts_;
  std::vector<ops::AttentionState> states_;
};

// Keys travel; gradients of queries stay.
class BackwardWork {
 public:
  using Packet = Keys;
  using Sums = KeyGrads;

  explicit BackwardWork(const std::vector<Call>& parts) : parts_(parts) {
    for (const Call& part : parts) queries_.push_back(zeros_for(part.queries));
  }
  KeyGrads operator()(int part, const Keys& keys) {
    const auto at = static_cast<size_t>(part);
    KeyGrads sums = zeros_for(keys);
    parts_[at].backward(queries_[at], sums, parts_[at].queries, keys);
    return sums;
  }
  KeyGrads zeros(int part) const { return zeros_for(parts_[static_cast<size_t>(part)].keys); }
  KeyGrads new_sums(int part, int64_t tokens) const { return new_for(parts_[static_cast<size_t>(part)].keys, tokens); }
  int64_t tokens() const { return parts_.front().keys.k.size(1); }
  const std::vector<QueryGrads>& queries() const { return queries_; }

 private:
  const std::vector<Call>& parts_;
  std::vector<QueryGrads> queries_;
};

// Queries travel; gradients of keys stay.
class BackwardOfQueriesWork {
 public:
  using Packet = Queries;
  using Sums = QueryGrads;

  explicit BackwardOfQueriesWork(const Call& call) : call_(call), keys_(zeros_for(call.keys)) {}
  QueryGrads operator()(int, const Queries& queries) {
    QueryGrads sums = zeros_for(queries);
    call_.backward(sums, keys_, queries, call_.keys);
    return sums;
  }
  QueryGrads zeros(int) const { return zeros_for(call_.queries); }
  QueryGrads new_sums(int, int64_t tokens) const { return new_for(call_.queries, tokens); }
  int64_t tokens() const { return call_.queries.q.size(1); }
  const KeyGrads& keys() const { return keys_; }

 private:
  const Call& call_;
  KeyGrads keys_;
};

struct Mass {
  Tensor column_mass;
  std::vector<Tensor*> parts() { return {&column_mass}; }
};

class StatisticsWork {
 public:
  using Packet = Keys;
  using Sums = Mass;

  explicit StatisticsWork(const Call& call) : call_(call) {
    const Shape rows = call.queries.lse.shape();
    entropy_ = Tensor::zeros(rows, kF32, call.queries.q.device());
    max_score_ = Tensor::full(rows, -INFINITY, kF32, call.queries.q.device());
  }
  Mass operator()(int, const Keys& keys) {
    ops::AttentionStatistics of =
        ops::attention_statistics(call_.queries.q, keys.k, call_.queries.lse, call_.queries.tokens(), keys.tokens(),
                                  call_.options_of(call_.queries, keys));
    ops::add_(entropy_, of.entropy);
    max_score_ = ops::maximum(max_score_, of.max_score);
    return {of.column_mass};
  }
  Mass zeros(int) const { return {Tensor::zeros(shape(tokens()), kF32, call_.keys.k.device())}; }
  Mass new_sums(int, int64_t tokens) const { return {Tensor::empty(shape(tokens), kF32, call_.keys.k.device())}; }
  int64_t tokens() const { return call_.keys.k.size(1); }
  ops::AttentionStatistics with(const Tensor& column_mass) const { return {column_mass, entropy_, max_score_}; }

 private:
  Shape shape(int64_t tokens) const { return {call_.keys.k.size(0), tokens, call_.queries.q.size(2)}; }

  const Call& call_;
  Tensor entropy_, max_score_;
};

}  // namespace

ops::Attention attend_over(const Ring& ring, const Call& call) {
  if (ring.route.ranks() == 1)
    return ops::attend(call.queries.q, call.keys.k, call.keys.values(), call.queries.tokens(), call.keys.tokens(),
                       call.options_of(call.queries, call.keys));
  const std::vector<Call> parts = parts_of(ring, call);
  ForwardWork work(parts);
  const Traffic traffic = traffic_of_keys(ring.route, ring.plan);
  Travel<ForwardWork>(ring.ranks, traffic, keys_of(ring, parts), work).run();
  ops::Attention all{join_heads(work.states(), &ops::AttentionState::out),
                     join_heads(work.states(), &ops::AttentionState::lse)};
  if (all.lse.defined()) all.lse = ops::cast(all.lse, all.out.dtype());
  return all;
}

CallGrads backward_over(const Ring& ring, const Call& call) {
  if (ring.queries_travel) {
    const Route route = reversed_of(ring.route);
    const Traffic traffic = traffic_of_queries(route, ring.plan);
    BackwardOfQueriesWork work(call);
    std::vector<QueryGrads> sums =
        Travel<BackwardOfQueriesWork>(ring.ranks, traffic, {as_packet(call.queries)}, work).run();
    return {sums.front(), work.keys()};
  }
  const std::vector<Call> parts = parts_of(ring, call);
  BackwardWork work(parts);
  const Traffic traffic = traffic_of_keys(ring.route, ring.plan);
  const std::vector<KeyGrads> sums = Travel<BackwardWork>(ring.ranks, traffic, keys_of(ring, parts), work).run();
  return {{join_heads(work.queries(), &QueryGrads::dq), join_heads(work.queries(), &QueryGrads::dbias)},
          {join_heads(sums, &KeyGrads::dk), join_heads(sums, &KeyGrads::dv), join_heads(sums, &KeyGrads::dbias)}};
}

ops::AttentionStatistics statistics_over(const Ring& ring, const Call& call) {
  Ring whole = ring;
  if (ring.route.parts > 1) whole.route = ring_route(1, ring.route.ranks());
  StatisticsWork work(call);
  const Traffic traffic = traffic_of_keys(whole.route, whole.plan);
  const std::vector<Mass> sums = Travel<StatisticsWork>(whole.ranks, traffic, keys_of(whole, {call}), work).run();
  return work.with(sums.front().column_mass);
}

}  // namespace weft::dist
