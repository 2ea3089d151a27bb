// MoH (Jin et al., 2410.11842), with S shared, R routed and K chosen heads:
//   [a1, a2] = 2 softmax(x W_h);  g = a1 S softmax(x W_s) for shared heads, a2 K p / sum of the chosen p for chosen ones,  p = softmax(x W_r)
// and without the factors 2, S, K / sum under has_paper_scale. A part that has no choice has no weights: W_s for one shared head, W_h
// without shared heads. B batch, T tokens, D model width, H heads, G key/value heads.
#include "src/nn/experts/mixture.h"

#include "src/nn/experts/experts.h"
#include "weft/core/error.h"

namespace weft {

namespace {

RouterOptions router_options(const HeadMixtureOptions& o, int64_t heads) {
  WEFT_CHECK(o.shared >= 0 && o.active >= 1 && o.shared + o.active <= heads,
             str("head mixture: ", o.shared, " shared and ", o.active, " chosen heads of ", heads),
             "shared and chosen heads together are at most all heads");
  RouterWeights weights = o.reads_query_norm  ? RouterWeights::hard
                          : o.has_paper_scale ? RouterWeights::raw
                                              : RouterWeights::renorm_scaled;
  return {.experts = heads - o.shared,
          .active = o.active,
          .weights = weights,
          .balance_loss = o.balance_loss,
          .has_running_load = o.has_running_load};
}

// Norms of the queries over their standard deviation over heads.
Var query_norms(const Var& q_BTRK) {
  const auto R = static_cast<double>(q_BTRK.size(2));
  Var norm = sqrt(sum(square(q_BTRK), -1) + 1e-12);
  Var centred = norm - mean(norm, -1, true);
  return norm * rsqrt(sum(square(centred), -1, true) * (1 / std::max(R - 1, 1.0)) + 1e-12);
}

}  // namespace

HeadMixture::HeadMixture(const HeadMixtureOptions& options, int64_t heads, const MixerArgs& args, Rng rng)
    : o_(options),
      heads_(heads),
      router_(router_options(options, heads), options.reads_query_norm ? 0 : args.dim, args.layers, args.std,
              rng["router"]) {
  name_part({"router", router_});
  if (o_.reads_query_norm) return;
  if (o_.shared > 1) {
    shared_ = std::make_unique<Linear>(args.dim, o_.shared, rng["shared"], LinearOptions{.std = args.std});
    name_part({"shared", *shared_});
  }
  if (o_.shared > 0) {
    kind_ = std::make_unique<Linear>(args.dim, 2, rng["kind"], LinearOptions{.std = args.std});
    name_part({"kind", *kind_});
  }
}

HeadMixture::Choice HeadMixture::choose(const Var& x_BTD, const Var& q_BTHK, Tokens& tokens) {
  Scope scope(name());
  const DType wide = x_BTD.dtype() == kF64 ? kF64 : kF32;
  const int64_t B = x_BTD.size(0), T = x_BTD.size(1), S = o_.shared;
  Routing r = o_.reads_query_norm ? router_.choose(query_norms(cast(slice(q_BTHK, 2, S, heads_), wide)), tokens)
                                  : router_(x_BTD, tokens);
  Var routed = r.dense_weights(), always = Tensor::full({B, T, S}, 1, wide, x_BTD.device());
  Var x = cast(x_BTD, wide);
  auto chances = [&](Linear& scorer) { return softmax(linear(x, cast(Var(scorer.weight()), wide))); };
  if (shared_) always = chances(*shared_) * (o_.has_paper_scale ? 1.0 : static_cast<double>(S));
  if (kind_) {
    Var of_kind = chances(*kind_) * (o_.has_paper_scale ? 1.0 : 2.0);
    always = always * slice(of_kind, -1, 0, 1);
    routed = routed * slice(of_kind, -1, 1, 2);
  }
  const Var parts[] = {always, routed};
  return {S > 0 ? concatenate(parts, -1) : routed, r.chosen_BTK};
}

bool HeadMixture::is_grouped(const Tokens& tokens, const ops::AttentionOptions& core) const {
  if (tokens.is_decoding() || core.dropout > 0) return false;
  constexpr int64_t kLongEnough = 512;  // below, sorting costs more than it saves
  bool has_choice = o_.shared + o_.active < heads_;
  return o_.path == HeadPath::grouped ||
         (o_.path == HeadPath::automatic && has_choice && tokens.num_tokens() >= kLongEnough);
}

// A head calls the core with the queries of the tokens that chose it and all keys: other tokens may choose the head too.
std::array<Var, 2> HeadMixture::attend(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV, const Choice& choice,
                                       Tokens& tokens, const ops::AttentionOptions& core, const Var& sink) const {
  if (!is_grouped(tokens, core)) return tokens.attend(q_BTHK, k_BTGK, v_BTGV, core, sink);
  const KeySet keys = tokens.keys(k_BTGK, v_BTGV, {.window = core.mask.window});
  tokens.observe(tokens.queries(q_BTHK), keys, {}, core, sink);
  const int64_t B = q_BTHK.size(0), T = q_BTHK.size(1), K = q_BTHK.size(3), G = k_BTGK.size(2), V = v_BTGV.size(3);
  const int64_t S = o_.shared, R = heads_ - S, active = o_.active;
  std::vector<Var> out_parts, lse_parts;
  auto with_slopes = [&](int64_t head, int64_t count) {
    ops::AttentionOptions options = core;
    if (core.score.alibi_slopes.defined())
      options.score.alibi_slopes = core.score.alibi_slopes.slice(0, head, head + count);
    return options;
  };

  // Rows of pairs (head, batch row, token), sorted in that order.
  Tensor expert_and_row = Tensor::empty({B, T, active}, kI32, Device::cpu());
  auto chosen = cast(Var(choice.chosen_BTK), kI32).value().to_vector<int32_t>();
  for (int64_t i = 0; i < B * T * active; ++i)
    expert_and_row.mutable_data<int32_t>()[i] =
        static_cast<int32_t>(chosen[static_cast<size_t>(i)] * B + i / (T * active));
  ExpertOrder order = order_by_expert(expert_and_row, R * B);
  auto slots = order.slots.to_vector<int32_t>();
  Tensor rows = Tensor::empty({static_cast<int64_t>(slots.size())}, kI32, Device::cpu());  // of q as [B T R, K]
  Tensor places = Tensor::full({B * T * R}, static_cast<double>(slots.size()), kI32, Device::cpu());
  std::vector<int32_t> token_of(slots.size());
  for (size_t i = 0; i < slots.size(); ++i) {
    int64_t token = slots[i] / active, row = token * R + chosen[static_cast<size_t>(slots[i])];
    token_of[i] = static_cast<int32_t>(token % T);
    rows.mutable_data<int32_t>()[i] = static_cast<int32_t>(row);
    places.mutable_data<int32_t>()[row] = static_cast<int32_t>(i);
  }
  Var sorted = take_rows(reshape(slice(q_BTHK, 2, S, heads_), {B * T * R, K}), weft::to(rows, q_BTHK.device()).value());
  std::vector<std::vector<KeySet>> parts_of_keys;  // [G][B]
  for (const KeySet& group : keys.groups()) parts_of_keys.push_back(group.rows());
  bool has_lse = false;
  for (int64_t head = 0; head < R; ++head)
    for (int64_t b = 0; b < B; ++b) {
      auto begin = order.begins[static_cast<size_t>(head * B + b)],
           end = order.begins[static_cast<size_t>(head * B + b) + 1];
      if (begin == end) continue;
      auto g = static_cast<size_t>((S + head) / (heads_ / G)), row = static_cast<size_t>(b);
      Var q = reshape(slice(sorted, 0, begin, end), {1, end - begin, 1, K});
      std::span<const int32_t> which(token_of.data() + begin, static_cast<size_t>(end - begin));
      auto [out, lse] =
          tokens.attend_part(tokens.queries(q, b, which), parts_of_keys[g][row], with_slopes(S + head, 1));
      out_parts.push_back(reshape(out, {end - begin, V}));
      has_lse = lse.defined();
      if (has_lse) lse_parts.push_back(reshape(lse, {end - begin, 1}));
    }
  Tensor index = weft::to(places, q_BTHK.device()).value();
  auto put = [&](std::vector<Var>& parts, int64_t width) {  // the last row is that of heads not chosen
    parts.push_back(Tensor::zeros({1, width}, parts[0].dtype(), parts[0].device()));
    return reshape(take_rows(concatenate(parts, 0), index), {B, T, R, width});
  };
  Var out = put(out_parts, V), lse = has_lse ? squeeze(put(lse_parts, 1), -1) : Var();
  if (S == 0) return {out, lse};
  std::vector<Var> shared_out, shared_lse;
  for (int64_t head = 0; head < S; ++head) {
    int64_t g = head / (heads_ / G);
    KeySet group = keys;
    group.k = slice(keys.k, 2, g, g + 1), group.v = slice(keys.v, 2, g, g + 1);
    auto [y, l] = tokens.attend_part(tokens.queries(slice(q_BTHK, 2, head, head + 1)), group, with_slopes(head, 1));
    shared_out.push_back(y);
    if (has_lse) shared_lse.push_back(l);
  }
  shared_out.push_back(out);
  if (has_lse) shared_lse.push_back(lse);
  return {concatenate(shared_out, 2), has_lse ? concatenate(shared_lse, 2) : Var()};
}

}  // namespace weft
