// The gated linear recurrence: checks, then kernels (ops/cpu/recurrence/, ops/cuda/recurrence/).
#include "weft/ops/recurrence.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/recurrence/kernels.h"
#include "ops/cuda/recurrence/kernels.h"
#include "ops/recurrence_input.h"
#include "src/core/cuda_build.h"
#include "weft/core/parallel.h"
#include "weft/core/profile.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/reduce.h"

namespace weft::ops {

namespace {

using core::Operand;
using cpu::Decay;
using cpu::Mark;
using cpu::RecurrenceProblem;

constexpr int64_t kMaxChunk = 1024;

Operand operand(const Tensor& t) {
  if (!t.defined()) return {};
  const Shape& s = t.strides();
  Operand o{t.raw(), 0, 0, 0, t.dtype() == kBF16, static_cast<int64_t>(size_of(t.dtype()))};
  if (t.num_dims() == 1) o.head_stride = s[0];
  else o.batch_stride = s[0], o.token_stride = s[1], o.head_stride = s[2];
  return o;
}

// The width of the last dimension is contiguous.
Tensor with_contiguous_width(const Tensor& t) {
  return !t.defined() || t.num_dims() < 4 || t.size(3) == 1 || t.strides()[3] == 1 ? t : contiguous(t);
}

// A problem with everything checked, and what its pointers point to.
struct Call {
  RecurrenceProblem p;
  Tensor q, k, v, log_decay, state, marks, dout, dlast;
  DType wide;

  Call(std::string_view op, const RecurrenceInput& in, const RecurrenceOptions& options) {
    check_heads(op, "q", in.q_BTGK), check_heads(op, "k", in.k_BTGK), check_heads(op, "v", in.v_BTHV);
    WEFT_CHECK(in.q_BTGK.shape() == in.k_BTGK.shape(), str(op, ": q is ", in.q_BTGK, ", k is ", in.k_BTGK),
               "q and k are both [B, T, G, K]");
    for (const Tensor* t : {&in.k_BTGK, &in.v_BTHV})
      WEFT_CHECK(t->dtype() == in.q_BTGK.dtype() && t->device() == in.q_BTGK.device(),
                 str(op, ": q is ", in.q_BTGK, ", ", t == &in.v_BTHV ? "v" : "k", " is ", *t),
                 "q, k and v have one dtype and one device");
    const Shape& qs = in.q_BTGK.shape();
    const Shape& vs = in.v_BTHV.shape();
    WEFT_CHECK(qs[0] == vs[0] && qs[1] == vs[1],
               str(op, ": batch or tokens differ: q is ", in.q_BTGK, ", v is ", in.v_BTHV),
               "q and k are [B, T, G, K], v is [B, T, H, V]");
    WEFT_CHECK(qs[2] > 0 && vs[2] > 0 && vs[2] % qs[2] == 0,
               str(op, ": ", vs[2], " value heads are not a multiple of ", qs[2], " key heads: q is ", in.q_BTGK,
                   ", v is ", in.v_BTHV),
               "use one or more value heads for each key head");
    wide = in.q_BTGK.dtype() == kF64 ? kF64 : kF32;
    p.device = in.v_BTHV.device().index;
    p.batch = vs[0], p.tokens = vs[1], p.heads = vs[2], p.key_heads = qs[2], p.key_width = qs[3], p.value_width = vs[3];
    check_options(op, options);
    check_gates(op, in, options);
    check_documents(op, in.documents, in.state_document, {p.batch, p.tokens}, in.q_BTGK);
    if (in.state.defined()) {
      check_tensor(op, "state", in.state, {p.batch, p.heads, p.key_width, p.value_width}, wide, in.v_BTHV);
      state = contiguous(in.state);
      p.state = state.raw();
    }
    q = with_contiguous_width(in.q_BTGK), k = with_contiguous_width(in.k_BTGK), v = with_contiguous_width(in.v_BTHV);
    p.q = operand(q), p.k = operand(k), p.v = operand(v);
    marks = marks_of(in.documents, in.state_document);
    if (marks.defined()) p.marks = static_cast<const Mark*>(marks.raw());
  }

  // Parts of value columns, so that `items` and they are as many as threads.
  void choose_parts(int64_t items) {
    constexpr int64_t kLeast = 32,
                      kFewTokens = 64;  // narrower parts, and shorter calls, do the scores again for too little
    p.state_width = p.part_width = p.value_width;
    if (v.is_cuda() || items == 0 || items >= num_threads() || p.tokens <= kFewTokens) return;
    const int64_t wanted = std::clamp<int64_t>(p.value_width / kLeast, 1, (num_threads() + items - 1) / items);
    p.part_width = (p.value_width + 16 * wanted - 1) / (16 * wanted) * 16;
    p.parts = (p.value_width + p.part_width - 1) / p.part_width;
  }

