// What the schemes share: the keys of one rank with all that belongs to them, and the sums of their gradients.
#pragma once

#include <vector>

#include "weft/distributed/context_attention.h"
#include "weft/ops/elementwise.h"

namespace weft::dist {

// Undefined members do not travel.
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

inline Keys own_keys(const Tensor& k, const Tensor& v, const ops::AttentionTokens& here,
                     const ops::AttentionOptions& options) {
  Keys keys{k, v, here.positions, here.documents, options.score.key_bias};
  for (Tensor* part : keys.parts()) *part = ops::contiguous(*part);
  return keys;
}

// f32 or f64; that of the biases f64.
struct KeyGrads {
  Tensor dk, dv, dbias;

  std::vector<Tensor*> parts() {
    std::vector<Tensor*> parts{&dk, &dv};
    if (dbias.defined()) parts.push_back(&dbias);
    return parts;
  }
};

inline KeyGrads zeros_for(const Keys& keys) {
  const DType dtype = keys.k.dtype() == kF64 ? kF64 : kF32;
  KeyGrads grads{
      Tensor::zeros(keys.k.shape(), dtype, keys.k.device()), Tensor::zeros(keys.v.shape(), dtype, keys.v.device()), {}};
  if (keys.bias.defined()) grads.dbias = Tensor::zeros(keys.bias.shape(), kF64, keys.bias.device());
  return grads;
}

// The queries' part of a call and of its backward, the same under every scheme.
struct QueryWork {
  const Tensor& q;
  ops::AttentionTokens queries;
  const ops::AttentionOptions& options;

  void forward(ops::AttentionState& state, const Keys& keys) const {
    ops::attend_block(state, q, keys.k, keys.v, queries, keys.tokens(), keys.options(options));
  }
};

struct QueryBackward {
  const QueryWork& work;
  const Tensor& dout;
  const Tensor& lse;
  Tensor delta;
  Tensor dq, dquery_bias;  // sums, f32 or f64

  void add(KeyGrads& to, const Keys& keys) {
    ops::AttentionGrads grads{dq, to.dk, to.dv, dquery_bias, to.dbias};
    ops::attend_block_backward(grads, dout, work.q, keys.k, keys.v, lse, delta, work.queries, keys.tokens(),
                               keys.options(work.options));
  }
};

// distributed/context/ring.cpp
void ring_forward(Communicator& comm, const HopPlan& plan, Keys keys, const QueryWork& work,
                  ops::AttentionState& state);
KeyGrads ring_backward(Communicator& comm, const HopPlan& plan, Keys keys, QueryBackward& work);
// distributed/context/all_gather.cpp
void all_gather_forward(Communicator& comm, const HopPlan& plan, Keys keys, const QueryWork& work,
                        ops::AttentionState& state);
KeyGrads all_gather_backward(Communicator& comm, const HopPlan& plan, Keys keys, QueryBackward& work);

}  // namespace weft::dist
