#include "weft/nn/mixers/projected.h"

#include "weft/core/error.h"

namespace weft {

HeadSizes completed(std::string_view name, HeadSizes s, const MixerArgs& args) {
  WEFT_CHECK(args.dim >= 1 && s.heads >= 1, str(name, ": dim ", args.dim, ", heads ", s.heads),
             "both must be 1 or more");
  if (s.kv_heads == 0) s.kv_heads = s.heads;
  WEFT_CHECK(s.kv_heads >= 1 && s.heads % s.kv_heads == 0,
             str(name, ": heads ", s.heads, " is not a multiple of kv_heads ", s.kv_heads),
             "choose kv_heads among the divisors of heads");
  WEFT_CHECK(s.head_dim >= 0, str(name, ": head_dim ", s.head_dim), "use 0 (dim / heads) or more");
  WEFT_CHECK(s.head_dim > 0 || args.dim % s.heads == 0,
             str(name, ": dim ", args.dim, " is not a multiple of heads ", s.heads), "set head_dim, or change heads");
  if (s.head_dim == 0) s.head_dim = args.dim / s.heads;
  WEFT_CHECK(!args.rotary || s.head_dim % 2 == 0, str(name, ": head_dim ", s.head_dim, " is odd"),
             "rotation needs an even head_dim");
  return s;
}

ProjectedMixer::ProjectedMixer(std::string_view what, const HeadSizes& sizes, const MixerArgs& args, Rng rng)
    : s_(completed(what, sizes, args)),
      args_(args),
      q_(args.dim, s_.heads * s_.head_dim, rng["q"], {.std = args.std}),
      k_(args.dim, s_.kv_heads * s_.head_dim, rng["k"], {.std = args.std}),
      v_(args.dim, s_.kv_heads * s_.head_dim, rng["v"], {.std = args.std}),
      out_(s_.heads * s_.head_dim, args.dim, rng["out"], {.std = args.out_std}) {
  name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"out", out_}});
}

Var per_query_head(const Var& x_BTGK, int64_t heads) {
  const int64_t B = x_BTGK.size(0), T = x_BTGK.size(1), G = x_BTGK.size(2), K = x_BTGK.size(3);
  return heads == G ? x_BTGK : reshape(expand(unsqueeze(x_BTGK, 3), {B, T, G, heads / G, K}), {B, T, heads, K});
}

Var rotated(const Var& x_BTHK, const MixerArgs& args, Tokens& tokens) {
  return args.rotary ? rotary(x_BTHK, tokens.rotary_table(x_BTHK.size(-1), *args.rotary)) : x_BTHK;
}

}  // namespace weft
