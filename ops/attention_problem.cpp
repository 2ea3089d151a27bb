// What attention checks of its tensors before any kernel sees them, and the Problem that kernels read.
#include <algorithm>
#include <cmath>

#include "ops/attention_checks.h"
#include "ops/cuda/attention/kernels.h"
#include "weft/ops/attention.h"
#include "weft/ops/attention/plans.h"

namespace weft::ops::core {

DType compute_type(DType dtype) { return dtype == kF64 ? kF64 : kF32; }

void check_device(std::string_view op, std::string_view name, const Tensor& t, std::string_view side, Device device) {
  WEFT_CHECK(t.device() == device, str(op, ": ", name, " is ", t, ", but ", side, " is on ", device),
             str("move ", name, " to ", device));
}

void check_heads(std::string_view op, std::string_view name, const Tensor& t, DType dtype) {
  WEFT_CHECK(t.defined() && t.num_dims() == 4,
             str(op, ": ", name, " is ", t, ", must be [batch, tokens, heads, width]"),
             "reshape it to four dimensions");
  WEFT_CHECK(is_floating(t.dtype()), str(op, ": ", name, " is ", t), "cast it to f32, bf16 or f64");
  WEFT_CHECK(t.dtype() == dtype, str(op, ": ", name, " is ", t, ", dtype must be ", dtype),
             str("cast ", name, " to ", dtype));
  WEFT_CHECK(t.size(3) >= 1, str(op, ": ", name, " is ", t, ", its width is 0"), "use a width of at least 1");
  WEFT_CHECK(t.size(3) == 1 || t.strides()[3] == 1,
             str(op, ": the last dimension of ", name, " ", t, " has stride ", t.strides()[3], ", must be 1"),
             str("pass a contiguous copy of ", name));
}

Operand operand(const Tensor& t) {
  return {t.raw(),        t.strides()[0],     t.strides()[1],
          t.strides()[2], t.dtype() == kBF16, static_cast<int64_t>(size_of(t.dtype()))};
}

const void* bind_rows(std::string_view op, std::string_view name, const Tensor& t, const Problem& p) {
  Shape shape{p.batch, p.queries, p.heads};
  WEFT_CHECK(t.defined() && t.shape() == shape && t.dtype() == p.compute && t.is_contiguous(),
             str(op, ": ", name, " is ", t.defined() ? to_string(t) : "undefined", ", must be contiguous ", shape, " ",
                 p.compute),
             str("pass the ", name, " of the forward call or of attention_delta()"));
  check_device(op, name, t, "q", p.device);
  return t.raw();
}

namespace {

void check_token_data(std::string_view op, std::string_view name, const Tensor& t, int64_t batch, int64_t n,
                      Device device) {
  WEFT_CHECK(
      t.defined() && t.dtype() == kI32 && t.shape() == Shape({batch, n}),
      str(op, ": ", name, " are ", t.defined() ? to_string(t) : "undefined", ", must be [", batch, ", ", n, "] i32"),
      "give one i32 number per token of that side");
  check_device(op, name, t, "q", device);
}

TokenView token_view(std::string_view op, std::string_view side, const AttentionTokens& tokens, int64_t batch,
                     int64_t n, Device device) {
  check_token_data(op, str(side, " positions"), tokens.positions, batch, n, device);
  TokenView view;
  view.position = tokens.positions.data<int32_t>();
  view.batch_stride = tokens.positions.strides()[0], view.stride = tokens.positions.strides()[1];
  if (tokens.documents.defined()) {
    check_token_data(op, str(side, " documents"), tokens.documents, batch, n, device);
    view.document = tokens.documents.data<int32_t>();
    view.document_batch_stride = tokens.documents.strides()[0], view.document_stride = tokens.documents.strides()[1];
  }
  return view;
}

void* bind_output(std::string_view op, std::string_view name, Tensor& t, const Shape& shape, const Problem& p,
                  DType dtype) {
  WEFT_CHECK(
      t.defined() && t.shape() == shape && t.dtype() == dtype && t.is_contiguous(),
      str(op, ": ", name, " is ", t.defined() ? to_string(t) : "undefined", ", must be contiguous ", shape, " ", dtype),
      str("make ", name, " as zeros of that shape and dtype, or with attention_state()"));
  check_device(op, name, t, "q", p.device);
  return t.mutable_raw();
}

}  // namespace

Problem make_problem(std::string_view op, const Tensor& q, const Tensor& k, const Tensor* v,
                     const AttentionTokens& queries, const AttentionTokens& keys, const AttentionOptions& options) {
  DType dtype = q.dtype();
  check_heads(op, "q", q, dtype);
  check_heads(op, "k", k, dtype);
  WEFT_CHECK(q.size(0) == k.size(0) && q.size(3) == k.size(3),
             str(op, ": batch or key width differ: q is ", q, ", k is ", k), "q is [B, T, H, K], k is [B, S, G, K]");
  check_device(op, "k", k, "q", q.device());
  WEFT_CHECK(
      k.size(2) > 0 && q.size(2) % k.size(2) == 0,
      str(op, ": ", q.size(2), " query heads are not a multiple of ", k.size(2), " key heads: q is ", q, ", k is ", k),
      "use a number of query heads that is a multiple of the key/value heads");
  if (v) {
    check_heads(op, "v", *v, dtype);
    WEFT_CHECK(v->size(0) == k.size(0) && v->size(1) == k.size(1) && v->size(2) == k.size(2),
               str(op, ": keys and values differ: k is ", k, ", v is ", *v), "k is [B, S, G, K], v is [B, S, G, V]");
    check_device(op, "v", *v, "q", q.device());
  }
  WEFT_CHECK(std::isfinite(options.scale), str(op, ": scale is ", options.scale),
             "use a finite scale, or 0 for 1/sqrt(K)");
  WEFT_CHECK(options.dropout >= 0 && options.dropout < 1,
             str(op, ": dropout is ", options.dropout, ", must be in [0, 1)"), "use a probability below 1");
  WEFT_CHECK(options.first_row >= 0 && options.first_head >= 0,
             str(op, ": first_row is ", options.first_row, ", first_head is ", options.first_head),
             "use the global indices of row 0 and head 0");
  Problem p;
  p.batch = q.size(0), p.queries = q.size(1), p.keys = k.size(1), p.heads = q.size(2), p.kv_heads = k.size(2);
  p.key_width = q.size(3), p.value_width = v ? v->size(3) : 0;
  p.first_row = options.first_row, p.first_head = options.first_head;
  p.scale = options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(p.key_width));
  p.dropout = options.dropout, p.dropout_key = options.dropout_rng.key();
  p.q = operand(q), p.k = operand(k);
  if (v) p.v = operand(*v);
  p.device = q.device();
  p.query_tokens = token_view(op, "query", queries, p.batch, p.queries, p.device);
  p.key_tokens = token_view(op, "key", keys, p.batch, p.keys, p.device);
  p.compute = compute_type(dtype);
  if (queries.plans && queries.plans == keys.plans && queries.plans->serve(queries) && queries.plans->serve(keys))
    p.plans = queries.plans.get();
  WEFT_CHECK(!p.device.is_cuda() || std::max(p.key_width, p.value_width) <= cuda::attention::kMaxWidth,
             str(op, ": heads are ", p.key_width, " and ", p.value_width, " wide; kernels for GPUs have up to ",
                 cuda::attention::kMaxWidth),
             "use narrower heads, or the CPU");
  return p;
}

