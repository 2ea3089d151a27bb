// Flash attention by cuDNN (9.16 or newer, opened at run time): out = softmax(mask(scale q k^T)) v and its gradients.
// An alternative to the kernels in ops/cuda/attention/ for the plain case. Callers ask, and take their own kernel on false.
#pragma once

#include <string>
#include <string_view>

#include "weft/ops/attention.h"

namespace weft::cuda {

bool cudnn_available();       // the library is there; says nothing about a case
std::string cudnn_problem();  // "" if it is available
std::string cudnn_version();  // "9.19.0"; "" if it is not available

// Whether cuDNN has an engine for row-major q, k, v on a GPU that need not be here, which `device_json` describes in cuDNN's terms: "", or
// what it lacks.
struct CudnnEngineCase {
  int64_t batch = 1, tokens = 1, heads = 1, kv_heads = 1, key_width = 64, value_width = 64;
  bool is_backward = false;
};
std::string cudnn_engine_problem(const CudnnEngineCase& wanted, const ops::AttentionOptions& options,
                                 std::string_view device_json);

// One call over one key set, as ops::attend and ops::attend_backward: bf16, query heads a multiple of key heads, any strides
// that are multiples of 16 bytes, mask none, causal, or causal with a window. The caller vouches that query t and key t of a
// row stand at one position, and that positions are consecutive: cuDNN masks by index. False, with nothing done and the reason
// in why_not, where cuDNN does not take the case.
bool cudnn_attend(ops::Attention& result, const Tensor& q_BTHK, const Tensor& k_BSGK, const Tensor& v_BSGV,
                  const ops::AttentionOptions& options, std::string& why_not);

// Deterministic: dq is not summed by atomics, for which cuDNN wants 2 B H T S bytes of workspace; a case that needs more than
// 8 GiB is refused. Gradients are fresh bf16 tensors. A gradient of lse (dlse) is refused.
bool cudnn_attend_backward(ops::AttentionGrads& grads, const Tensor& dout_BTHV, const Tensor& dlse_BTH,
                           const Tensor& q_BTHK, const Tensor& k_BSGK, const Tensor& v_BSGV,
                           const ops::Attention& result, const ops::AttentionOptions& options, std::string& why_not);

}  // namespace weft::cuda
