// Which instance a call takes. dout may be f32 beside bf16 inputs, for a running output is f32: such a backward stays in f32. So does
// one of heads wider than 128 on a GPU whose blocks have too little shared memory.
#include <algorithm>
#include <string>

#include "ops/cuda/attention/kernels.h"
#include "ops/cuda/tile_map.h"
#include "src/core/cuda/runtime.h"
#include "weft/core/error.h"

namespace weft::cuda {

namespace {

using ops::core::Problem;

int64_t width_of(const Problem& p) { return std::max(p.key_width, p.value_width); }

template <class F>
void with_width(const Problem& p, F&& run) {
  if (width_of(p) <= 64) run.template operator()<64>();
  else if (width_of(p) <= 128) run.template operator()<128>();
  else run.template operator()<256>();
}

// "" or why the kernels for Hopper do not take a call that has something to multiply.
std::string wgmma_problem(const Problem& p, bool is_backward) {
  if (const int found = architecture(p.device.index); found != 90)
    return str("the GPU has compute capability ", found / 10, ".", found % 10, ", they are for 9.0");
  if (!p.q.is_bf16) return "q is not bf16";
  if (p.query_bias.data || p.key_bias.data) return "scores have a query_bias or key_bias";
  if (is_backward && !p.dout.is_bf16) return "the gradient of out is not bf16";
  if (width_of(p) > 128) return str("heads are ", p.key_width, " and ", p.value_width, " wide, they take up to 128");
  const std::string q = tile_map_problem(p.q, p.batch, p.queries, p.heads, p.key_width),
                    k = tile_map_problem(p.k, p.batch, p.keys, p.kv_heads, p.key_width),
                    v = tile_map_problem(p.v, p.batch, p.keys, p.kv_heads, p.value_width);
  if (!q.empty()) return str("of q: ", q);
  if (!k.empty()) return str("of k: ", k);
  if (!v.empty()) return str("of v: ", v);
  const std::string dout =
      is_backward ? tile_map_problem(p.dout, p.batch, p.queries, p.heads, p.value_width) : std::string();
  return dout.empty() ? "" : str("of the gradient of out: ", dout);
}

// Whether a call is for the kernels for Hopper. Without queries or keys there is nothing that they would do otherwise.
bool takes_wgmma(const Problem& p, const ops::AttentionOptions& options, bool is_backward) {
  if (options.backend != ops::AttentionBackend::wgmma) return false;
  if (p.batch == 0 || p.queries == 0 || p.keys == 0 || p.heads == 0) return false;
  const std::string problem = wgmma_problem(p, is_backward);
  WEFT_CHECK(problem.empty(), str("attention: the backend wgmma does not take this call: ", problem),
             "use the backend weft or automatic");
  return true;
}

}  // namespace

bool stores_bf16_gradients(const Problem& p) {
  return p.q.is_bf16 && p.dout.is_bf16 && (width_of(p) <= 128 || max_shared_bytes(p.device.index) >= 136 * 1024);
}

void attention_forward(const Problem& problem, const ops::AttentionOptions& options) {
  if (takes_wgmma(problem, options, false)) {
    if (width_of(problem) <= 64) attention::forward_wgmma<64>(problem, options);
    else attention::forward_wgmma<128>(problem, options);
  } else if (problem.compute == kF64) {
    attention::forward_plain<double>(problem, options);
  } else if (!problem.q.is_bf16) {
    attention::forward_plain<float>(problem, options);
  } else {
    with_width(problem, [&]<int kWidth>() { attention::forward_bf16<kWidth>(problem, options); });
  }
}

void attention_backward(const Problem& problem, const ops::AttentionOptions& options) {
  if (takes_wgmma(problem, options, true)) {
    if (width_of(problem) <= 64) attention::backward_wgmma<64>(problem, options);
    else attention::backward_wgmma<128>(problem, options);
  } else if (problem.compute == kF64) {
    attention::backward_plain<double>(problem, options);
  } else if (!stores_bf16_gradients(problem)) {
    attention::backward_plain<float>(problem, options);
  } else {
    with_width(problem, [&]<int kWidth>() { attention::backward_bf16<kWidth>(problem, options); });
  }
}

}  // namespace weft::cuda
