// cuDNN recognises attention as a pattern of operations (its own sdpa operation takes masks from 9.21 on only) and fuses it:
//   forward   s = q k^T, masked(scale s), m = max s, e = exp(s - m), l = sum e, lse = m + log l, out = (e / l) v
//   backward  d = sum(dout out), p = exp(masked(scale s - lse)), dv = p^T dout,
//             ds = scale p (dout v^T - d), dk = ds^T q, dq = ds k
// The order of operations is part of the pattern. Writing dq straight from its product, not through an f32 sum in memory,
// is what asks for the deterministic backward. Sizes are [B, H, T, width] to cuDNN, whatever the strides.
#include "ops/cuda/cudnn/attention.h"

#ifndef WEFT_WITH_CUDNN

namespace weft::cuda {

bool cudnn_available() { return false; }
std::string cudnn_problem() { return "this build has no cuDNN"; }
std::string cudnn_version() { return ""; }

std::string cudnn_engine_problem(const CudnnEngineCase&, const ops::AttentionOptions&, std::string_view) {
  return cudnn_problem();
}

bool cudnn_attend(ops::Attention&, const Tensor&, const Tensor&, const Tensor&, const ops::AttentionOptions&,
                  std::string& why_not) {
  why_not = cudnn_problem();
  return false;
}

bool cudnn_attend_backward(ops::AttentionGrads&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           const Tensor&, const ops::Attention&, const ops::AttentionOptions&, std::string& why_not) {
  why_not = cudnn_problem();
  return false;
}

}  // namespace weft::cuda

#else

#include <bit>
#include <cmath>
#include <limits>
#include <map>

#include "ops/cuda/cudnn/graph.h"
#include "ops/cuda/elementwise.h"
#include "src/core/cuda/problems.h"
#include "src/core/cuda/runtime.h"
#include "weft/core/error.h"

namespace weft::cuda {

namespace {

using cudnn::Dims;
using cudnn::Graph;
using cudnn::Id;

constexpr int64_t kMaxWorkspaceBytes = int64_t{8} << 30;

// What an executable depends on.
struct Case {
  int64_t batch = 0, queries = 0, keys = 0, heads = 0, kv_heads = 0, key_width = 0, value_width = 0;
  bool is_causal = false;
  int64_t window = 0;
  float scale = 0;
  Dims q{}, k{}, v{};  // strides
  Dims out{}, dout{};  // of the backward
  bool is_backward = false;

  Dims q_sizes() const { return {batch, heads, queries, key_width}; }
  Dims k_sizes() const { return {batch, kv_heads, keys, key_width}; }
  Dims v_sizes() const { return {batch, kv_heads, keys, value_width}; }
  Dims out_sizes() const { return {batch, heads, queries, value_width}; }
  Dims row_sizes() const { return {batch, heads, queries, 1}; }
  Dims score_sizes() const { return {batch, heads, queries, keys}; }

