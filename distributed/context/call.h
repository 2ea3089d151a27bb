// A call of the core in pieces that can travel: the queries of a rank with all that belongs to them, its keys, and the sums of their gradients.
#pragma once

#include <vector>

#include "weft/distributed/context_attention.h"
#include "weft/ops/elementwise.h"

namespace weft::dist {

// Those of a list that are defined: others do not travel.
inline std::vector<Tensor*> defined_of(std::initializer_list<Tensor*> tensors) {
  std::vector<Tensor*> parts;
  for (Tensor* tensor : tensors)
    if (tensor->defined()) parts.push_back(tensor);
  return parts;
}

struct Keys {
  Tensor k, v, positions, documents, bias = {};
  int64_t width_in_k = 0;  // without v: values are this many first channels of the keys

  std::vector<Tensor*> parts() { return defined_of({&k, &v, &positions, &documents, &bias}); }
  ops::AttentionTokens tokens() const { return {positions, documents}; }
  Tensor values() const { return v.defined() ? v : k.slice(3, 0, width_in_k); }
};

struct Queries {
  Tensor q, positions, documents, bias;
  Tensor dout = {}, lse = {}, delta = {};  // of a backward; `lse` of statistics too

  std::vector<Tensor*> parts() { return defined_of({&q, &positions, &documents, &bias, &dout, &lse, &delta}); }
  ops::AttentionTokens tokens() const { return {positions, documents}; }
};

// f32 or f64; those of the biases f64. Where values are channels of the keys, dk has their gradients too, and there is no dv.
struct KeyGrads {
  Tensor dk, dv, dbias;

  std::vector<Tensor*> parts() { return defined_of({&dk, &dv, &dbias}); }
};
struct QueryGrads {
  Tensor dq, dbias;

  std::vector<Tensor*> parts() { return defined_of({&dq, &dbias}); }
};

inline DType sum_type(const Tensor& x) { return x.dtype() == kF64 ? kF64 : kF32; }

// `make` is Tensor::zeros or Tensor::empty.
template <class Make>
KeyGrads make_grads(const Keys& keys, Make make) {
  KeyGrads grads{make(keys.k, sum_type(keys.k)), {}, {}};
  if (keys.v.defined()) grads.dv = make(keys.v, sum_type(keys.k));
  if (keys.bias.defined()) grads.dbias = make(keys.bias, kF64);
  return grads;
}
template <class Make>
QueryGrads make_grads(const Queries& queries, Make make) {
  QueryGrads grads{make(queries.q, sum_type(queries.q)), {}};
  if (queries.bias.defined()) grads.dbias = make(queries.bias, kF64);
  return grads;
}
template <class Packet>
auto zeros_for(const Packet& packet) {
  return make_grads(packet, [](const Tensor& x, DType dtype) { return Tensor::zeros(x.shape(), dtype, x.device()); });
}
template <class Packet>
auto new_for(const Packet& packet, int64_t tokens) {
  return make_grads(packet, [tokens](const Tensor& x, DType dtype) {
    Shape shape = x.shape();
    shape[1] = tokens;
    return Tensor::empty(shape, dtype, x.device());
  });
}

struct Call {
  Queries queries;
  Keys keys;
  ops::AttentionOptions options;  // its biases are those of queries and keys

  ops::AttentionOptions options_of(const Queries& of_queries, const Keys& of_keys) const {
    ops::AttentionOptions of = options;
    of.score.query_bias = of_queries.bias, of.score.key_bias = of_keys.bias;
    return of;
  }
  void forward(ops::AttentionState& state, const Keys& of) const {
    ops::attend_block(state, queries.q, of.k, of.values(), queries.tokens(), of.tokens(), options_of(queries, of));
  }
  void backward(QueryGrads& dqueries, KeyGrads& dkeys, const Queries& of_queries, const Keys& of_keys) const {
    const Tensor values = of_keys.values();
    const bool has_dv = dkeys.dv.defined();
    ops::AttentionGrads grads{dqueries.dq, dkeys.dk,
                              has_dv ? dkeys.dv : Tensor::zeros(values.shape(), dkeys.dk.dtype(), values.device()),
                              dqueries.dbias, dkeys.dbias};
    ops::attend_block_backward(grads, of_queries.dout, of_queries.q, of_keys.k, values, of_queries.lse,
                               of_queries.delta, of_queries.tokens(), of_keys.tokens(),
                               options_of(of_queries, of_keys));
    if (has_dv) return;
    Tensor in_keys = dkeys.dk.slice(3, 0, of_keys.width_in_k);
    ops::add_(in_keys, grads.dv);
  }
};

// Whether values are the first channels of the keys, as those of a latent that all heads share: then keys alone travel.
inline bool are_in_keys(const Tensor& v, const Tensor& k) {
  return v.defined() && v.raw() == k.raw() && v.strides() == k.strides() && v.dtype() == k.dtype() &&
         v.size(0) == k.size(0) && v.size(1) == k.size(1) && v.size(2) == k.size(2) && v.size(3) <= k.size(3);
}

inline Call call_of(const Tensor& q, const Tensor& k, const Tensor& v, const ops::AttentionTokens& here,
                    const ops::AttentionOptions& options) {
  Call call{
      .queries = {.q = q, .positions = here.positions, .documents = here.documents, .bias = options.score.query_bias},
      .keys =
          {.k = k, .v = v, .positions = here.positions, .documents = here.documents, .bias = options.score.key_bias},
      .options = options};
  if (are_in_keys(v, k)) call.keys.v = {}, call.keys.width_in_k = v.size(3);
  return call;
}

// distributed/context/heads.cpp
// The key/value heads begin .. end - 1 of a call and the query heads that read them, as views.
Call heads_of(const Call& call, int64_t begin, int64_t end);
// The same as options: slopes, and which heads they are for dropout. Biases are those of the call.
ops::AttentionOptions options_of_heads(const ops::AttentionOptions& options, int64_t begin, int64_t end);

}  // namespace weft::dist
