// NAtS-L (2602.03681): each chunk of C tokens is kept by one of two memories, chosen per head: keys and values for softmax attention, or
// the state of Gated DeltaNet. Of q = silu(conv(x Wq)), k alike, v = silu(conv(x Wv)):
//   l_n = mean over chunk n of x Wt,  chunk n is softmax where l_n0 >= l_n1, else linear
//   a = attention of RMSNorm(q) on RMSNorm(k), v of its own chunk and of earlier softmax chunks
//   m = the delta rule of l2(q), l2(k), v; a softmax chunk reads what it writes, and leaves only its decay in the state
//   y = (w_0 RMSNorm(a) + w_1 RMSNorm(m)) silu(x Wg) Wo,  w = softmax(q Ww) per head
// The choice is hard; its gradient is that of softmax(l_n). Attention gives one for chunks that are softmax, the state for every chunk: that of
// the state with what the chunk writes, less that with its decay alone.
// B batch, T tokens here, S tokens of the row, D model width, H heads of the state, N heads of attention, K key width, V value width of H.
#include <limits>

#include "src/nn/mixers/hybrids/shown_pairs.h"
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/autograd/attention_merge.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/hybrids.h"

namespace weft {

namespace {

using namespace hybrid;
using namespace recurrent;

NatsLinearOptions completed(NatsLinearOptions o, int64_t dim) {
  WEFT_CHECK(o.heads >= 1 && o.head_dim >= 0 && o.value_dim >= 0 && o.softmax_heads >= 0,
             str("nats_l: heads ", o.heads, ", head_dim ", o.head_dim, ", value_dim ", o.value_dim, ", softmax_heads ",
                 o.softmax_heads),
             "heads is 1 or more, the others 0 (filled in) or more");
  WEFT_CHECK(o.chunk >= 1 && o.kernel >= 1, str("nats_l: chunk ", o.chunk, ", kernel ", o.kernel), "use 1 or more");
  if (o.head_dim == 0) {
    WEFT_CHECK(3 * dim / 4 / o.heads * o.heads * 4 == 3 * dim && dim >= o.heads,
               str("nats_l: keys of ", o.heads, " heads for dim ", dim), "set head_dim, or change heads");
    o.head_dim = 3 * dim / 4 / o.heads;
  }
  if (o.value_dim == 0) o.value_dim = 2 * o.head_dim;
  const bool is_even = o.head_dim % 2 == 0 && o.value_dim % 2 == 0;
  if (o.softmax_heads == 0) o.softmax_heads = is_even ? 2 * o.heads : o.heads;
  WEFT_CHECK(o.softmax_heads % o.heads == 0 && o.heads * o.head_dim % o.softmax_heads == 0 &&
                 o.heads * o.value_dim % o.softmax_heads == 0,
             str("nats_l: softmax_heads ", o.softmax_heads, " for ", o.heads, " heads of width ", o.head_dim, " and ",
                 o.value_dim),
             "choose a multiple of heads that divides heads * head_dim and heads * value_dim");
  return o;
}

class NatsLinear final : public Mixer {
 public:
  NatsLinear(const NatsLinearOptions& o, const MixerArgs& args, Rng rng)
      : o_(o),
        keys_(o.heads * o.head_dim),
        values_(o.heads * o.value_dim),
        q_(args.dim, keys_, rng["q"], {.std = args.std}),
        k_(args.dim, keys_, rng["k"], {.std = args.std}),
        v_(args.dim, values_, rng["v"], {.std = args.std}),
        strength_(args.dim, o.heads, rng["strength"], {.std = args.std}),
        decay_(args.dim, o.heads, rng["decay"], {.std = args.std}),
        type_(args.dim, 2 * o.heads, rng["type"], {.std = args.std}),
        share_(keys_, 2 * o.heads, rng["share"], {.std = args.std}),
        gate_(args.dim, values_, rng["gate"], {.std = args.std}),
        out_(values_, args.dim, rng["out"], {.std = args.out_std}),
        q_conv_(keys_, o.kernel, rng["q_conv"]),
        k_conv_(keys_, o.kernel, rng["k_conv"]),
        v_conv_(values_, o.kernel, rng["v_conv"]),
        q_norm_(keys_ / o.softmax_heads, {.eps = args.norm_eps}),
        k_norm_(keys_ / o.softmax_heads, {.eps = args.norm_eps}),
        norm_softmax_(o.value_dim, {.eps = args.norm_eps}),
        norm_linear_(o.value_dim, {.eps = args.norm_eps}),
        log_rate_(log_rates(o.heads, 1e-4, 16, rng["log_rate"])),
        step_bias_(step_biases(o.heads, rng["step_bias"])) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"strength", strength_}, {"decay", decay_}, {"type", type_}});
    name_parts({{"share", share_}, {"gate", gate_}, {"out", out_}});
    name_parts({{"q_conv", q_conv_}, {"k_conv", k_conv_}, {"v_conv", v_conv_}});
    name_parts({{"q_norm", q_norm_}, {"k_norm", k_norm_}});
    name_parts({{"norm_softmax", norm_softmax_}, {"norm_linear", norm_linear_}});
    name_parts({{"log_rate", log_rate_}, {"step_bias", step_bias_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const int64_t H = o_.heads;
    Var q = q_conv_(q_(x_BTD), tokens), k = k_conv_(k_(x_BTD), tokens), v = v_conv_(v_(x_BTD), tokens);
    const Var type_BTH = types(x_BTD, tokens);
    tokens.report_means("softmax_share", type_BTH);
    Var a_BTHV = norm_softmax_(split_heads(merge_heads(attention(q, k, v, type_BTH, tokens)), H));
    Var m_BTHV = norm_linear_(recurrence(x_BTD, q, k, v, type_BTH, tokens));
    Var share_BTH2 = softmax(reshape(wide_linear(q, share_), {q.size(0), q.size(1), H, 2}));
    auto part = [&](int64_t i) { return cast(slice(share_BTH2, -1, i, i + 1), x_BTD.dtype()); };
    Var y_BTHV = (a_BTHV * part(0) + m_BTHV * part(1)) * split_heads(silu(gate_(x_BTD)), H);
    return out_(merge_heads(tokens.heads(y_BTHV)));
  }

  double flops_per_token(double keys) const override {
    return 6.0 * static_cast<double>(keys_ + values_) * keys +
           recurrence_flops(o_.heads, o_.head_dim, o_.value_dim, true);
  }

 private:
  // 1 where the tokens of the chunk so far say softmax, 0 where they say linear: [B, T, H]. What counts is the chunk's last token.
  Var types(const Var& x_BTD, Tokens& tokens) {
    constexpr double kReset = -1e4;  // log of a decay that is 0 in every dtype
    const int64_t B = tokens.batch(), T = tokens.num_tokens(), width = 2 * o_.heads + 1;
    Tensor decays = Tensor::zeros({B, T, width}, kF32, Device::cpu());
    const auto local = is_dry_run() ? std::span<const int32_t>() : tokens.cpu_document_positions();
    for (size_t i = 0; i < local.size(); ++i)
      for (int64_t c = 0; c < width && local[i] % o_.chunk == 0; ++c)
        decays.mutable_data<float>()[static_cast<int64_t>(i) * width + c] = static_cast<float>(kReset);
    Var logits = wide_linear(x_BTD, type_);
    const DType f = logits.dtype();
    const Device device = logits.device();
    const Var numbers[] = {logits, Tensor::full({B, T, 1}, 1, f, device)};  // and how many they are
    Var sums = tokens.decay_scan(concatenate(numbers, -1), cast(weft::to(decays, device), f));
    Var count = maximum(slice(sums, -1, width - 1, width), Tensor::full({}, 1, f, device));
    Var means_BTH2 = reshape(slice(sums, -1, 0, width - 1) / count, {B, T, o_.heads, 2});
    return select(one_hot(means_BTH2), -1, 0);
  }

  // [B, T, N, V']
  Var attention(const Var& q, const Var& k, const Var& v, const Var& type_BTH, Tokens& tokens) {
    const int64_t N = o_.softmax_heads;
    const Var here[] = {k_norm_(split_heads(k, N)), split_heads(v, N), type_BTH};
    const std::vector<Var> values = tokens.gather(here);
    const AllTokens all = all_tokens(tokens);
    const int64_t B = all.batch(), S = all.count();
    const Var q_BTNK = q_norm_(split_heads(q, N));

    // Numbers of chunks, and for each token the last one of its chunk.
    const Pieces chunks = all.pieces(o_.chunk);
    std::vector<int32_t> of_row(static_cast<size_t>(B * S), -1), ends(of_row.size(), -1);
    for (const auto& row : chunks.rows)
      for (size_t i = 0; i < row.size(); ++i)
        for (int32_t token : row[i].tokens) {
          of_row[static_cast<size_t>(token)] = static_cast<int32_t>(i);
          ends[static_cast<size_t>(token)] = row[i].tokens.back();
        }
    const Tensor own = on_device_of(all.keys.positions, of_row, {B, S});
    const Tensor own_here = cast(all.here(cast(Var(own), kF64)), kI32).value();

    ops::AttentionOptions within = all.options(o_.chunk);
    within.mask.same_document = true;
    auto inside =
        attend(q_BTNK, values[0], values[1], {all.queries.positions, own_here}, {all.keys.positions, own}, within);
    // Keys of a chunk stand behind its queries and in front of those of the next chunk.
    auto doubled = [](const Tensor& x) { return cast(cast(Var(x), kF64) * 2.0, kI32).value(); };
    ops::AttentionTokens queries{doubled(own_here), all.queries.documents},
        keys{plus(doubled(own), 1), all.keys.documents};
    Var type_BSH = reshape(rows_or_zeros(reshape(values[2], {B * S, o_.heads}), ends), {B, S, o_.heads});
    Var bias_BSH = where(greater(type_BSH, 0.5), type_BSH - 1.0, -std::numeric_limits<double>::infinity());
    Var bias_BSN = reshape(expand(unsqueeze(bias_BSH, 3), {B, S, o_.heads, N / o_.heads}), {B, S, N});
    auto across = attend(q_BTNK, values[0], values[1], queries, keys, all.options(), {.query = {}, .key = bias_BSN});
    show(q_BTNK, values[0], here[1], own, own_here, type_BSH, tokens);
    return cast(merge(inside, across)[0], v.dtype());
  }

  // Both calls as the one attention that they are, to whoever watches: of the chunk's own keys and of earlier softmax chunks.
  static void show(const Var& q_BTNK, const Var& k_BSNK, const Var& v_BTNV, const Tensor& own_BS,
                   const Tensor& own_here_BT, const Var& type_BSH, Tokens& tokens) {
    if (!tokens.is_watched()) return;
    NoGrad no_grad;
    const Tensor is_softmax_BH1S = greater(type_BSH.value().transpose(1, 2).unsqueeze(2), 0.5),
                 own_B11S = own_BS.unsqueeze(1).unsqueeze(2);
    show_pairs(tokens, q_BTNK, k_BSNK, v_BTNV, [&](int64_t begin, int64_t end) {
      const Tensor of_queries = own_here_BT.slice(1, begin, end).unsqueeze(1).unsqueeze(3);
      return logical_or(equal(of_queries, own_B11S), is_softmax_BH1S);
    });
  }

  Var recurrence(const Var& x_BTD, const Var& q, const Var& k, const Var& v, const Var& type_BTH, Tokens& tokens) {
    Var step_BTH = softplus(wide_linear(x_BTD, decay_) + step_bias_);
    return tokens.recur_chunks({.q_BTGK = l2_normed(split_heads(q, o_.heads)),
                                .k_BTGK = l2_normed(split_heads(k, o_.heads)),
                                .v_BTHV = split_heads(v, o_.heads),
                                .log_decay = floored(-(exp(log_rate_) * step_BTH)),
                                .beta = sigmoid(wide_linear(x_BTD, strength_))},
                               {.scale = inverse_root(o_.head_dim)}, 1.0 - type_BTH, o_.chunk);
  }

  NatsLinearOptions o_;
  int64_t keys_, values_;  // widths of all heads
  Linear q_, k_, v_, strength_, decay_, type_, share_, gate_, out_;
  ShortConv q_conv_, k_conv_, v_conv_;
  Norm q_norm_, k_norm_, norm_softmax_, norm_linear_;
  Param log_rate_, step_bias_;
};

}  // namespace

std::unique_ptr<Mixer> NatsLinearOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<NatsLinear>(completed(*this, args.dim), args, rng);
}

}  // namespace weft