  std::vector<int64_t> key() const {
    std::vector<int64_t> numbers{batch,      queries,     keys,      heads,  kv_heads,
                                 key_width,  value_width, is_causal, window, std::bit_cast<int32_t>(scale),
                                 is_backward};
    for (const Dims* strides : {&q, &k, &v, &out, &dout})
      numbers.insert(numbers.end(), strides->begin(), strides->end());
    return numbers;
  }
};

struct Prepared {
  std::optional<cudnn::Executable> executable;
  std::string why_not;
  Id q = 0, k = 0, v = 0, out = 0, stats = 0;
  Id dout = 0, dq = 0, dk = 0, dv = 0, delta = 0;
};

// [B, T, H, width] as cuDNN's [B, H, T, width]. A size of 1 has no stride of its own.
Dims strides_of(const Tensor& t) {
  const Shape &sizes = t.shape(), &strides = t.strides();
  auto stride = [&](int dim) { return sizes[dim] == 1 ? t.num_elements() : strides[dim]; };
  return {stride(0), stride(2), stride(1), 1};
}
Dims fresh_strides(const Dims& sizes) {  // of a row-major [B, T, H, width]
  return {sizes[1] * sizes[2] * sizes[3], sizes[3], sizes[1] * sizes[3], 1};
}

Id masked(Graph& g, Id scores, const Case& c) {
  const Graph::Result kClaim{.type = CUDNN_DATA_BOOLEAN, .compute = CUDNN_DATA_BOOLEAN};
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  if (c.is_causal) {
    Id row = g.index(scores, 2), col = g.index(scores, 3);
    Id is_past = g.pointwise(CUDNN_POINTWISE_CMP_GE, {row, col}, kClaim);
    scores = g.pointwise(CUDNN_POINTWISE_BINARY_SELECT, {scores, g.scalar(kNothing), is_past});
  }
  if (c.window > 0) {
    Id row = g.index(scores, 2), col = g.index(scores, 3);
    Id reach = g.pointwise(CUDNN_POINTWISE_ADD, {col, g.scalar(static_cast<float>(c.window))});
    Id is_near = g.pointwise(CUDNN_POINTWISE_CMP_GT, {reach, row}, kClaim);
    scores = g.pointwise(CUDNN_POINTWISE_BINARY_SELECT, {scores, g.scalar(kNothing), is_near});
  }
  return scores;
}

Graph forward_graph(Prepared& p, const Case& c) {
  Graph g;
  p.q = g.memory(c.q_sizes(), c.q, CUDNN_DATA_BFLOAT16);
  p.k = g.memory(cudnn::last_two_swapped(c.k_sizes()), cudnn::last_two_swapped(c.k), CUDNN_DATA_BFLOAT16);
  p.v = g.memory(c.v_sizes(), c.v, CUDNN_DATA_BFLOAT16);
  p.out = g.memory(c.out_sizes(), fresh_strides(c.out_sizes()), CUDNN_DATA_BFLOAT16);
  p.stats = g.memory(c.row_sizes(), cudnn::packed(c.row_sizes()), CUDNN_DATA_FLOAT);
  const Graph::Result rows{.sizes = c.row_sizes()};

  Id scores = g.matmul(p.q, p.k, {.sizes = c.score_sizes()});
  scores = masked(g, g.pointwise(CUDNN_POINTWISE_MUL, {scores, g.scalar(c.scale)}), c);
  Id largest = g.reduce(CUDNN_REDUCE_TENSOR_MAX, scores, rows);
  Id weights = g.pointwise(CUDNN_POINTWISE_EXP, {g.pointwise(CUDNN_POINTWISE_SUB, {scores, largest})});
  Id sum = g.reduce(CUDNN_REDUCE_TENSOR_ADD, weights, rows);
  g.pointwise(CUDNN_POINTWISE_ADD, {largest, g.pointwise(CUDNN_POINTWISE_LOG, {sum})}, {.out = p.stats});
  weights = g.pointwise(CUDNN_POINTWISE_DIV, {weights, sum}, {.type = CUDNN_DATA_BFLOAT16});
  g.matmul(weights, p.v, {.out = p.out});
  return g;
}

Graph backward_graph(Prepared& p, const Case& c) {
  Graph g;
  auto fresh = [&](const Dims& sizes) { return g.memory(sizes, fresh_strides(sizes), CUDNN_DATA_BFLOAT16); };
  p.q = g.memory(c.q_sizes(), c.q, CUDNN_DATA_BFLOAT16);
  p.k = g.memory(cudnn::last_two_swapped(c.k_sizes()), cudnn::last_two_swapped(c.k), CUDNN_DATA_BFLOAT16);
  p.v = g.memory(cudnn::last_two_swapped(c.v_sizes()), cudnn::last_two_swapped(c.v), CUDNN_DATA_BFLOAT16);
  p.out = g.memory(c.out_sizes(), c.out, CUDNN_DATA_BFLOAT16);
  p.dout = g.memory(c.out_sizes(), c.dout, CUDNN_DATA_BFLOAT16);
  p.stats = g.memory(c.row_sizes(), cudnn::packed(c.row_sizes()), CUDNN_DATA_FLOAT);
  p.delta = g.memory(c.row_sizes(), cudnn::packed(c.row_sizes()), CUDNN_DATA_FLOAT);
  p.dq = fresh(c.q_sizes()), p.dk = fresh(c.k_sizes()), p.dv = fresh(c.v_sizes());

  // The products of all query heads, then the sum over those that share a key head.
  auto sum_heads = [&](Id weights_t, Id right, Id out) {
    if (c.heads == c.kv_heads) {
      g.matmul(weights_t, right, {.out = out});
      return;
    }
    Dims all = g.sizes(out);
    all[1] = c.heads;
    g.reduce(CUDNN_REDUCE_TENSOR_ADD, g.matmul(weights_t, right, {.sizes = all}), {.out = out});
  };
  auto transposed = [&](Id x) {
    Dims sizes = cudnn::last_two_swapped(c.score_sizes());
    Dims strides = cudnn::last_two_swapped(cudnn::packed(c.score_sizes()));
    return g.reshape(x, {.type = CUDNN_DATA_BFLOAT16, .sizes = sizes, .strides = strides});
  };

  Id products = g.pointwise(CUDNN_POINTWISE_MUL, {p.dout, p.out});
  Id delta = g.reduce(CUDNN_REDUCE_TENSOR_ADD, products, {.sizes = c.row_sizes()});
  g.pointwise(CUDNN_POINTWISE_MUL, {delta, g.scalar(1)}, {.out = p.delta});  // the pattern scales it, for dropout

  Id scores = g.matmul(p.q, p.k, {.sizes = c.score_sizes()});
  scores = g.pointwise(CUDNN_POINTWISE_MUL, {scores, g.scalar(c.scale)});
  scores = masked(g, g.pointwise(CUDNN_POINTWISE_SUB, {scores, p.stats}), c);
  Id weights = g.pointwise(CUDNN_POINTWISE_EXP, {scores});
  sum_heads(transposed(weights), p.dout, p.dv);

  Id dweights = g.matmul(p.dout, p.v, {.sizes = c.score_sizes()});
  Id dscores = g.pointwise(CUDNN_POINTWISE_MUL, {g.pointwise(CUDNN_POINTWISE_SUB, {dweights, p.delta}), weights});
  dscores = g.pointwise(CUDNN_POINTWISE_MUL, {dscores, g.scalar(c.scale)});
  sum_heads(transposed(dscores), p.q, p.dk);
  Id keys = g.reshape(p.k, {.sizes = c.k_sizes(), .strides = c.k});
  g.matmul(dscores, keys, {.out = p.dq});
  return g;
}

class Session {
 public:
  const Prepared& find(const Case& c) {
    auto [entry, is_new] = prepared_.try_emplace(c.key());
    Prepared& prepared = entry->second;
    if (!is_new) return prepared;
    try {
      Graph graph = c.is_backward ? backward_graph(prepared, c) : forward_graph(prepared, c);
      prepared.executable.emplace(std::move(graph), cudnn::Target{.handle = handle_.get()}, kMaxWorkspaceBytes);
    } catch (const Error& error) { prepared.why_not = error.problem(); }
    return prepared;
  }

