// Sizes and positions that mixers of heads share.
#pragma once

#include "weft/nn/mixer.h"

namespace weft {

// kv_heads 0: heads; head_dim 0: dim / heads. Error, opened by `name`, for what does not divide.
struct HeadSizes {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
};
HeadSizes completed(std::string_view name, HeadSizes sizes, const MixerArgs& args);

// Projections that many mixers begin and end with: q [D -> H K], k and v [D -> G K], out [H K -> D].
class ProjectedMixer : public Mixer {
 protected:
  ProjectedMixer(std::string_view what, const HeadSizes& sizes, const MixerArgs& args, Rng rng);
  Var queries(const Var& x_BTD) const { return split_heads(q_(x_BTD), s_.heads); }    // [B, T, H, K]
  Var keys(const Var& x_BTD) const { return split_heads(k_(x_BTD), s_.kv_heads); }    // [B, T, G, K]
  Var values(const Var& x_BTD) const { return split_heads(v_(x_BTD), s_.kv_heads); }  // [B, T, G, K]
  Var written(const Var& y_BTHK, const Tokens& tokens) const {
    return out_(merge_heads(tokens.heads(y_BTHK)));  // [B, T, D]
  }
  // Unrounded sums where x and the weights are bf16.
  Var queries(const Var& x_BTD, DType wide) { return split_heads(wide_linear(x_BTD, q_, wide), s_.heads); }
  Var keys(const Var& x_BTD, DType wide) { return split_heads(wide_linear(x_BTD, k_, wide), s_.kv_heads); }
  // As each query head sees it: [B, T, G, ...] -> [B, T, H, ...].
  Var per_query_head(const Var& x_BTGK) const;

  HeadSizes s_;
  MixerArgs args_;

 private:
  static Var wide_linear(const Var& x_BTD, Linear& projection, DType wide) {
    return matmul(x_BTD, projection.weight(), {.transpose_b = true, .out = wide});
  }

  Linear q_, k_, v_, out_;
};

// Rotated by the model's phases, or x itself where the model has none.
Var rotated(const Var& x_BTHK, const MixerArgs& args, Tokens& tokens);

}  // namespace weft