// On the CPU lse of a state in f32 may be f64. In f32 each call would round it, and the weights of all earlier keys with it.
void bind_state(Problem& p, std::string_view op, AttentionState& state, bool has_statistic) {
  p.out = bind_output(op, "state.out", state.out, {p.batch, p.queries, p.heads, p.value_width}, p, p.compute);
  p.is_statistic_f64 =
      has_statistic && p.compute == kF32 && p.device.is_cpu() && state.lse.defined() && state.lse.dtype() == kF64;
  if (has_statistic)
    p.statistic = bind_output(op, "state.lse", state.lse, {p.batch, p.queries, p.heads}, p,
                              p.is_statistic_f64 ? kF64 : p.compute);
  p.has_state = true;
}

void bind_backward(Problem& p, std::string_view op, AttentionGrads& grads, const Tensor& dout, const Tensor& statistic,
                   const Tensor& delta, bool has_statistic) {
  check_heads(op, "dout", dout, dout.dtype());
  Shape shape{p.batch, p.queries, p.heads, p.value_width};
  WEFT_CHECK(dout.shape() == shape && compute_type(dout.dtype()) == p.compute,
             str(op, ": dout is ", dout, ", out was ", shape, " ", p.compute), "dout has the shape of out");
  check_device(op, "dout", dout, "q", p.device);
  p.dout = operand(dout);
  if (has_statistic) {
    p.statistic = const_cast<void*>(bind_rows(op, "lse", statistic, p));
    p.delta = bind_rows(op, "delta", delta, p);
  }
  const DType dtype = p.are_grads_bf16 ? kBF16 : p.compute;
  p.dq = bind_output(op, "dq", grads.dq, {p.batch, p.queries, p.heads, p.key_width}, p, dtype);
  p.dk = bind_output(op, "dk", grads.dk, {p.batch, p.keys, p.kv_heads, p.key_width}, p, dtype);
  p.dv = bind_output(op, "dv", grads.dv, {p.batch, p.keys, p.kv_heads, p.value_width}, p, dtype);
  p.has_state = true;
}

}  // namespace weft::ops::core
