// A base class for mixers of heads: sizes, projections, rotation.
//   class Mine final : public ProjectedMixer {
//    public:
//     Mine(const MixerArgs& args, Rng rng) : ProjectedMixer("mine", {.heads = 8}, args, rng) {}
//     Var forward(const Var& x, Tokens& tokens) override {
//       Var q = rotated(queries(x), args_, tokens), k = rotated(keys(x), args_, tokens);
//       return written(tokens.attend(q, k, values(x))[0], tokens);
//     }
// tools/examples/own_mixer.cpp is a whole program with one. B batch, T tokens, D model width, H heads, G key/value heads, K head width.
#pragma once

#include "weft/nn/mixer.h"

namespace weft {

// kv_heads 0: heads; head_dim 0: dim / heads.
struct HeadSizes {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
};
// The sizes with every 0 filled in. Error that begins with `name` if heads, kv_heads and args.dim do not divide each other.
HeadSizes completed(std::string_view name, HeadSizes sizes, const MixerArgs& args);

// Repeats the groups for the `heads` of queries that share them: [B, T, G, K] -> [B, T, H, K].
Var per_query_head(const Var& x_BTGK, int64_t heads);

// Four projections: q [D -> H K], k and v [D -> G K], out [H K -> D], named like that in checkpoints.
class ProjectedMixer : public Mixer {
 protected:
  ProjectedMixer(std::string_view what, const HeadSizes& sizes, const MixerArgs& args, Rng rng);
  Var queries(const Var& x_BTD) const { return split_heads(q_(x_BTD), s_.heads); }    // [B, T, H, K]
  Var keys(const Var& x_BTD) const { return split_heads(k_(x_BTD), s_.kv_heads); }    // [B, T, G, K]
  Var values(const Var& x_BTD) const { return split_heads(v_(x_BTD), s_.kv_heads); }  // [B, T, G, K]
  // The outputs of the heads, joined and projected: [B, T, D]. They pass Tokens::heads(), so that analyses can mask heads.
  Var written(const Var& y_BTHK, const Tokens& tokens) const { return out_(merge_heads(tokens.heads(y_BTHK))); }
  // Queries and keys in the dtype `wide`. With f32, products of bf16 x and weights are not rounded to bf16.
  Var queries(const Var& x_BTD, DType wide) { return split_heads(wide_linear(x_BTD, q_, wide), s_.heads); }
  Var keys(const Var& x_BTD, DType wide) { return split_heads(wide_linear(x_BTD, k_, wide), s_.kv_heads); }
  Var per_query_head(const Var& x_BTGK) const { return weft::per_query_head(x_BTGK, s_.heads); }

  HeadSizes s_;
  MixerArgs args_;

 private:
  static Var wide_linear(const Var& x_BTD, Linear& projection, DType wide) {
    return matmul(x_BTD, projection.weight(), {.transpose_b = true, .out = wide});
  }

  Linear q_, k_, v_, out_;
};

// x rotated by the rotary phases of the tokens' positions; x itself if the model has no rotary positions (MixerArgs::rotary unset).
Var rotated(const Var& x_BTHK, const MixerArgs& args, Tokens& tokens);

}  // namespace weft