  void run(const Prepared& prepared, std::span<const std::pair<Id, const void*> > memory, Device device) {
    cudaStream_t s = stream(device.index);
    Tensor workspace = Tensor::empty({prepared.executable->workspace_bytes()}, kU8, device);
    handle_.use_stream(s);
    prepared.executable->run(handle_.get(), memory, workspace.mutable_raw());
    note_launch("attention (cuDNN)");
    check_launch("attention (cuDNN)", s);
  }

 private:
  cudnn::Handle handle_;
  std::map<std::vector<int64_t>, Prepared> prepared_;
};

// A session with an executable for the case; null, with the reason, where cuDNN has none.
struct Ready {
  Session* session = nullptr;
  const Prepared* prepared = nullptr;
};
Ready prepare(const Case& c, Device device, std::string& why_not) {
  stream(device.index);  // makes the device current, for which a handle is made
  thread_local std::map<int, Session> of_thread;
  try {
    Session& session = of_thread[device.index];
    const Prepared& prepared = session.find(c);
    why_not = prepared.why_not;
    if (why_not.empty()) return {&session, &prepared};
  } catch (const Error& error) { why_not = error.problem(); }
  return {};
}

std::string problem_of(std::string_view name, const Tensor& t) {
  if (!t.is_cuda() || t.dtype() != kBF16) return str(name, " is ", t, ", not bf16 on a GPU");
  if (t.num_elements() == 0) return str(name, " is empty");
  bool is_aligned = reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0 && t.size(3) % 8 == 0 && t.strides()[3] == 1;
  for (int dim = 0; dim < 3; ++dim)
    if (t.shape()[dim] > 1 && (t.strides()[dim] <= 0 || t.strides()[dim] % 8 != 0)) is_aligned = false;
  return is_aligned ? "" : str(name, " ", t, " has strides ", t.strides(), ", not rows of multiples of 16 bytes");
}

std::string problem_of(const ops::AttentionOptions& options, int64_t queries, int64_t keys) {
  const ops::AttentionMask& mask = options.mask;
  if (options.normaliser != ops::Normaliser::softmax) return "the normaliser is not softmax";
  if (options.dropout > 0) return "dropout";
  if (options.score.softcap > 0) return "a softcap";
  if (options.score.alibi_slopes.defined()) return "ALiBi";
  if (mask.prefix > 0) return "a prefix mask";
  if (mask.same_document) return "a mask of documents";
  if ((mask.is_causal || mask.window > 0) && queries != keys) return "a causal mask over unequal numbers of tokens";
  return "";
}

// A case that is worth asking cuDNN for; the reason if it is not.
std::string make_case(Case& c, const Tensor& q, const Tensor& k, const Tensor& v,
                      const ops::AttentionOptions& options) {
  for (auto [name, t] : {std::pair("q", &q), std::pair("k", &k), std::pair("v", &v)})
    if (std::string problem = problem_of(name, *t); !problem.empty()) return problem;
  c.batch = q.size(0), c.queries = q.size(1), c.heads = q.size(2), c.key_width = q.size(3);
  c.keys = k.size(1), c.kv_heads = k.size(2), c.value_width = v.size(3);
  c.is_causal = options.mask.is_causal || options.mask.window > 0;
  c.window = options.mask.window < c.queries ? options.mask.window : 0;
  c.scale = static_cast<float>(options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(c.key_width)));
  c.q = strides_of(q), c.k = strides_of(k), c.v = strides_of(v);
  return problem_of(options, c.queries, c.keys);
}

}  // namespace