  // Some heads of a group have sums of dq and dk of their own where groups are few: each sum is as much memory as the gradient. Never by the
  // number of threads, which would change bits.
  void choose_sums() {
    constexpr int64_t kFew = 16, kMostSums = 8;
    const int64_t group = p.heads_per_group();
    if (v.is_cuda() || p.batch * p.key_heads >= kFew) return;
    p.sums_per_group = std::min(group % 2 == 0 ? group / 2 : group, kMostSums);
    while (group % p.sums_per_group != 0) --p.sums_per_group;
  }

  void take_gradients(std::string_view op, const RecurrenceInput& in, const Tensor& dout_BTHV, const Tensor& dstate) {
    if (dout_BTHV.defined()) {
      check_tensor(op, "dout", dout_BTHV, in.v_BTHV.shape(), in.v_BTHV.dtype(), in.v_BTHV);
      dout = with_contiguous_width(dout_BTHV);
      p.dout = operand(dout);
    }
    if (!dstate.defined()) return;
    check_tensor(op, "dstate", dstate, {p.batch, p.heads, p.key_width, p.value_width}, wide, in.v_BTHV);
    dlast = contiguous(dstate);
    p.dlast_state = dlast.raw();
  }

  Tensor new_state() const { return Tensor::empty({p.batch, p.heads, p.key_width, p.value_width}, wide, v.device()); }

  void use(const RecurrenceStates& kept, int64_t block) {
    p.kept_block = block;
    const Shape states{p.batch, p.heads, p.kept_blocks() + 1, p.key_width, p.value_width};
    WEFT_CHECK(kept.states.defined() && kept.states.shape() == states && kept.states.dtype() == wide && !p.beta.data,
               str("recur: kept states are ", describe_input(kept.states), ", must be ", states, " ", wide),
               "pass what recur_states() returned for these inputs");
    p.kept_states = const_cast<void*>(kept.states.raw()), p.kept_decays = const_cast<void*>(kept.decays.raw());
  }

  // Calls f<Kernels>() with the kernels of the device and the computing type.
  template <class F>
  void run(F&& f) const {
    ProfileRange range("recurrence");
    if constexpr (kCuda) {
      if (v.is_cuda()) {
        if (wide == kF64) return f.template operator()<cuda::RecurrenceKernels<double>>();
        return f.template operator()<cuda::RecurrenceKernels<float>>();
      }
    }
    if (wide == kF64) f.template operator()<cpu::RecurrenceKernels<cpu::Isa::baseline, double>>();
    else cpu::with_isa([&]<cpu::Isa I>() { f.template operator()<cpu::RecurrenceKernels<I, float>>(); });
  }

 private:
  static void check_heads(std::string_view op, std::string_view name, const Tensor& t) {
    WEFT_CHECK(t.defined() && t.num_dims() == 4,
               str(op, ": ", name, " is ", describe_input(t), ", must be [batch, tokens, heads, width]"),
               "reshape it to four dimensions");
    WEFT_CHECK(is_floating(t.dtype()), str(op, ": ", name, " is ", t), "cast it to f32, bf16 or f64");
    WEFT_CHECK(t.size(3) >= 1, str(op, ": ", name, " is ", t, ", its width is 0"), "use a width of at least 1");
  }

  void check_options(std::string_view op, const RecurrenceOptions& options) {
    WEFT_CHECK(std::isfinite(options.scale), str(op, ": scale is ", options.scale), "use a finite scale");
    p.scale = options.scale;
    if (!options.chunk) return;
    WEFT_CHECK(*options.chunk >= 1 && *options.chunk <= kMaxChunk,
               str(op, ": chunk is ", *options.chunk, " tokens, must be 1 to ", kMaxChunk),
               "leave chunk out to have it chosen");
    p.chunk = *options.chunk;
  }

