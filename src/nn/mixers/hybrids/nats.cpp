// NAtS (2502.13251): each token of each head is of one of three types, chosen by a linear map of x:
//   global   its key is seen by all later tokens
//   local    until the next global token
//   sliding  by the W tokens from itself on
//   j is seen by i >= j where i - j < W, or j is global, or j is local and no token of (j, i] is global
//   y = softmax(rot(q) rot(k)^T / sqrt(K) + log m) v,  m the chosen type of j where i - j >= W
// In training Gumbel noise is added to the logits. A choice is hard; its gradient is that of softmax(logits / u), where u goes from its first
// value to its last one over the training: u = first^(1 - p) last^p at progress p. The mean share of global tokens is an auxiliary loss. A
// key that is not seen gives its type no gradient.
// Three calls of the core over disjoint sets of keys, merged: the window, global keys behind it, local keys behind it.
// B batch, T tokens here, S tokens of the row, D model width, H heads, G key/value heads, K head width.
#include <cmath>
#include <limits>

#include "src/nn/mixers/chunks.h"
#include "src/nn/mixers/hybrids/shown_pairs.h"
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/autograd/attention_merge.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/hybrids.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

using namespace hybrid;

constexpr int64_t kTypes = 3;  // global, local, sliding

NatsOptions checked(const NatsOptions& o) {
  WEFT_CHECK(o.window >= 1, str("nats: window ", o.window), "use 1 (the token itself) or more");
  check_chunk("nats: window", o.window);
  WEFT_CHECK(o.temperature > 0 && o.end_temperature > 0 && o.global_loss >= 0,
             str("nats: temperature ", o.temperature, ", end_temperature ", o.end_temperature, ", global_loss ",
                 o.global_loss),
             "temperatures are above 0, global_loss 0 or more");
  return o;
}

Tensor first_biases(int64_t heads, double global) {
  Tensor bias = Tensor::zeros({heads * kTypes}, kF32, default_device());
  Tensor of_global = bias.reshape({heads, kTypes}).slice(1, 0, 1);
  assign(of_global, Tensor::full({heads, 1}, global, kF32, default_device()));
  return bias;
}

