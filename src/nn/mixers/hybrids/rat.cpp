// RAT (2507.04416): recurrence within chunks, attention across them. With f_t = sigmoid(x W_f + b), reset to 0 where a chunk begins,
//   v'_t = f_t v'_{t-1} + (1 - f_t) v_t,  k'_t = f_t k'_{t-1} + (1 - f_t) k_t
//   y_t = softmax over the last tokens e of earlier chunks and t itself of q_t . k'_e / sqrt(K), times v'_e
//   out = (y * sigmoid(x W_z)) W_out
// Only the keys of last tokens e travel between ranks and are cached. A key stands one token later, where its chunk is over: from there
// on queries see it.
// B batch, T tokens, D model width, H heads, K head width, E = H K, N groups of queries and keys.
#include <cmath>

#include "src/nn/mixers/hybrids/shown_pairs.h"
#include "src/nn/mixers/recurrent/parts.h"
#include "src/nn/mixing/chosen_keys.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/hybrids.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

using namespace recurrent;

constexpr double kReset = -1e4;  // log of a decay that is 0 in every dtype

RatOptions completed(RatOptions o, const MixerArgs& args) {
  o.head_dim = completed("rat", {o.heads, 0, o.head_dim}, args).head_dim;
  if (o.groups == 0) o.groups = o.heads % 2 == 0 ? 2 : 1;
  WEFT_CHECK(o.chunk > 0, str("rat: chunks of ", o.chunk, " tokens"), "use 1 or more");
  WEFT_CHECK(o.groups > 0 && o.heads % o.groups == 0, str("rat: ", o.groups, " groups of ", o.heads, " heads"),
             "choose groups among the divisors of heads");
  return o;
}

// Gates that remember 1 to chunk - 1 tokens at first, spread evenly in the logarithm's argument.
Tensor gate_bias(int64_t width, int64_t chunk, Rng rng) {
  Tensor bias = Tensor::zeros({width}, kF32, Device::cpu());
  for (int64_t c = 0; c < width && chunk > 2 && !is_dry_run(); ++c)
    bias.mutable_data<float>()[c] = static_cast<float>(
        std::log(1 + static_cast<double>(chunk - 2) * static_cast<double>(rng.uniform(static_cast<uint64_t>(c)))));
  return to(bias, default_device()).value();
}