bool cudnn_available() { return cudnn::problem().empty(); }
std::string cudnn_problem() { return cudnn::problem(); }
std::string cudnn_version() { return cudnn_available() ? cudnn::version() : ""; }

std::string cudnn_engine_problem(const CudnnEngineCase& wanted, const ops::AttentionOptions& options,
                                 std::string_view device_json) {
  if (!cudnn::problem().empty()) return cudnn::problem();
  Case c;
  c.batch = wanted.batch, c.queries = c.keys = wanted.tokens, c.heads = wanted.heads, c.kv_heads = wanted.kv_heads;
  c.key_width = wanted.key_width, c.value_width = wanted.value_width, c.is_backward = wanted.is_backward;
  c.is_causal = options.mask.is_causal || options.mask.window > 0, c.window = options.mask.window;
  c.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(c.key_width)));
  c.q = fresh_strides(c.q_sizes()), c.k = fresh_strides(c.k_sizes()), c.v = fresh_strides(c.v_sizes());
  c.out = c.dout = fresh_strides(c.out_sizes());
  if (std::string problem = problem_of(options, c.queries, c.keys); !problem.empty()) return problem;
  try {
    Prepared prepared;
    Graph graph = c.is_backward ? backward_graph(prepared, c) : forward_graph(prepared, c);
    cudnn::Descriptor device = cudnn::described_device(device_json);
    cudnn::Executable executable(std::move(graph), {.device = &device}, kMaxWorkspaceBytes);
  } catch (const Error& error) { return error.problem(); }
  return "";
}

