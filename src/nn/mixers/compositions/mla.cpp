// Multi-head latent attention (2405.04434):
//   c = RMSNorm(x W_D);  k_h = [c W_UK,h, rot(x W_KR)],  v_h = c W_UV,h;  q_h = [c_q W_UQ,h, rot(c_q W_QR,h)]
// Decoding keeps [c, rot(x W_KR)] per token and absorbs W_UK in the query and W_UV in the output:
//   q_h . k_h = [q^C_h W_UK,h^T, q^R_h] . [c, k^R],  sum_j P v_h = (sum_j P c) W_UV,h
// Ranks that share a row compute so too where [c, k^R] and its gradient are fewer bytes than keys and values of all heads.
// B batch, T tokens, D model width, H heads, N unrotated and value width, R rotated width, C width of c.
#include <cmath>

#include "weft/core/error.h"
#include "weft/distributed/choose_scheme.h"
#include "weft/nn/context_group.h"
#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

MlaOptions checked(MlaOptions o, const MixerArgs& args) {
  o.head_dim = completed("mla", {o.heads, o.heads, o.head_dim}, args).head_dim;
  if (o.rope_dim == 0) o.rope_dim = std::max<int64_t>(o.head_dim / 2 / 2 * 2, 2);
  if (o.kv_rank == 0) o.kv_rank = 2 * o.head_dim;
  WEFT_CHECK(o.rope_dim >= 2 && o.rope_dim % 2 == 0, str("mla: rope_dim ", o.rope_dim), "use an even number");
  WEFT_CHECK(o.kv_rank >= 1 && o.q_rank >= 0, str("mla: kv_rank ", o.kv_rank, ", q_rank ", o.q_rank),
             "kv_rank is 1 or more, q_rank 0 (none) or more");
  return o;
}

