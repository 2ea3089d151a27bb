#include "src/nn/mixers/softmax/sink.h"

namespace weft {

Sink::Sink(const SinkOptions& options, int64_t heads, int64_t key_width, int64_t value_width, bool is_signed,
           double std, Rng rng)
    : kind_(options.kind), is_signed_(is_signed) {
  const int64_t rows = options.is_head_shared ? 1 : heads;
  if (kind_ == SinkKind::logit) {
    logit_ = std::make_unique<Param>(Tensor::zeros({rows}));
    name_part({"logit", *logit_});
  }
  if (kind_ == SinkKind::key_bias || kind_ == SinkKind::key_value_bias) {
    key_ = std::make_unique<Param>(normal_init({rows, key_width}, rng["key"], std));
    name_part({"key", *key_});
  }
  if (kind_ == SinkKind::key_value_bias || kind_ == SinkKind::value_bias) {
    value_ = std::make_unique<Param>(normal_init({rows, value_width}, rng["value"], std));
    name_part({"value", *value_});
  }
}

Var Sink::scores(const Var& q_BTHK, double scale, double cap) const {
  if (kind_ == SinkKind::value_bias) return {};
  const DType wide = q_BTHK.dtype() == kF64 ? kF64 : kF32;
  if (logit_) return is_signed_ ? abs(cast(*logit_, wide)) : cast(*logit_, wide);
  if (key_) {
    Var score = cast(sum(q_BTHK * cast(*key_, q_BTHK.dtype()), -1), wide) * scale;
    return cap > 0 ? softcap(score, cap) : score;
  }
  return Tensor::zeros({1}, wide, q_BTHK.device());
}

Var Sink::operator()(const Var& out_BTHV, const Var& lse_BTH, const Var& scores) const {
  const DType dtype = out_BTHV.dtype();
  if (kind_ == SinkKind::value_bias) return out_BTHV + cast(*value_, dtype);
  Var excess_BTH = lse_BTH - scores;  // of the keys over the sink
  Var share_BTH1 = unsqueeze(cast(sigmoid(excess_BTH), dtype), -1);
  Var out = out_BTHV * share_BTH1;
  if (!value_) return out;
  return out + unsqueeze(cast(sigmoid(-excess_BTH), dtype), -1) * cast(*value_, dtype);
}

}  // namespace weft
