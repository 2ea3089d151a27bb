// The schedule of a ring: data go from rank r to r + 1, so after s hops rank r has what began at (r - s) mod P.
#include "weft/distributed/ring_attention.h"

#include <vector>

#include "weft/core/error.h"
#include "weft/ops/elementwise.h"

namespace weft::dist {

namespace {

// What travels with the keys of one rank. Undefined members do not.
struct Keys {
  Tensor k, v, positions, documents, bias;

  std::vector<Tensor*> parts() {
    std::vector<Tensor*> parts;
    for (Tensor* part : {&k, &v, &positions, &documents, &bias})
      if (part->defined()) parts.push_back(part);
    return parts;
  }
  ops::AttentionTokens tokens() const { return {positions, documents}; }
  ops::AttentionOptions options(ops::AttentionOptions options) const {
    options.score.key_bias = bias;
    return options;
  }
};

Keys own_keys(const Tensor& k, const Tensor& v, const ops::AttentionTokens& here, const ops::AttentionOptions& options) {
  Keys keys{k, v, here.positions, here.documents, options.score.key_bias};
  for (Tensor* part : keys.parts()) *part = ops::contiguous(*part);
  return keys;
}

// New tensors like those that travel, to receive the same of another rank.
Keys like(Keys keys) {
  for (Tensor* part : keys.parts()) *part = Tensor::empty(part->shape(), part->dtype(), part->device());
  return keys;
}

class Ring {
 public:
  Ring(Communicator& comm, const HopPlan& plan) : comm_(comm), plan_(plan) {
    WEFT_CHECK(plan.ranks == comm.size(), str("ring attention: a plan of ", plan.ranks, " ranks for ", comm.size()),
               "make the plan from the layout of this communicator's ranks");
  }
  int steps() const { return plan_.steps; }
  bool has_work(int step) const { return plan_.cover_of(comm_.rank(), step) != Cover::empty; }

  // Sends `from` `distance` ranks on and receives what comes from as far before.
  std::unique_ptr<Transfer> start(const std::vector<Tensor*>& from, const std::vector<Tensor*>& to, int distance = 1) {
    const int ranks = comm_.size();
    std::vector<Send> sends;
    std::vector<Receive> receives;
    for (Tensor* tensor : from) sends.push_back({*tensor, (comm_.rank() + distance) % ranks});
    for (Tensor* tensor : to) receives.push_back({*tensor, (comm_.rank() + ranks - distance % ranks) % ranks});
    return comm_.start_exchange(sends, receives);
  }

 private:
  Communicator& comm_;
  const HopPlan& plan_;
};

// Sums of the gradients of one rank's keys, f32 or f64; that of the biases f64.
struct KeyGrads {
  Tensor dk, dv, dbias;

  std::vector<Tensor*> parts() {
    std::vector<Tensor*> parts{&dk, &dv};
    if (dbias.defined()) parts.push_back(&dbias);
    return parts;
  }
};

KeyGrads zeros_for(const Keys& keys) {
  const DType dtype = keys.k.dtype() == kF64 ? kF64 : kF32;
  KeyGrads grads{Tensor::zeros(keys.k.shape(), dtype, keys.k.device()),
                 Tensor::zeros(keys.v.shape(), dtype, keys.v.device()), {}};
  if (keys.bias.defined()) grads.dbias = Tensor::zeros(keys.bias.shape(), kF64, keys.bias.device());
  return grads;
}

Tensor rounded(const Tensor& x, DType dtype) { return x.dtype() == dtype ? x : ops::cast(x, dtype); }

}  // namespace

ops::Attention ring_attention(Communicator& comm, const Tensor& q, const Tensor& k, const Tensor& v,
                              const ops::AttentionTokens& here, const ops::AttentionOptions& options,
                              const HopPlan& plan) {
  Ring ring(comm, plan);
  const ops::AttentionTokens queries{here.positions, here.documents};
  ops::AttentionState state = ops::attention_state(q, v.size(3), options);
  Keys keys = own_keys(k, v, here, options);
  for (int step = 0; step < ring.steps(); ++step) {
    const bool is_last = step + 1 == ring.steps();
    Keys next = is_last ? Keys{} : like(keys);
    auto transfer = is_last ? nullptr : ring.start(keys.parts(), next.parts());
    if (ring.has_work(step))
      ops::attend_block(state, q, keys.k, keys.v, queries, keys.tokens(), keys.options(options));
    if (transfer) transfer->wait();
    if (!is_last) keys = next;
  }
  return {rounded(state.out, q.dtype()), state.lse};
}

ops::AttentionGrads ring_attention_backward(Communicator& comm, const Tensor& dout, const Tensor& dlse, const Tensor& q,
                                            const Tensor& k, const Tensor& v, const ops::Attention& result,
                                            const ops::AttentionTokens& here, const ops::AttentionOptions& options,
                                            const HopPlan& plan) {
  Ring ring(comm, plan);
  const ops::AttentionTokens queries{here.positions, here.documents};
  const Tensor delta = ops::attention_delta(dout, result.out, dlse, options);
  const DType sums = q.dtype() == kF64 ? kF64 : kF32;
  Keys keys = own_keys(k, v, here, options);
  Tensor dq = Tensor::zeros(q.shape(), sums, q.device()), dquery_bias;
  const Tensor& query_bias = options.score.query_bias;
  if (query_bias.defined()) dquery_bias = Tensor::zeros(query_bias.shape(), kF64, q.device());
  KeyGrads sum;  // of the keys of the step before, by all ranks that have had them
  for (int step = 0; step < ring.steps(); ++step) {
    const bool is_last = step + 1 == ring.steps(), has_sum = step > 0;
    Keys next = is_last ? Keys{} : like(keys);
    KeyGrads coming = has_sum ? zeros_for(keys) : KeyGrads{};
    std::vector<Tensor*> from, to;
    auto travels = [&](auto& sent, auto& received) {
      for (Tensor* part : sent.parts()) from.push_back(part);
      for (Tensor* part : received.parts()) to.push_back(part);
    };
    if (!is_last) travels(keys, next);
    if (has_sum) travels(sum, coming);
    auto transfer = ring.start(from, to);
    KeyGrads own = zeros_for(keys);
    if (ring.has_work(step)) {
      ops::AttentionGrads grads{dq, own.dk, own.dv, dquery_bias, own.dbias};
      ops::attend_block_backward(grads, dout, q, keys.k, keys.v, result.lse, delta, queries, keys.tokens(),
                                 keys.options(options));
    }
    transfer->wait();
    if (has_sum)
      for (size_t i = 0; i < own.parts().size(); ++i)
        if (ring.has_work(step)) ops::add_(*coming.parts()[i], *own.parts()[i]);
    sum = has_sum ? coming : own;
    if (!is_last) keys = next;
  }
  KeyGrads home = zeros_for(own_keys(k, v, here, options));
  if (ring.steps() == 1) home = sum;
  else ring.start(sum.parts(), home.parts(), comm.size() - (ring.steps() - 1))->wait();
  ops::AttentionGrads grads{rounded(dq, q.dtype()), rounded(home.dk, k.dtype()), rounded(home.dv, v.dtype())};
  if (query_bias.defined()) grads.dquery_bias = rounded(dquery_bias, query_bias.dtype());
  if (home.dbias.defined()) grads.dkey_bias = rounded(home.dbias, options.score.key_bias.dtype());
  return grads;
}

}  // namespace weft::dist
