// The table of benchmarks: `weft bench NAME`.
#include "tools/bench/bench.h"

namespace weft::bench {

namespace {

const Family kFamilies[] = {
    {"gemm", "matrix products against oneDNN's own routes", run_gemm},
    {"attention", "the blockwise softmax core, forward and backward, and its memory", run_attention},
    {"recurrence", "the gated linear recurrence, forward and backward, beside the softmax core, and its memory",
     run_recurrence},
    {"call", "what calling an op costs", run_call},
    {"memory", "norms, rotary, SwiGLU and AdamW against a copy", run_memory},
    {"heads", "chosen heads and windows against all heads and tokens, one mixer forward and backward", run_heads},
    {"diagnostics", "training steps that take diagnostics against those that do not", run_diagnostics},
    {"residual", "training steps of residual streams against the standard one", run_residual},
    {"ring", "attention over the tokens of several ranks against one rank", run_ring, check_ring,
     "its ranks are threads of the CPU"},
    {"train", "training steps of GPT-2 shaped models", run_train, check_train},
};

}  // namespace

std::span<const Family> families() { return kFamilies; }

}  // namespace weft::bench