  void check_gates(std::string_view op, const RecurrenceInput& in, const RecurrenceOptions& options) {
    const Shape per_token{p.batch, p.tokens, p.heads};
    const bool is_of_values = options.side == DecaySide::value;
    if (in.beta.defined()) check_tensor(op, "beta", in.beta, per_token, wide, in.v_BTHV);
    if (in.writes.defined()) check_tensor(op, "writes", in.writes, per_token, kBool, in.v_BTHV);
    p.beta = operand(in.beta), p.writes = operand(in.writes);
    WEFT_CHECK(!is_of_values || (in.log_decay.defined() && in.log_decay.num_dims() == 4),
               str(op, ": side value, log_decay is ", describe_input(in.log_decay)),
               "the side value is for a decay per channel [B, T, H, V]");
    WEFT_CHECK(!is_of_values || !in.beta.defined(), str(op, ": decay of value channels with beta ", in.beta),
               "the delta rule has decays of heads or of key channels");
    if (!in.log_decay.defined()) return;
    const int dims = in.log_decay.num_dims();
    Shape shape{p.heads};
    if (dims == 3) shape = per_token;
    if (dims == 4) shape = {p.batch, p.tokens, p.heads, is_of_values ? p.value_width : p.key_width};
    check_tensor(op, "log_decay", in.log_decay, shape, wide, in.v_BTHV);
    if (options.checks_decay) check_decay(op, in.log_decay);
    log_decay = with_contiguous_width(in.log_decay);
    p.log_decay = operand(log_decay);
    if (dims == 4) p.decay = is_of_values ? Decay::value : Decay::key;
  }
};

}  // namespace

Recurrence recur(const RecurrenceInput& input, const RecurrenceOptions& options) {
  Recurrence result;
  result.state = recur_into(result.out, input, options);
  return result;
}

Tensor recur_into(Tensor& out, const RecurrenceInput& input, const RecurrenceOptions& options,
                  const RecurrenceStates* kept) {
  Call call("recur", input, options);
  RecurrenceProblem& p = call.p;
  if (!out.defined()) out = Tensor::empty(input.v_BTHV.shape(), input.v_BTHV.dtype(), input.v_BTHV.device());
  check_tensor("recur_into", "out", out, input.v_BTHV.shape(), input.v_BTHV.dtype(), input.v_BTHV);
  Tensor state = call.new_state();
  call.choose_parts(p.batch * p.heads);
  out.mutable_raw();  // counts as written
  p.out = operand(out), p.last_state = state.mutable_raw();
  call.run([&]<class Kernels>() {
    if (kept) call.use(*kept, Kernels::block_to_keep(p));
    Kernels::forward(p);
  });
  return state;
}

Tensor recur_state(const RecurrenceInput& input, const RecurrenceOptions& options) {
  Call call("recur_state", input, options);
  RecurrenceProblem& p = call.p;
  Tensor state = call.new_state();
  call.choose_parts(p.batch * p.heads);
  p.last_state = state.mutable_raw();
  call.run([&]<class Kernels>() { Kernels::forward(p); });
  return state;
}

RecurrenceStates recur_states(const RecurrenceInput& input, const RecurrenceOptions& options) {
  constexpr std::string_view op = "recur_states";
  WEFT_CHECK(!input.beta.defined(), str(op, ": beta is ", input.beta),
             "states of the delta rule do not add up: use recur_state() with values of 0 and the identity as the state "
             "for what becomes of a state that comes in");
  Call call(op, input, options);
  RecurrenceProblem& p = call.p;
  call.choose_parts(p.batch * p.heads);
  RecurrenceStates kept;
  call.run([&]<class Kernels>() {
    p.kept_block = Kernels::block_to_keep(p);
    const int64_t count = p.kept_blocks() + 1, width = p.decay == cpu::Decay::value ? p.value_width : p.key_width;
    kept.states = Tensor::empty({p.batch, p.heads, count, p.key_width, p.value_width}, call.wide, call.v.device());
    kept.decays = Tensor::empty({p.batch, p.heads, count, width}, call.wide, call.v.device());
    p.kept_states = kept.states.mutable_raw(), p.kept_decays = kept.decays.mutable_raw();
    Kernels::keep_states(p);
  });
  return kept;
}

Tensor recur_state_gradient(const Tensor& dout_BTHV, const Tensor& dstate, const RecurrenceInput& input,
                            const RecurrenceOptions& options) {
  Call call("recur_state_gradient", input, options);
  RecurrenceProblem& p = call.p;
  call.take_gradients("recur_state_gradient", input, dout_BTHV, dstate);
  call.choose_parts(p.batch * p.heads);
  Tensor gradient = call.new_state();
  p.dstate = gradient.mutable_raw();
  call.run([&]<class Kernels>() { Kernels::state_gradient(p); });
  return gradient;
}

RecurrenceGrads recur_backward(const Tensor& dout_BTHV, const Tensor& dstate, const RecurrenceInput& input,
                               const RecurrenceOptions& options, const RecurrenceWants& wants) {
  RecurrenceGrads grads;
  recur_backward_into(grads, dout_BTHV, dstate, input, options, wants);
  return grads;
}

void recur_backward_into(RecurrenceGrads& grads, const Tensor& dout_BTHV, const Tensor& dstate,
                         const RecurrenceInput& input, const RecurrenceOptions& options, const RecurrenceWants& wants,
                         const RecurrenceStates* kept) {
  constexpr std::string_view op = "recur_backward";
  Call call(op, input, options);
  RecurrenceProblem& p = call.p;
  const DType dtype = input.q_BTGK.dtype(), wide = call.wide;
  const Device device = input.v_BTHV.device();
  call.take_gradients(op, input, dout_BTHV, dstate);
  call.choose_sums();
  call.choose_parts(p.batch * p.key_heads * p.sums_per_group);
  auto make = [&](bool is_wanted, Tensor& grad, const Shape& shape, DType of, Operand& to) {
    if (!is_wanted) return;
    if (grad.defined()) check_tensor(op, "a gradient", grad, shape, of, input.v_BTHV);
    else grad = Tensor::empty(shape, of, device);
    grad.mutable_raw();
    to = operand(grad);
  };
  // Of a sum over value columns: one behind the other per part, and `sums` beside each other per group of heads, added up at the end. Returns
  // those, or nothing where grad is written itself.
  auto make_sum = [&](bool is_wanted, Tensor& grad, const Shape& shape, int64_t sums, DType last, DType of,
                      Operand& to) {
    Tensor parts;
    if (!is_wanted) return parts;
    if (p.parts == 1 && sums == 1 && of == last) {
      make(true, grad, shape, last, to);
      return parts;
    }
    Shape of_parts = shape;
    of_parts[0] *= p.parts, of_parts[2] *= sums;
    make(true, parts, of_parts, p.parts > 1 || sums > 1 ? wide : of, to);
    return parts;
  };
  auto add_parts = [&](const Tensor& parts, Tensor& grad, const Shape& shape, int64_t sums, DType of) {
    if (!parts.defined()) return;
    Tensor all = parts;
    if (sums > 1) all = sum(all.reshape({p.parts * shape[0] * shape[1] * shape[2], sums, shape[3]}), 1);
    if (p.parts > 1) all = sum(all.reshape({p.parts, shape.num_elements()}), 0);
    all = cast(all.reshape(shape), of);
    if (grad.defined()) copy_(grad, all);
    else grad = all;
  };
  const DType shared = p.heads_per_group() > 1 && device.is_cpu() ? wide : dtype;
  const Shape &of_q = input.q_BTGK.shape(), &of_decay = input.log_decay.shape(), &of_beta = input.beta.shape();
  const Tensor dq = make_sum(wants.q, grads.dq, of_q, p.sums_per_group, dtype, shared, p.dq),
               dk = make_sum(wants.k, grads.dk, of_q, p.sums_per_group, dtype, shared, p.dk);
  make(wants.v, grads.dv, input.v_BTHV.shape(), dtype, p.dv);
  const bool wants_decay = wants.log_decay && input.log_decay.defined();
  Tensor of_heads, dlog_decay;
  if (wants_decay && input.log_decay.num_dims() == 1 && device.is_cuda()) {
    make(true, of_heads, {p.batch, p.tokens, p.heads}, wide, p.dlog_decay);
  } else if (wants_decay && input.log_decay.num_dims() == 1) {
    of_heads = Tensor::zeros({p.parts * p.batch, p.heads}, kF64, Device::cpu());
    p.dlog_decay_of_head = of_heads.mutable_data<double>();
  } else if (p.decay == cpu::Decay::value) {
    make(wants_decay, grads.dlog_decay, of_decay, wide, p.dlog_decay);
  } else {
    dlog_decay = make_sum(wants_decay, grads.dlog_decay, of_decay, 1, wide, wide, p.dlog_decay);
  }
  const Tensor dbeta = make_sum(wants.beta && input.beta.defined(), grads.dbeta, of_beta, 1, wide, wide, p.dbeta);
  if (wants.state && input.state.defined()) {
    grads.dstate = call.new_state();
    p.dstate = grads.dstate.mutable_raw();
  }
  call.run([&]<class Kernels>() {
    if (kept) call.use(*kept, Kernels::block_to_keep(p));
    const auto workers = Kernels::workers(p);
    Tensor states = Tensor::empty({workers.count, workers.states}, wide, device);
    Kernels::backward(p, states.mutable_raw());
  });
  add_parts(dq, grads.dq, of_q, p.sums_per_group, dtype), add_parts(dk, grads.dk, of_q, p.sums_per_group, dtype);
  add_parts(dlog_decay, grads.dlog_decay, of_decay, 1, wide), add_parts(dbeta, grads.dbeta, of_beta, 1, wide);
  if (!of_heads.defined()) return;
  grads.dlog_decay = cast(sum(device.is_cuda() ? sum(of_heads, 1) : of_heads, 0), wide);
}

}  // namespace weft::ops
