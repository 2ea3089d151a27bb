// Dual attention (2405.16727). Sensory heads are plain attention. A relational head with weights P returns
//   sum_j P_ij (r_ij W_r + s_j W_s),  r_ij[l] = (x_i W_ql) . (x_j W_kl),  s = softmax((x W) F^T) S
// where r_ij is never made: sum_j P_ij r_ij[l] = q_il . sum_j P_ij k_jl, so the core reads the values [k_j1 .. k_jR, s_j W_s].
// B batch, T tokens, D model width, H relational heads, K head width, R relations.
#include "weft/core/error.h"
#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

DualOptions checked(DualOptions o, const MixerArgs& args) {
  WEFT_CHECK(o.heads >= 1 && o.relational_heads >= 1 && args.dim % (o.heads + o.relational_heads) == 0,
             str("dual: ", o.heads, " sensory and ", o.relational_heads, " relational heads for dim ", args.dim),
             "use at least one of each, and a number that divides dim");
  if (o.relations == 0) o.relations = o.relational_heads;
  WEFT_CHECK(o.relations >= 1 && o.symbols >= 1, str("dual: relations ", o.relations, ", symbols ", o.symbols),
             "both must be 1 or more");
  return o;
}

class Dual final : public Mixer {
 public:
  Dual(const DualOptions& options, const MixerArgs& args, Rng rng)
      : o_(checked(options, args)),
        args_(args),
        width_(args.dim / (o_.heads + o_.relational_heads)),
        q_(args.dim, args.dim, rng["q"], {.std = args.std}),
        k_(args.dim, args.dim, rng["k"], {.std = args.std}),
        v_(args.dim, o_.heads * width_, rng["v"], {.std = args.std}),
        relation_q_(args.dim, o_.relations * width_, rng["relation_q"], {.std = args.std}),
        relation_k_(args.dim, o_.relations * width_, rng["relation_k"], {.std = args.std}),
        symbol_q_(args.dim, args.dim, rng["symbol_q"], {.std = args.std}),
        symbol_keys_(normal_init({o_.symbols, args.dim}, rng["symbol_keys"], args.std)),
        symbols_(normal_init({o_.symbols, args.dim}, rng["symbols"], args.std)),
        symbol_out_(args.dim, o_.relational_heads * width_, rng["symbol_out"], {.std = args.std}),
        relation_out_(normal_init({o_.relational_heads, o_.relations, width_}, rng["relation_out"], args.std)),
        out_(o_.heads * width_, o_.heads * width_, rng["out"], {.std = args.out_std}),
        relational_out_(o_.relational_heads * width_, o_.relational_heads * width_, rng["relational_out"],
                        {.std = args.out_std}) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"relation_q", relation_q_}, {"relation_k", relation_k_}});
    name_parts({{"symbol_q", symbol_q_},
                {"symbol_keys", symbol_keys_},
                {"symbols", symbols_},
                {"symbol_out", symbol_out_},
                {"relation_out", relation_out_},
                {"out", out_},
                {"relational_out", relational_out_}});
    WEFT_CHECK(!args.rotary || width_ % 2 == 0, str("dual: heads are ", width_, " wide"),
               "rotation needs an even width");
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const int64_t all = o_.heads + o_.relational_heads;
    Var q = rotated(split_heads(q_(x_BTD), all), args_, tokens),
        k = rotated(split_heads(k_(x_BTD), all), args_, tokens);
    auto heads = [&](const Var& x, int64_t begin, int64_t end) { return slice(x, 2, begin, end); };
    Var sensory = tokens.attend(heads(q, 0, o_.heads), heads(k, 0, o_.heads), split_heads(v_(x_BTD), o_.heads))[0];
    Var relational = tokens.attend(heads(q, o_.heads, all), heads(k, o_.heads, all), relational_values(x_BTD))[0];
    const Var both[] = {sensory, read(relational, x_BTD)};
    Var y = tokens.heads(concatenate(both, 2));
    const Var parts[] = {out_(merge_heads(heads(y, 0, o_.heads))),
                         relational_out_(merge_heads(heads(y, o_.heads, all)))};
    return concatenate(parts, -1);
  }

  double flops_per_token(double keys) const override {
    int64_t values = o_.heads * width_ + o_.relational_heads * (o_.relations + 1) * width_;
    return 6.0 * static_cast<double>(args_.dim + values) * keys;
  }

 private:
  // [B, T, H, R K + K]
  Var relational_values(const Var& x_BTD) const {
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1), H = o_.relational_heads, RK = o_.relations * width_;
    Var choice_BTN = softmax(linear(symbol_q_(x_BTD), symbol_keys_));
    Var symbols_BTD = matmul(choice_BTN, symbols_);
    const Var parts[] = {expand(unsqueeze(relation_k_(x_BTD), 2), {B, T, H, RK}),
                         split_heads(symbol_out_(symbols_BTD), H)};
    return concatenate(parts, -1);
  }

  // What the core returns for the values above, with the query's side of the relations.
  Var read(const Var& y_BTHV, const Var& x_BTD) const {
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1), H = o_.relational_heads, R = o_.relations;
    Var keys = reshape(slice(y_BTHV, -1, 0, R * width_), {B, T, H, R, width_});
    Var queries = reshape(relation_q_(x_BTD), {B, T, 1, R, width_});
    Var relations_BTH1R = unsqueeze(sum(keys * queries, -1), 3);
    Var from_relations = reshape(matmul(relations_BTH1R, relation_out_), {B, T, H, width_});
    return from_relations + slice(y_BTHV, -1, R * width_, R * width_ + width_);
  }

  DualOptions o_;
  MixerArgs args_;
  int64_t width_;
  Linear q_, k_, v_, relation_q_, relation_k_, symbol_q_;
  Param symbol_keys_, symbols_;
  Linear symbol_out_;
  Param relation_out_;
  Linear out_, relational_out_;
};

}  // namespace

std::unique_ptr<Mixer> DualOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Dual>(*this, args, rng);
}

}  // namespace weft