class Nats final : public ProjectedMixer {
 public:
  Nats(const NatsOptions& options, const MixerArgs& args, Rng rng)
      : ProjectedMixer("nats", {options.heads, options.kv_heads, options.head_dim}, args, rng),
        o_(checked(options)),
        type_(args.dim, s_.kv_heads * kTypes, rng["type"], {.std = args.std}),
        type_bias_(first_biases(s_.kv_heads, o_.global_bias)) {
    name_parts({{"type", type_}, {"type_bias", type_bias_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var q_BTHK = rotated(queries(x_BTD), args_, tokens);
    const Var values_here[] = {rotated(keys(x_BTD), args_, tokens), values(x_BTD), types(x_BTD, tokens)};
    const std::vector<Var> values = tokens.gather(values_here);
    const AllTokens all = all_tokens(tokens);
    const Var &k = values[0], &v = values[1];
    const Var global_BSG = select(values[2], -1, 0), local_BSG = select(values[2], -1, 1);
    ops::AttentionTokens behind = all.keys;  // keys come into sight when the window has passed them
    behind.positions = plus(behind.positions, o_.window);
    auto near = attend(q_BTHK, k, v, all.queries, all.keys, all.options(o_.window));
    auto far = attend(q_BTHK, k, v, all.queries, behind, all.options(), {.query = {}, .key = seen(global_BSG)});
    auto y = merge(merge(near, far), local(q_BTHK, k, v, all, behind.positions, global_BSG, local_BSG));
    show(q_BTHK, k, values_here[1], all, global_BSG, local_BSG, tokens);
    return written(cast(y[0], x_BTD.dtype()), tokens);
  }

  double flops_per_token(double keys) const override {
    return 12.0 * static_cast<double>(s_.heads * s_.head_dim) * keys;
  }

 private:
  // 1 where a type was chosen, else 0: [B, T, G, 3].
  Var types(const Var& x_BTD, Tokens& tokens) {
    Var logits = recurrent::wide_linear(x_BTD, type_) + type_bias_, noisy = logits;
    const Shape shape{tokens.batch(), tokens.num_tokens(), s_.kv_heads, kTypes};
    if (tokens.is_training()) {
      const DType wide = logits.dtype();
      noisy = logits + gumbel_noise(tokens, s_.kv_heads * kTypes, wide, tokens.random("types"));
      Var shares = select(softmax(reshape(logits, shape)), -1, 0), count = maximum(tokens.num_counted(), 1);
      Var mean = sum_all(tokens.sum(shares)) / cast(count, wide) * (1.0 / static_cast<double>(s_.kv_heads));
      tokens.add_loss("global_loss", mean, o_.global_loss / static_cast<double>(args_.layers));
    }
    Var chosen = one_hot(reshape(noisy, shape) * (1 / temperature(tokens.progress())));
    tokens.report_means("types", chosen);
    return chosen;
  }

  double temperature(double progress) const {
    return std::pow(o_.temperature, 1 - progress) * std::pow(o_.end_temperature, progress);
  }

  // Added to scores: log of the choice.
  static Var seen(const Var& choice) {
    return where(greater(choice, 0.5), choice - 1.0, -std::numeric_limits<double>::infinity());
  }

  // Local keys behind the window. Tokens between one global token and the next are a document here, in each head by itself.
  std::array<Var, 2> local(const Var& q_BTHK, const Var& k_BSGK, const Var& v_BSGK, const AllTokens& all,
                           const Tensor& key_positions, const Var& global_BSG, const Var& local_BSG) const {
    const int64_t B = all.batch(), S = all.count(), T = q_BTHK.size(1), G = s_.kv_heads, K = s_.head_dim,
                  each = s_.heads / G;
    const Tensor documents = stretches(all, global_BSG), here = all.here(documents).value();
    auto folded = [&](const Var& x, int64_t heads, int64_t width) {  // [B, N, G heads, width] -> [B G, N, heads, width]
      Var groups = transpose(reshape(x, {B, x.size(1), G, heads * width}), 1, 2);
      return reshape(groups, {B * G, x.size(1), heads, width});
    };
    auto of_heads = [&](const Tensor& x_BN) {
      return reshape(expand(unsqueeze(Var(x_BN), 1), {B, G, x_BN.size(1)}), {B * G, x_BN.size(1)}).value();
    };
    auto in_rows = [&](const Tensor& x_BNG) {
      return cast(reshape(transpose(Var(x_BNG), 1, 2), {B * G, x_BNG.size(1)}), kI32).value();
    };
    ops::AttentionOptions options;
    options.mask.same_document = true;
    auto [out, lse] =
        attend(folded(q_BTHK, each, K), folded(k_BSGK, 1, K), folded(v_BSGK, 1, K),
               {of_heads(all.queries.positions), in_rows(here)}, {of_heads(key_positions), in_rows(documents)}, options,
               {.query = {}, .key = reshape(transpose(seen(local_BSG), 1, 2), {B * G, S, 1})});
    auto unfolded = [&](const Var& x, int64_t width) { return transpose(reshape(x, {B, G, T, each * width}), 1, 2); };
    return {reshape(unfolded(out, K), {B, T, s_.heads, K}), reshape(unfolded(lse, 1), {B, T, s_.heads})};
  }

  // The three calls as the one attention that they are, to whoever watches.
  void show(const Var& q_BTHK, const Var& k_BSGK, const Var& v_BTGK, const AllTokens& all, const Var& global_BSG,
            const Var& local_BSG, Tokens& tokens) const {
    if (!tokens.is_watched()) return;
    NoGrad no_grad;
    auto of_keys = [](const Tensor& x_BSG) { return x_BSG.transpose(1, 2).unsqueeze(2); };  // [B, G, 1, S]
    const Tensor numbers = stretches(all, global_BSG), here = all.here(numbers).value();
    const Tensor global = greater(of_keys(global_BSG.value()), 0.5), local = greater(of_keys(local_BSG.value()), 0.5);
    show_pairs(tokens, q_BTHK, k_BSGK, v_BTGK, [&](int64_t begin, int64_t end) {
      const Tensor of_queries = here.slice(1, begin, end).transpose(1, 2).unsqueeze(3);
      const Tensor is_alive = logical_and(local, equal(of_queries, of_keys(numbers)));
      return logical_or(less(all.distances(begin, end), o_.window), logical_or(global, is_alive));
    });
  }

  // The number of each token's stretch, [B, S, G] f64: one more at each global token and at each document's start; -1 for padding.
  static Tensor stretches(const AllTokens& all, const Var& global_BSG) {
    NoGrad no_grad;
    const int64_t B = all.batch(), S = all.count();
    Var begins_BSG = cast(global_BSG, kF64);
    if (!all.keys.documents.defined()) return cumsum(begins_BSG, 1).value();
    Var documents = cast(Var(all.keys.documents), kF64);
    const Device device = documents.device();
    const Var parts[] = {Tensor::zeros({B, std::min<int64_t>(S, 1)}, kF64, device),
                         S > 1 ? cast(Var(not_equal(slice(documents, 1, 1, S), slice(documents, 1, 0, S - 1))), kF64)
                               : Var(Tensor::zeros({B, 0}, kF64, device))};
    Var numbers = cumsum(begins_BSG + unsqueeze(concatenate(parts, 1), 2), 1);
    Var counted = unsqueeze(clamp(documents + 1.0, 0, 1), 2);
    return (numbers * counted + (counted - 1.0)).value();
  }

  NatsOptions o_;
  Linear type_;
  Param type_bias_;
};

}  // namespace

std::unique_ptr<Mixer> NatsOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Nats>(*this, args, rng);
}

}  // namespace weft
