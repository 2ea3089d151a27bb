// The blockwise softmax core: checks, then dispatch. Kernels: weft/ops/attention/*.h, instances: ops/cpu/attention/.
#include "weft/ops/attention.h"

#include <algorithm>
#include <cmath>

#include "ops/attention_bias.h"
#include "ops/attention_checks.h"
#include "ops/cpu/attention/kernels.h"
#include "ops/cuda/attention/kernels.h"
#include "ops/cuda/cudnn/attention.h"
#include "src/core/cuda_build.h"
#include "weft/core/profile.h"
#include "weft/ops/attention/plans.h"
#include "weft/ops/elementwise.h"

namespace weft::ops {

namespace {

bool has_statistic(const AttentionOptions& options) { return options.normaliser != Normaliser::sum; }

void check_options(std::string_view op, const Tensor& q, const AttentionTokens& queries, const AttentionTokens& keys,
                   const AttentionOptions& options) {
  const AttentionMask& mask = options.mask;
  WEFT_CHECK(mask.window >= 0, str(op, ": window is ", mask.window), "use a window of at least 1, or 0 for none");
  WEFT_CHECK(mask.prefix >= 0, str(op, ": prefix is ", mask.prefix), "use a prefix of at least 1, or 0 for none");
  WEFT_CHECK(!mask.same_document || (queries.documents.defined() && keys.documents.defined()),
             str(op, ": the mask is same_document, but ", queries.documents.defined() ? "key" : "query",
                 " documents are undefined"),
             "give documents of queries and keys, or leave same_document out");
  const AttentionScore& score = options.score;
  WEFT_CHECK(score.softcap >= 0, str(op, ": softcap is ", score.softcap), "use a positive cap, or 0 for none");
  if (score.alibi_slopes.defined()) {
    const Tensor& slopes = score.alibi_slopes;
    WEFT_CHECK(slopes.shape() == Shape({q.size(2)}) && slopes.dtype() == kF32 && slopes.is_contiguous(),
               str(op, ": alibi_slopes are ", slopes, " for q ", q),
               str("give one contiguous f32 slope per head: [", q.size(2), "]"));
    core::check_device(op, "alibi_slopes", slopes, "q", q.device());  // kernels read them there
  }
  WEFT_CHECK(std::isfinite(score.shift), str(op, ": score shift is ", score.shift), "use a finite shift");
  WEFT_CHECK(options.normaliser == Normaliser::sum || (score.shift == 0 && score.activation == ScoreActivation::none),
             str(op, ": a score ", score.shift != 0 ? "shift" : "activation", " without the sum normaliser"),
             "shift and activation make weights for normaliser sum; leave them out otherwise");
}

// Hopper's kernels are asked for by name: not where there is no GPU.
void check_backend(std::string_view op, const core::Problem& p, const AttentionOptions& options) {
  WEFT_CHECK(options.backend != AttentionBackend::wgmma || (kCuda && p.device.is_cuda()),
             str(op, ": the backend wgmma is for GPUs, q is on ", p.device),
             "use the backend weft or automatic, or a GPU");
}

// Calls with a running state have no kernels of cuDNN's.
void refuse_cudnn_block(std::string_view op, const AttentionOptions& options) {
  WEFT_CHECK(options.backend != AttentionBackend::cudnn,
             str(op, ": cuDNN's kernels take all keys at once, this call has a running state"),
             "use the backend weft or automatic, or attend() where one call has all keys");
}

// A Problem with everything checked; `v` null for calls without values.
core::Problem checked(std::string_view op, const Tensor& q, const Tensor& k, const Tensor* v,
                      const AttentionTokens& queries, const AttentionTokens& keys, const AttentionOptions& options) {
  core::Problem p = core::make_problem(op, q, k, v, queries, keys, options);
  check_options(op, q, queries, keys, options);
  check_backend(op, p, options);
  return p;
}

// Whether cuDNN is asked for; Error if it is by name and cannot be.
bool asks_cudnn(std::string_view op, const core::Problem& p, const AttentionTokens& queries,
                const AttentionTokens& keys, const AttentionOptions& options) {
  if (options.backend != AttentionBackend::cudnn) return false;
  WEFT_CHECK(kCuda && p.device.is_cuda(), str(op, ": cuDNN's kernels are for GPUs, q is on ", p.device),
             "use the backend weft or automatic, or a GPU");
  WEFT_CHECK(!core::has_biases(options.score), str(op, ": cuDNN's kernels take no query_bias or key_bias"),
             "use the backend weft or automatic");
  const bool is_plain = !options.mask.is_causal && options.mask.window == 0;
  const bool are_same = queries.positions.raw() == keys.positions.raw() && p.queries == p.keys;
  WEFT_CHECK(
      is_plain || (are_same && queries.are_consecutive && keys.are_consecutive),
      str(op, ": cuDNN masks by index, and these queries and keys are not known to be the same consecutive tokens"),
      "use the backend weft or automatic, or pass one positions tensor for both and set are_consecutive");
  return true;
}

[[noreturn]] void refuse_cudnn(std::string_view op, const Tensor& q, const std::string& why_not) {
  fail(str(op, ": cuDNN does not take q ", q, ": ", why_not), "use the backend weft or automatic");
}

void run_forward(const core::Problem& problem, const AttentionOptions& options) {
  ProfileRange range("attention");
  if constexpr (kCuda) {
    if (problem.device.is_cuda()) return cuda::attention_forward(problem, options);
  }
  if constexpr (cpu::kHasPairKernels) {
    if (cpu::PairKernels::take(problem)) return cpu::PairKernels::forward(problem, options);
  }
  cpu::with_attention_kernels(problem.compute, [&]<class Kernels>() { Kernels::forward(problem, options); });
}

void run_backward(const core::Problem& problem, const AttentionOptions& options) {
  ProfileRange range("attention");
  if constexpr (kCuda) {
    if (problem.device.is_cuda()) return cuda::attention_backward(problem, options);
  }
  if constexpr (cpu::kHasPairKernels) {
    if (cpu::PairKernels::take(problem)) return cpu::PairKernels::backward(problem, options);
  }
  cpu::with_attention_kernels(problem.compute, [&]<class Kernels>() { Kernels::backward(problem, options); });
}

}  // namespace

AttentionTokens with_plans(AttentionTokens tokens) {
  if (tokens.positions.device().is_cpu()) tokens.plans = std::make_shared<AttentionPlans>(tokens);
  return tokens;
}

bool AttentionPlans::serve(const AttentionTokens& tokens) {
  auto are_same = [](const Tensor& a, const Tensor& b) {
    return a.defined() == b.defined() &&
           (!a.defined() || (a.raw() == b.raw() && a.shape() == b.shape() && a.strides() == b.strides()));
  };
  if (!are_same(tokens.positions, positions_) || !are_same(tokens.documents, documents_)) return false;
  if (const Versions now = versions(); now != versions_) {
    versions_ = now;
    entries_.clear();
  }
  return true;
}

AttentionPlans::Kept AttentionPlans::find(const Key& key) const {
  for (const Entry& entry : entries_)
    if (entry.key == key) return {entry.memory.raw(), true};
  return {};
}

void* AttentionPlans::keep(const Key& key, int64_t bytes) {
  entries_.push_back({key, bytes > 0 ? Tensor::empty({bytes}, kU8, Device::cpu()) : Tensor()});
  return entries_.back().memory.defined() ? entries_.back().memory.mutable_raw() : nullptr;
}

AttentionState attention_state(const Tensor& q_BTHK, int64_t value_width, const AttentionOptions& options) {
  core::check_heads("attention_state", "q", q_BTHK, q_BTHK.dtype());
  WEFT_CHECK(value_width >= 1, str("attention_state: value width is ", value_width), "use the last size of v");
  DType dtype = core::compute_type(q_BTHK.dtype());
  Shape rows{q_BTHK.size(0), q_BTHK.size(1), q_BTHK.size(2)}, out = rows;
  out.push_back(value_width);
  AttentionState state{Tensor::zeros(out, dtype, q_BTHK.device()), {}};
  if (has_statistic(options)) state.lse = Tensor::full(rows, -INFINITY, dtype, q_BTHK.device());
  return state;
}

void attend_block(AttentionState& state, const Tensor& q_BTHK, const Tensor& k_BSGK, const Tensor& v_BSGV,
                  const AttentionTokens& queries, const AttentionTokens& keys, const AttentionOptions& options) {
  refuse_cudnn_block("attend_block", options);
  core::Problem p = checked("attend_block", q_BTHK, k_BSGK, &v_BSGV, queries, keys, options);
  const core::Biases biases = core::bind_biases(p, "attend_block", options.score);
  core::bind_state(p, "attend_block", state, has_statistic(options));
  run_forward(p, options);
}

Attention attend(const Tensor& q_BTHK, const Tensor& k_BSGK, const Tensor& v_BSGV, const AttentionTokens& queries,
                 const AttentionTokens& keys, const AttentionOptions& options) {
  core::Problem p = checked("attend", q_BTHK, k_BSGK, &v_BSGV, queries, keys, options);
  if (asks_cudnn("attend", p, queries, keys, options)) {
    Attention result;
    std::string why_not;
    if constexpr (kCuda)
      if (cuda::cudnn_attend(result, q_BTHK, k_BSGK, v_BSGV, options, why_not)) return result;
    refuse_cudnn("attend", q_BTHK, why_not);
  }
  const core::Biases biases = core::bind_biases(p, "attend", options.score);
  Attention result{Tensor::empty({p.batch, p.queries, p.heads, p.value_width}, q_BTHK.dtype(), p.device), {}};
  if (has_statistic(options)) {
    result.lse = Tensor::empty({p.batch, p.queries, p.heads}, p.compute, p.device);
    p.statistic = result.lse.mutable_raw();
  }
  p.out = result.out.mutable_raw();
  p.out_is_bf16 = q_BTHK.dtype() == kBF16;
  run_forward(p, options);
  return result;
}

Tensor attention_delta(const Tensor& dout_BTHV, const Tensor& out_BTHV, const Tensor& dlse_BTH,
                       const AttentionOptions& options) {
  constexpr std::string_view op = "attention_delta";
  core::check_heads(op, "dout", dout_BTHV, dout_BTHV.dtype());
  core::check_heads(op, "out", out_BTHV, out_BTHV.dtype());
  WEFT_CHECK(dout_BTHV.shape() == out_BTHV.shape() &&
                 core::compute_type(dout_BTHV.dtype()) == core::compute_type(out_BTHV.dtype()),
             str(op, ": dout is ", dout_BTHV, ", out is ", out_BTHV), "dout has the shape of out");
  core::check_device(op, "dout", dout_BTHV, "out", out_BTHV.device());
  core::Problem p;
  p.batch = dout_BTHV.size(0), p.queries = dout_BTHV.size(1), p.heads = dout_BTHV.size(2),
  p.value_width = dout_BTHV.size(3);
  p.compute = core::compute_type(dout_BTHV.dtype()), p.device = dout_BTHV.device();
  p.dout = core::operand(dout_BTHV);
  if (!has_statistic(options)) {
    WEFT_CHECK(!dlse_BTH.defined(), str(op, ": the sum normaliser has no lse, but dlse is ", dlse_BTH), "pass no dlse");
    return {};
  }
  const void* dlse = dlse_BTH.defined() ? core::bind_rows(op, "dlse", dlse_BTH, p) : nullptr;
  Tensor delta = Tensor::empty({p.batch, p.queries, p.heads}, p.compute, p.device);
  void* to = delta.mutable_raw();
  core::Operand out = core::operand(out_BTHV);
  if constexpr (kCuda) {
    if (p.device.is_cuda()) {
      cuda::attention_delta(p, out, dlse, to);
      return delta;
    }
  }
  cpu::with_attention_kernels(p.compute, [&]<class Kernels>() {
    using T = typename Kernels::Number;
    Kernels::delta(p, out, static_cast<const T*>(dlse), static_cast<T*>(to));
  });
  return delta;
}

void attend_block_backward(AttentionGrads& grads, const Tensor& dout_BTHV, const Tensor& q_BTHK, const Tensor& k_BSGK,
                           const Tensor& v_BSGV, const Tensor& lse_BTH, const Tensor& delta_BTH,
                           const AttentionTokens& queries, const AttentionTokens& keys,
                           const AttentionOptions& options) {
  refuse_cudnn_block("attend_block_backward", options);
  core::Problem p = checked("attend_block_backward", q_BTHK, k_BSGK, &v_BSGV, queries, keys, options);
  core::bind_backward(p, "attend_block_backward", grads, dout_BTHV, lse_BTH, delta_BTH, has_statistic(options));
  const core::Biases biases = core::bind_biases(p, "attend_block_backward", options.score);
  core::bind_bias_gradients(p, "attend_block_backward", grads, options.score);
  run_backward(p, options);
}

AttentionGrads attend_backward(const Tensor& dout_BTHV, const Tensor& dlse_BTH, const Tensor& q_BTHK,
                               const Tensor& k_BSGK, const Tensor& v_BSGV, const Attention& result,
                               const AttentionTokens& queries, const AttentionTokens& keys,
                               const AttentionOptions& options) {
  ProfileRange range("attention");  // with what makes its gradients
  core::Problem p = checked("attend_backward", q_BTHK, k_BSGK, &v_BSGV, queries, keys, options);
  if (asks_cudnn("attend_backward", p, queries, keys, options)) {
    AttentionGrads grads;
    std::string why_not;
    if constexpr (kCuda)
      if (cuda::cudnn_attend_backward(grads, dout_BTHV, dlse_BTH, q_BTHK, k_BSGK, v_BSGV, result, options, why_not))
        return grads;
    refuse_cudnn("attend_backward", q_BTHK, why_not);
  }
  Tensor delta = attention_delta(dout_BTHV, result.out, dlse_BTH, options);
  // On the CPU what would be added to zeros is stored: one thread would clear all of the memory before.
  const bool are_stored = p.device.is_cpu() && p.batch * p.heads > 0;
  // On a GPU a gradient's rows have one block each, which can round and store.
  if constexpr (kCuda) {
    p.dout = core::operand(dout_BTHV);
    p.are_grads_bf16 = p.device.is_cuda() && cuda::stores_bf16_gradients(p);
  }
  auto make = [&](const Tensor& x) {
    const DType dtype = p.are_grads_bf16 ? kBF16 : p.compute;
    return p.are_grads_bf16 || are_stored ? Tensor::empty(x.shape(), dtype, p.device)
                                          : Tensor::zeros(x.shape(), dtype, p.device);
  };
  AttentionGrads grads{make(q_BTHK), make(k_BSGK), make(v_BSGV)};
  core::bind_backward(p, "attend_backward", grads, dout_BTHV, result.lse, delta, has_statistic(options));
  p.has_state = !are_stored;
  const core::Biases biases = core::bind_biases(p, "attend_backward", options.score);
  auto make_sums = [&](Tensor& to, const Tensor& bias) {
    if (bias.defined()) to = Tensor::zeros(bias.shape(), kF64, p.device);
  };
  make_sums(grads.dquery_bias, options.score.query_bias), make_sums(grads.dkey_bias, options.score.key_bias);
  core::bind_bias_gradients(p, "attend_backward", grads, options.score);
  run_backward(p, options);
  auto give = [](Tensor& gradient, DType dtype) {
    if (gradient.dtype() != dtype) gradient = cast(gradient, dtype);
  };
  for (Tensor* gradient : {&grads.dq, &grads.dk, &grads.dv}) give(*gradient, q_BTHK.dtype());
  if (biases.query.defined()) give(grads.dquery_bias, options.score.query_bias.dtype());
  if (biases.key.defined()) give(grads.dkey_bias, options.score.key_bias.dtype());
  return grads;
}

AttentionStatistics attention_statistics(const Tensor& q_BTHK, const Tensor& k_BSGK, const Tensor& lse_BTH,
                                         const AttentionTokens& queries, const AttentionTokens& keys,
                                         const AttentionOptions& options) {
  constexpr std::string_view op = "attention_statistics";
  core::Problem p = checked(op, q_BTHK, k_BSGK, nullptr, queries, keys, options);
  const core::Biases biases = core::bind_biases(p, op, options.score);
  p.statistic = const_cast<void*>(core::bind_rows(op, "lse", lse_BTH, p));
  auto make = [&](int64_t tokens) { return Tensor::empty({p.batch, tokens, p.heads}, kF32, p.device); };
  AttentionStatistics out{make(p.keys), make(p.queries), make(p.queries)};
  p.mass = out.column_mass.mutable_data<float>();
  p.entropy = out.entropy.mutable_data<float>();
  p.top = out.max_score.mutable_data<float>();
  if constexpr (kCuda) {
    if (p.device.is_cuda()) {
      cuda::attention_statistics(p, options);
      return out;
    }
  }
  cpu::with_attention_kernels(p.compute, [&]<class Kernels>() { Kernels::statistics(p, options); });
  return out;
}

}  // namespace weft::ops