bool cudnn_attend(ops::Attention& result, const Tensor& q_BTHK, const Tensor& k_BSGK, const Tensor& v_BSGV,
                  const ops::AttentionOptions& options, std::string& why_not) {
  Case c;
  why_not = cudnn::problem();
  if (why_not.empty()) why_not = make_case(c, q_BTHK, k_BSGK, v_BSGV, options);
  if (!why_not.empty()) return false;
  Device device = q_BTHK.device();
  auto [mine, found] = prepare(c, device, why_not);
  if (!found) return false;

  const Prepared& p = *found;
  result.out = Tensor::empty({c.batch, c.queries, c.heads, c.value_width}, kBF16, device);
  result.lse = Tensor::empty({c.batch, c.queries, c.heads}, kF32, device);
  Tensor stats_BHT = Tensor::empty({c.batch, c.heads, c.queries}, kF32, device);  // the only layout that cuDNN takes
  const std::pair<Id, const void*> memory[] = {{p.q, q_BTHK.raw()},
                                               {p.k, k_BSGK.raw()},
                                               {p.v, v_BSGV.raw()},
                                               {p.out, result.out.mutable_raw()},
                                               {p.stats, stats_BHT.mutable_raw()}};
  mine->run(p, memory, device);
  copy(result.lse, stats_BHT.transpose(1, 2));
  return true;
}

bool cudnn_attend_backward(ops::AttentionGrads& grads, const Tensor& dout_BTHV, const Tensor& dlse_BTH,
                           const Tensor& q_BTHK, const Tensor& k_BSGK, const Tensor& v_BSGV,
                           const ops::Attention& result, const ops::AttentionOptions& options, std::string& why_not) {
  Case c;
  c.is_backward = true;
  why_not = cudnn::problem();
  if (why_not.empty()) why_not = make_case(c, q_BTHK, k_BSGK, v_BSGV, options);
  if (why_not.empty()) why_not = problem_of("dout", dout_BTHV);
  if (why_not.empty()) why_not = problem_of("out", result.out);
  if (why_not.empty() && dlse_BTH.defined()) why_not = "a gradient of lse";
  if (why_not.empty() && c.queries == 1 && c.keys == 1) why_not = "a single token";
  if (!why_not.empty()) return false;
  c.out = strides_of(result.out), c.dout = strides_of(dout_BTHV);
  Device device = q_BTHK.device();
  auto [mine, found] = prepare(c, device, why_not);
  if (!found) return false;

  const Prepared& p = *found;
  grads.dq = Tensor::empty(q_BTHK.shape(), kBF16, device);
  grads.dk = Tensor::empty(k_BSGK.shape(), kBF16, device);
  grads.dv = Tensor::empty(v_BSGV.shape(), kBF16, device);
  Tensor stats_BHT = Tensor::empty({c.batch, c.heads, c.queries}, kF32, device);
  Tensor delta_BHT = Tensor::empty({c.batch, c.heads, c.queries}, kF32, device);
  copy(stats_BHT, result.lse.transpose(1, 2));
  const std::pair<Id, const void*> memory[] = {{p.q, q_BTHK.raw()},
                                               {p.k, k_BSGK.raw()},
                                               {p.v, v_BSGV.raw()},
                                               {p.out, result.out.raw()},
                                               {p.dout, dout_BTHV.raw()},
                                               {p.stats, stats_BHT.raw()},
                                               {p.delta, delta_BHT.mutable_raw()},
                                               {p.dq, grads.dq.mutable_raw()},
                                               {p.dk, grads.dk.mutable_raw()},
                                               {p.dv, grads.dv.mutable_raw()}};
  mine->run(p, memory, device);
  return true;
}

}  // namespace weft::cuda

#endif
