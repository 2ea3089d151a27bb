// HySparse (2602.03560): one layer of full attention, and behind it N layers that attend to blocks of its keys and values. A query's blocks are
// those that hold its largest weights in the full layer.
//   full     y = softmax(rot(q) rot(k)^T / sqrt(K)) v;  I_t = the M blocks b with the largest max_(j in b, h of the group) p_tj
//   sparse   y = sigmoid(x A) attend(rot(q'), k, v of the full layer in the blocks I_t) + sigmoid(x B) attend(rot(q'), rot(k'), v'; last W)
// k' and v' are the sparse layer's own. The choice has no gradient; k and v get that of all layers that read them.
// N = 0: every layer is sparse, with keys, values and weights of its own to choose by.
// B batch, T tokens here, S tokens of the row, D model width, H heads, G key/value heads, K head width.
#include "src/nn/mixers/hybrids/chosen_blocks.h"
#include "src/nn/mixers/hybrids/shown_pairs.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/hybrids.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

using namespace hybrid;

class HySparse final : public ProjectedMixer {
 public:
  HySparse(const HySparseOptions& options, const MixerArgs& args, Rng rng)
      : ProjectedMixer("hysparse", {options.heads, options.kv_heads, options.head_dim}, args, rng), o_(options) {
    WEFT_CHECK(
        o_.sparse >= 0 && o_.block >= 1 && o_.blocks >= 1 && o_.window >= 1,
        str("hysparse: sparse ", o_.sparse, ", block ", o_.block, ", blocks ", o_.blocks, ", window ", o_.window),
        "sparse is 0 or more, the others 1 or more");
    is_full_ = o_.sparse > 0 && args.layer % (o_.sparse + 1) == 0;
    if (!is_full_) {
      gates_ = std::make_unique<Linear>(args.dim, 2 * s_.heads, rng["gates"], LinearOptions{.std = args.std});
      name_part({"gates", *gates_});
    }
    if (o_.sparse > 0) return;
    const int64_t width = s_.kv_heads * s_.head_dim;
    block_k_ = std::make_unique<Linear>(args.dim, width, rng["block_k"], LinearOptions{.std = args.std});
    block_v_ = std::make_unique<Linear>(args.dim, width, rng["block_v"], LinearOptions{.std = args.std});
    name_parts({{"block_k", *block_k_}, {"block_v", *block_v_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const Var q_BTHK = rotated(queries(x_BTD), args_, tokens);
    if (is_full_) return written(cast(full(q_BTHK, keys(x_BTD), values(x_BTD), tokens), x_BTD.dtype()), tokens);
    if (block_k_)
      full(q_BTHK, split_heads((*block_k_)(x_BTD), s_.kv_heads), split_heads((*block_v_)(x_BTD), s_.kv_heads), tokens);
    const AllTokens all = all_tokens(tokens);
    const Var &k = tokens.shared(named("k")), &v = tokens.shared(named("v"));
    WEFT_CHECK(
        k.size(2) == s_.kv_heads && k.size(3) == s_.head_dim,
        str("hysparse: ", s_.kv_heads, " key heads of ", s_.head_dim, ", and the layer that it reads has ", k.value()),
        "give all layers of a schedule the same options");
    const Tensor blocks = tokens.shared(named("blocks")).value();
    Var far = attend_blocks(q_BTHK, k, v, blocks, all, o_.block)[0];
    show(q_BTHK, k, v, blocks, all, tokens);
    Var near =
        tokens.attend(q_BTHK, rotated(keys(x_BTD), args_, tokens), values(x_BTD), {.mask = {.window = o_.window}})[0];
    Var gates_BT2H = sigmoid((*gates_)(x_BTD));
    auto gate = [&](int64_t i) { return unsqueeze(slice(gates_BT2H, -1, i * s_.heads, (i + 1) * s_.heads), -1); };
    return written(cast(far, x_BTD.dtype()) * gate(0) + near * gate(1), tokens);
  }

  double keys_per_query(int64_t context) const override {
    if (is_full_) return causal_keys(context);
    const double near = causal_keys(context, o_.window), far = causal_keys(context, o_.blocks * o_.block);
    return near + far + (block_k_ ? causal_keys(context) : 0);
  }
  double flops_per_token(double keys) const override {
    return 12.0 * static_cast<double>(s_.heads * s_.head_dim) * keys;
  }

 private:
  // Of the group of layers that share: by the first of them, which no other schedule has.
  std::string named(std::string_view what) const {
    return str("hysparse.", args_.layer - args_.layer % (o_.sparse + 1), ".", what);
  }

  // Attention on all keys [B, T, H, K]; leaves them and the chosen blocks for the layers behind.
  Var full(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGK, Tokens& tokens) const {
    const Var here[] = {rotated(k_BTGK, args_, tokens), v_BTGK};
    const std::vector<Var> values = tokens.gather(here);
    const AllTokens all = all_tokens(tokens);
    auto [out, lse] = attend(q_BTHK, values[0], values[1], all.queries, all.keys, all.options());
    if (is_full_ && tokens.is_watched())
      tokens.observe(tokens.queries(q_BTHK), tokens.keys(here[0], here[1], {.serves_one_call = true}), lse, {}, {});
    tokens.share(named("k"), values[0]);
    tokens.share(named("v"), values[1]);
    tokens.share(named("blocks"), choose_blocks(q_BTHK, values[0], lse, all, o_.block, o_.blocks));
    return out;
  }

  // Attention in the chosen blocks, to whoever watches.
  void show(const Var& q_BTHK, const Var& k_BSGK, const Var& v_BSGK, const Tensor& blocks_BTGN, const AllTokens& all,
            Tokens& tokens) const {
    if (!tokens.is_watched()) return;
    NoGrad no_grad;
    const Tensor of_keys_B11S = blocks_of_keys(all, o_.block).unsqueeze(1).unsqueeze(2);
    const Var chosen_BGTN = transpose(Var(blocks_BTGN), 1, 2);
    show_pairs(tokens, q_BTHK, k_BSGK, all.here(v_BSGK), [&](int64_t begin, int64_t end) {
      Tensor attended = Tensor::full({all.batch(), 1, 1, 1}, 0, kBool, of_keys_B11S.device());
      for (int64_t n = 0; n < chosen_BGTN.size(3); ++n)
        attended = logical_or(attended, equal(slice(slice(chosen_BGTN, 2, begin, end), 3, n, n + 1), of_keys_B11S));
      return attended;
    });
  }

  HySparseOptions o_;
  bool is_full_ = false;
  std::unique_ptr<Linear> gates_, block_k_, block_v_;
};

}  // namespace

std::unique_ptr<Mixer> HySparseOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<HySparse>(*this, args, rng);
}

}  // namespace weft
