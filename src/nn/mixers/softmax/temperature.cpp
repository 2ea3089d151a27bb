#include "src/nn/mixers/softmax/temperature.h"

namespace weft {

namespace {

std::unique_ptr<Param> constant(const Shape& shape, double value) {
  return std::make_unique<Param>(Tensor::full(shape, value));
}

// tanh(x . weight + bias) per token and head: [B, T, H, 1]
Var feature(const Var& x_BTHK, const Param& weight_HK, const Param& bias_H) {
  Var dot_BTH = sum(x_BTHK * cast(weight_HK, x_BTHK.dtype()), -1);
  return unsqueeze(tanh(dot_BTH + cast(bias_H, x_BTHK.dtype())), -1);
}

}  // namespace

Temperature::Temperature(const TemperatureOptions& options, int64_t heads, int64_t kv_heads, int64_t width)
    : o_(options) {
  if (o_.has_position) {
    beta_ = constant({1}, 1.5);
    name_part({"beta", *beta_});
  }
  if (o_.has_token) {
    query_weight_ = constant({heads, width}, 0), query_bias_ = constant({heads}, 0);
    name_parts({{"query_weight", *query_weight_}, {"query_bias", *query_bias_}});
  }
  if (o_.scales_values) {
    value_weight_ = constant({kv_heads, width}, 0), value_bias_ = constant({kv_heads}, 0);
    name_parts({{"value_weight", *value_weight_}, {"value_bias", *value_bias_}});
  }
}

Var Temperature::queries(const Var& q_BTHK, Tokens& tokens) const {
  if (!o_.has_position && !o_.has_token) return q_BTHK;
  Var tau = Tensor::full({1}, 1, q_BTHK.dtype(), q_BTHK.device());
  if (o_.has_token) tau = tau + feature(q_BTHK, *query_weight_, *query_bias_);
  if (o_.has_position) {
    Var slope = exp(-exp(Var(*beta_)));
    Var position_BT = cast(Var(tokens.document_positions()), slope.dtype()) + 1.0;
    Var growth_BT = slope * log(position_BT);
    tau = tau + unsqueeze(unsqueeze(cast(growth_BT, q_BTHK.dtype()), -1), -1);
  }
  return q_BTHK * tau;
}

Var Temperature::values(const Var& v_BTGK) const {
  return o_.scales_values ? v_BTGK * (feature(v_BTGK, *value_weight_, *value_bias_) + 1.0) : v_BTGK;
}

}  // namespace weft