class Mla final : public Mixer {
 public:
  Mla(const MlaOptions& options, const MixerArgs& args, Rng rng)
      : o_(checked(options, args)),
        args_(args),
        down_(args.dim, o_.kv_rank, rng["kv_down"], {.std = args.std}),
        norm_(o_.kv_rank, {NormKind::rms, args.norm_eps}),
        key_up_(o_.kv_rank, o_.heads * o_.head_dim, rng["key_up"], {.std = args.std}),
        value_up_(o_.kv_rank, o_.heads * o_.head_dim, rng["value_up"], {.std = args.std}),
        key_rope_(args.dim, o_.rope_dim, rng["key_rope"], {.std = args.std}),
        query_(query_in(), o_.heads * (o_.head_dim + o_.rope_dim), rng["query"], {.std = args.std}),
        out_(o_.heads * o_.head_dim, args.dim, rng["out"], {.std = args.out_std}) {
    name_parts({{"kv_down", down_},
                {"kv_norm", norm_},
                {"key_up", key_up_},
                {"value_up", value_up_},
                {"key_rope", key_rope_},
                {"query", query_},
                {"out", out_}});
    if (o_.q_rank == 0) return;
    query_down_ = std::make_unique<Linear>(args.dim, o_.q_rank, rng["query_down"], LinearOptions{.std = args.std});
    query_norm_ = std::make_unique<Norm>(o_.q_rank, NormOptions{NormKind::rms, args.norm_eps});
    name_parts({{"query_down", *query_down_}, {"query_norm", *query_norm_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var c_BTC = norm_(down_(x_BTD));
    Var kr_BT1R = rotated(split_heads(key_rope_(x_BTD), 1), args_, tokens);
    Var q = split_heads(query_(query_down_ ? (*query_norm_)((*query_down_)(x_BTD)) : x_BTD), o_.heads);
    Var qc_BTHN = slice(q, -1, 0, o_.head_dim);
    Var qr_BTHR = rotated(slice(q, -1, o_.head_dim, o_.head_dim + o_.rope_dim), args_, tokens);
    ops::AttentionOptions core{.scale = 1 / std::sqrt(static_cast<double>(o_.head_dim + o_.rope_dim))};
    Var y_BTHN = tokens.is_decoding() || is_latent_sent(qc_BTHN, tokens)
                     ? absorbed(qc_BTHN, qr_BTHR, c_BTC, kr_BT1R, tokens, core)
                     : expanded(qc_BTHN, qr_BTHR, c_BTC, kr_BT1R, tokens, core);
    return out_(merge_heads(tokens.heads(y_BTHN)));
  }

  double flops_per_token(double keys) const override {
    return 6.0 * static_cast<double>(o_.heads * (2 * o_.head_dim + o_.rope_dim)) * keys;
  }

 private:
  // Whether ranks that share the rows send less in the absorbed form, forward and backward together. It computes more, since keys are wider.
  bool is_latent_sent(const Var& qc_BTHN, const Tokens& tokens) const {
    const ContextGroup* ranks = tokens.context();
    if (!ranks || ranks->tokens->size() == 1) return false;
    dist::ContextShape heads{.ranks = ranks->tokens->size(),
                             .tokens = 1,
                             .heads = o_.heads,
                             .kv_heads = o_.heads,
                             .key_width = o_.head_dim + o_.rope_dim,
                             .value_width = o_.head_dim,
                             .dtype = qc_BTHN.dtype()};
    dist::ContextShape latent = heads;
    latent.kv_heads = 1, latent.are_values_in_keys = true;
    latent.key_width = o_.kv_rank + o_.rope_dim, latent.value_width = o_.kv_rank;
    return dist::is_latent_sent(ranks->scheme, ranks->options_for(o_.heads), heads, latent);
  }

  int64_t query_in() const { return o_.q_rank > 0 ? o_.q_rank : args_.dim; }

  Var keys_of_heads(const Var& c_BTC, const Var& kr_BT1R) {
    const Var parts[] = {split_heads(key_up_(c_BTC), o_.heads),
                         expand(kr_BT1R, {c_BTC.size(0), c_BTC.size(1), o_.heads, o_.rope_dim})};
    return concatenate(parts, -1);
  }

  Var expanded(const Var& qc, const Var& qr, const Var& c_BTC, const Var& kr_BT1R, Tokens& tokens,
               const ops::AttentionOptions& core) {
    const Var q_parts[] = {qc, qr};
    return tokens.attend(concatenate(q_parts, -1), keys_of_heads(c_BTC, kr_BT1R),
                         split_heads(value_up_(c_BTC), o_.heads), core)[0];
  }

  Var absorbed(const Var& qc_BTHN, const Var& qr_BTHR, const Var& c_BTC, const Var& kr_BT1R, Tokens& tokens,
               const ops::AttentionOptions& core) {
    auto per_head = [&](Linear& up) { return reshape(up.weight(), {o_.heads, o_.head_dim, o_.kv_rank}); };
    Var qc_BHTC = matmul(permute(qc_BTHN, {0, 2, 1, 3}), per_head(key_up_));
    const Var q_parts[] = {permute(qc_BHTC, {0, 2, 1, 3}), qr_BTHR};
    const Var k_parts[] = {unsqueeze(c_BTC, 2), kr_BT1R};
    const QuerySet queries = tokens.queries(concatenate(q_parts, -1));
    const KeySet latents =
        tokens.keys(concatenate(k_parts, -1), {}, {.value_width = o_.kv_rank, .serves_one_call = true});
    auto [mixed_BTHC, lse_BTH] = tokens.attend_part(queries, latents, core);
    if (tokens.is_watched()) show(qc_BTHN, qr_BTHR, c_BTC, kr_BT1R, lse_BTH, tokens, core);
    Var y_BHTN = matmul(permute(mixed_BTHC, {0, 2, 1, 3}), per_head(value_up_), {.transpose_b = true});
    return permute(y_BHTN, {0, 2, 1, 3});
  }

  // Keys and values of heads, as the expanded form has them.
  void show(const Var& qc, const Var& qr, const Var& c_BTC, const Var& kr_BT1R, const Var& lse_BTH, Tokens& tokens,
            const ops::AttentionOptions& core) {
    NoGrad no_grad;
    const Var q_parts[] = {qc, qr};
    tokens.observe(
        tokens.queries(concatenate(q_parts, -1)),
        tokens.keys(keys_of_heads(c_BTC, kr_BT1R), split_heads(value_up_(c_BTC), o_.heads), {.serves_one_call = true}),
        lse_BTH, core, {});
  }

  MlaOptions o_;
  MixerArgs args_;
  Linear down_;
  Norm norm_;
  Linear key_up_, value_up_, key_rope_, query_, out_;
  std::unique_ptr<Linear> query_down_;
  std::unique_ptr<Norm> query_norm_;
};

}  // namespace

std::unique_ptr<Mixer> MlaOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Mla>(*this, args, rng);
}

}  // namespace weft
