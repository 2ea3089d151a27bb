// Functions that know about tokens: rotary phases, short convolution, attention.
#include "weft/ops/sequence.h"

#include "weft/autograd/functions.h"
#include "weft/autograd/recompute.h"
#include "weft/autograd/record.h"
#include "weft/ops/elementwise.h"

namespace weft {

Var rotary(const Var& x_BTHK, const ops::RotaryTable& table) {
  return record("rotary", ops::rotary(x_BTHK.value(), table), {x_BTHK},
                [cos = Saved(table.cos), sin = Saved(table.sin), table](const Tensor& dy, Wants) {
                  cos.get(), sin.get();  // an Error if they changed
                  return Grads{ops::rotary_backward(dy, table)};
                });
}

Var causal_conv(const Var& x_BTD, const Var& weight_DW, const Var& bias_D, const Tensor& documents_BT) {
  Tensor y = ops::causal_conv(x_BTD.value(), weight_DW.value(), bias_D.value(), documents_BT);
  return record("causal_conv", y, {x_BTD, weight_DW, bias_D},
                [x = Saved(x_BTD.value()), w = Saved(weight_DW.value()), documents = Saved(documents_BT),
                 has_bias = bias_D.defined()](const Tensor& dy, Wants) {
                  auto [dx, dweight, dbias] = ops::causal_conv_backward(dy, x, w, has_bias, documents);
                  return Grads{dx, dweight, dbias};
                });
}

std::array<Var, 2> attend(const Var& q_BTHK, const Var& k_BSGK, const Var& v_BSGV, const ops::AttentionTokens& queries,
                          const ops::AttentionTokens& keys, const ops::AttentionOptions& given_options,
                          const AttentionBias& bias) {
  ops::AttentionOptions options = given_options;
  if (bias.query.defined()) options.score.query_bias = bias.query.value();
  if (bias.key.defined()) options.score.key_bias = bias.key.value();
  const std::vector<Tensor> kept_result = kept_by_recompute("attend", [&] {
    ops::Attention y = ops::attend(q_BTHK.value(), k_BSGK.value(), v_BSGV.value(), queries, keys, options);
    return std::vector<Tensor>{y.out, y.lse};
  });
  const ops::Attention result{kept_result[0], kept_result[1]};
  auto backward_of = [q = Saved(q_BTHK.value()), k = Saved(k_BSGK.value()), v = Saved(v_BSGV.value()),
                      out = Saved(result.out), lse = Saved(result.lse),
                      kept = std::array{Saved(queries.positions), Saved(queries.documents), Saved(keys.positions),
                                        Saved(keys.documents), Saved(options.score.alibi_slopes),
                                        Saved(options.score.query_bias), Saved(options.score.key_bias)},
                      queries, keys, options](std::span<const Tensor> dys, Wants) {
    for (const Saved& tensor : kept) tensor.get();  // an Error if one changed
    Tensor dout = dys[0].defined() ? dys[0] : Tensor::zeros(out.get().shape(), out.get().dtype(), out.get().device());
    if (dout.strides()[3] != 1) dout = ops::contiguous(dout);             // heads may have been transposed behind us
    Tensor dlse = dys[1].defined() ? ops::contiguous(dys[1]) : Tensor();  // may be a slice of a joined gradient
    auto [dq, dk, dv, dquery_bias, dkey_bias] =
        ops::attend_backward(dout, dlse, q, k, v, {out.get(), lse.get()}, queries, keys, options);
    return Grads{dq, dk, dv, dquery_bias, dkey_bias};
  };
  return record("attend", std::array<Tensor, 2>{result.out, result.lse}, {q_BTHK, k_BSGK, v_BSGV, bias.query, bias.key},
                std::move(backward_of));
}

ops::RotaryTable make_rotary_table(const Tensor& positions_BT, int64_t head_width, const ops::RotaryOptions& options) {
  return ops::rotary_table(positions_BT, head_width, options);
}

ops::AttentionStatistics attention_statistics(const Var& q_BTHK, const Var& k_BSGK, const Var& lse_BTH,
                                              const ops::AttentionTokens& queries, const ops::AttentionTokens& keys,
                                              const ops::AttentionOptions& options) {
  return ops::attention_statistics(q_BTHK.value(), k_BSGK.value(), lse_BTH.value(), queries, keys, options);
}

}  // namespace weft