class Rat final : public Mixer {
 public:
  Rat(const RatOptions& options, const MixerArgs& args, Rng rng)
      : o_(completed(options, args)),
        args_(args),
        width_(o_.heads * o_.head_dim),
        q_(args.dim, o_.groups * o_.head_dim, rng["q"], {.std = args.std}),
        k_(args.dim, o_.groups * o_.head_dim, rng["k"], {.std = args.std}),
        v_(args.dim, width_, rng["v"], {.std = args.std}),
        gate_(args.dim, width_, rng["gate"], {.std = args.std}),
        z_(args.dim, width_, rng["z"], {.std = args.std}),
        out_(width_, args.dim, rng["out"], {.std = args.out_std}),
        gate_bias_(gate_bias(width_, o_.chunk, rng["gate bias"])) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"gate", gate_}, {"z", z_}, {"out", out_}});
    name_part({"gate_bias", gate_bias_});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const DType dtype = x_BTD.dtype(), f = wide(x_BTD);
    const Places places = places_of(tokens, f);
    const auto [values_BTHK, means_BTHK] = means(x_BTD, places, tokens);
    const ops::RotaryTable* table = places.rotation ? &*places.rotation : nullptr;
    Var q_BTHK = per_head(q_(x_BTD)), k_BTHK = means_BTHK;
    if (table) q_BTHK = rotary(q_BTHK, *table), k_BTHK = rotary(k_BTHK, *table);
    show(q_BTHK, k_BTHK, values_BTHK, tokens);
    auto [across_BTHK, lse_BTH] =
        tokens.attend_part(tokens.queries(q_BTHK), last_of_chunks(k_BTHK, values_BTHK, tokens), {});
    Var own_BTH = cast(sum(q_BTHK * k_BTHK, -1), f) * (1 / std::sqrt(static_cast<double>(o_.head_dim)));
    Var share = unsqueeze(cast(sigmoid(own_BTH - cast(lse_BTH, f)), dtype), -1);
    Var y_BTHK = across_BTHK + (values_BTHK - across_BTHK) * share;
    Var gated = split_heads(merge_heads(y_BTHK) * sigmoid(z_(x_BTD)), o_.heads);
    return out_(merge_heads(tokens.heads(gated)));
  }

  // The earlier chunks, and the running one.
  double keys_per_query(int64_t context) const override {
    const int64_t last = (context - 1) / o_.chunk;  // number of the last chunk
    const auto chunks = static_cast<double>(o_.chunk * last * (last - 1) / 2 + last * (context - last * o_.chunk));
    return 1 + (context > 0 ? chunks / static_cast<double>(context) : 0);
  }
  double flops_per_token(double keys) const override { return 12.0 * static_cast<double>(width_) * keys; }

 private:
  // What follows from the tokens' places in their documents.
  struct Places {
    Var starts_BT1;  // 1 where a chunk begins, else 0
    std::optional<ops::RotaryTable> rotation;
  };
  Places places_of(const Tokens& tokens, DType dtype) const {
    const int64_t B = tokens.batch(), T = tokens.num_tokens();
    Tensor starts = Tensor::zeros({B, T, 1}, kF32, Device::cpu()), chunks = Tensor::zeros({B, T}, kI32, Device::cpu());
    const auto local = is_dry_run() ? std::span<const int32_t>() : tokens.cpu_document_positions();
    for (size_t i = 0; i < local.size(); ++i) {
      chunks.mutable_data<int32_t>()[i] = static_cast<int32_t>(local[i] / o_.chunk);
      starts.mutable_data<float>()[i] = local[i] % o_.chunk == 0 ? 1 : 0;
    }
    const Device device = tokens.positions().device();
    Places places{.starts_BT1 = cast(weft::to(starts, device), dtype), .rotation = {}};
    if (args_.rotary) places.rotation = make_rotary_table(weft::to(chunks, device).value(), o_.head_dim, *args_.rotary);
    return places;
  }

  // Of the tokens here those that end a chunk. A dry run has rows of one document.
  KeySet last_of_chunks(const Var& k_BTHK, const Var& v_BTHK, const Tokens& tokens) const {
    const int64_t B = tokens.batch(), T = tokens.num_tokens();
    const bool have_documents = tokens.documents().defined();
    ChosenRows rows(static_cast<size_t>(B));
    for (int64_t i = 0; i < B * T; ++i) {
      const auto at = static_cast<size_t>(i);
      const int64_t local = is_dry_run() ? i % T : tokens.cpu_document_positions()[at];
      if (local % o_.chunk != o_.chunk - 1 || (!is_dry_run() && tokens.is_padding(i))) continue;
      ChosenKey key{.number = static_cast<int32_t>(i)};
      if (!is_dry_run()) {
        key.position = tokens.cpu_positions()[at] + 1;
        if (have_documents) key.document = tokens.cpu_documents()[at];
      }
      rows[static_cast<size_t>(i / T)].push_back(key);
    }
    auto flat = [&](const Var& x) { return reshape(x, {B * T, o_.heads, o_.head_dim}); };
    return chosen_keys(flat(k_BTHK), flat(v_BTHK), rows, have_documents);
  }

  // To whoever watches, a key is the token up to which its mean goes: the last of an earlier chunk, or the query itself.
  void show(const Var& q_BTHK, const Var& k_BTHK, const Var& v_BTHK, Tokens& tokens) const {
    if (!tokens.is_watched()) return;
    NoGrad no_grad;
    const Var here[] = {k_BTHK};
    const Var k_BSHK = tokens.gather(here)[0];
    const hybrid::AllTokens all = hybrid::all_tokens(tokens);
    std::vector<int32_t> ends;
    for (int32_t position : hybrid::on_cpu(all.keys.positions)) ends.push_back((position + 1) % o_.chunk == 0 ? 1 : 0);
    const Tensor is_end_B11S =
        equal(hybrid::on_device_of(all.keys.positions, ends, {all.batch(), 1, 1, all.count()}), 1);
    hybrid::show_pairs(tokens, q_BTHK, k_BSHK, v_BTHK, [&](int64_t begin, int64_t end) {
      return logical_or(is_end_B11S, equal(all.distances(begin, end), 0));
    });
  }

  // The gated means of values and of keys, [B, T, H, K] each.
  std::pair<Var, Var> means(const Var& x_BTD, const Places& places, Tokens& tokens) {
    Var f_BTE = wide_linear(x_BTD, gate_) + gate_bias_;
    Var new_BTE = cast(sigmoid(-f_BTE), x_BTD.dtype());
    Var log_BTE = log_sigmoid(f_BTE) * (1.0 - places.starts_BT1) + places.starts_BT1 * kReset;
    const Var written[] = {v_(x_BTD) * new_BTE, merge_heads(per_head(k_(x_BTD))) * new_BTE},
              decays[] = {log_BTE, log_BTE};
    std::vector<Var> parts = chunk(tokens.decay_scan(concatenate(written, -1), concatenate(decays, -1)), 2, -1);
    return {split_heads(parts[0], o_.heads), split_heads(parts[1], o_.heads)};
  }

  // [B, T, N K] -> [B, T, H, K]: each group serves H / N heads.
  Var per_head(const Var& x) const {
    const int64_t B = x.size(0), T = x.size(1), each = o_.heads / o_.groups;
    Var groups = unsqueeze(split_heads(x, o_.groups), 3);
    return reshape(expand(groups, {B, T, o_.groups, each, o_.head_dim}), {B, T, o_.heads, o_.head_dim});
  }

  RatOptions o_;
  MixerArgs args_;
  int64_t width_;
  Linear q_, k_, v_, gate_, z_, out_;
  Param gate_bias_;
};

}  // namespace

std::unique_ptr<Mixer> RatOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Rat>(*this, args, rng);
}

}  // namespace weft
