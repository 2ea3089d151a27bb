// What a scheme takes of memory is not a formula here, but what its own code asks for when it runs dry.
#include <algorithm>

#include "weft/comm/dry_ranks.h"
#include "weft/core/dry_run.h"
#include "weft/distributed/cost_model.h"

namespace weft::dist {

namespace {

struct Peaks {
  int64_t forward = 0, backward = 0;  // beside what was there before
};

Peaks peaks_of(Scheme scheme, const SchemeOptions& options, const ContextShape& s, int ranks) {
  DryRun dry;
  const Device device = Device::cpu();
  auto of_heads = [&](int64_t heads, int64_t width) {
    return Tensor::empty({s.batch, s.tokens, heads, width}, s.dtype, device);
  };
  const Tensor q = of_heads(s.heads, s.key_width), k = of_heads(s.kv_heads, s.key_width);
  const Tensor v = s.are_values_in_keys ? k.slice(3, 0, s.value_width) : of_heads(s.kv_heads, s.value_width);
  const Tensor dout = of_heads(s.heads, s.value_width);
  const Tensor place = Tensor::zeros({s.batch, s.tokens}, kI32, device);
  const ops::AttentionTokens here{.positions = place, .documents = s.has_documents ? place : Tensor()};
  const ops::AttentionOptions core{.normaliser = s.has_lse ? ops::Normaliser::softmax : ops::Normaliser::sum};
  DryCommunicator comm(ranks, ranks - 1);
  const ContextRanks of(comm, options);
  const HopPlan plan = HopPlan::every_hop(ranks);
  int64_t before = 0;
  auto begin = [&] {
    allocator(device).reset_peak();
    before = dry.memory(device).current_bytes;
  };
  auto peak = [&] { return dry.memory(device).peak_bytes - before; };
  begin();
  const ops::Attention y = context_attention(of, scheme, q, k, v, here, core, plan);
  Peaks peaks{.forward = peak()};
  begin();
  context_attention_backward(of, scheme, dout, {}, q, k, v, y, here, core, plan);
  peaks.backward = peak();
  return peaks;
}

}  // namespace

double scheme_memory(Scheme scheme, const SchemeOptions& options, const ContextShape& shape) {
  const Peaks of_ranks = peaks_of(scheme, options, shape, shape.ranks), alone = peaks_of(Scheme::ring, {}, shape, 1);
  const int64_t more = std::max(of_ranks.forward - alone.forward, of_ranks.backward - alone.backward);
  return static_cast<double>(std::max<int64_t>(more, 0));
}

}  // namespace weft::dist
