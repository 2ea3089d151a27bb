// Selective self-attention (Zhang et al., 2411.12892): queries times 1 + slope log(n) + tanh(q . a_h + b_h), n the position within the
// document, the first being 1; values times 1 + tanh(v . a'_g + b'_g). At first everything but the small slope is the identity.
// B batch, T tokens, H heads, K head width.
#pragma once

#include "weft/nn/mixers/softmax.h"

namespace weft {

class Temperature final : public Module {
 public:
  Temperature(const TemperatureOptions& options, int64_t heads, int64_t kv_heads, int64_t width);
  Var queries(const Var& q_BTHK, Tokens& tokens) const;
  Var values(const Var& v_BTGK) const;

 private:
  TemperatureOptions o_;
  std::unique_ptr<Param> beta_, query_weight_, query_bias_, value_weight_, value_bias_;
};

}  // namespace weft
