// TLinFormer (2508.20407): layers of which only the first looks at all of the history. Tokens stand in windows of W. Per window, R rows of
// compressed history go beside its tokens through the layers. With h the tokens, r the rows and n the norm before a layer's projections:
//   first    r = the last R tokens before the window;  r += softmax(q_r k_e^T) v_e W_O over every token e before the window
//   others   r += softmax(q_r k_r^T) v_r W_O, but for the last layer, which only reads them
//   h += (softmax(q k_j^T) v_j over the window's tokens j up to this one + softmax(q k_e^T) v_e) W_O, two softmaxes, where e is every token
//   before the window in the first layer, and every row in the others
// Each layer then adds its SwiGLU to h and to r; tokens and rows share all weights. The output is what the layers added to h. Where the paper
// gives the history back from the rows, so that the next block has it, the tokens here keep what their own windows gave them.
// B batch, T tokens here, D model width, H heads, K head width, N windows, Q tokens here per window, W window, R rows, S gathered tokens.
#include <cmath>

#include "src/nn/mixers/pair_scores/pair_scores.h"
#include "src/nn/mixers/tlinformer/windows.h"
#include "weft/autograd/recompute.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

class Layer final : public Module {
 public:
  Layer(const TlinformerOptions& o, int64_t width, const MixerArgs& args, Rng rng)
      : norm_(args.dim, {.eps = args.norm_eps}),
        q_(args.dim, o.heads * width, rng["q"], {.std = args.std}),
        k_(args.dim, o.heads * width, rng["k"], {.std = args.std}),
        v_(args.dim, o.heads * width, rng["v"], {.std = args.std}),
        out_(o.heads * width, args.dim, rng["out"], {.std = args.out_std}),
        ffn_norm_(args.dim, {.eps = args.norm_eps}),
        ffn_(make_ffn({.dim = args.dim, .hidden = o.hidden, .std = args.std, .out_std = args.out_std}, rng["ffn"])) {
    name_parts({{"norm", norm_}, {"q", q_}, {"k", k_}, {"v", v_}, {"out", out_}, {"ffn_norm", ffn_norm_}});
    name_part({"ffn", *ffn_});
  }
  Norm norm_;
  Linear q_, k_, v_, out_;
  Norm ffn_norm_;
  std::unique_ptr<Ffn> ffn_;
};

struct Heads {
  Var q, k, v;  // [..., H, K]
};

class Tlinformer final : public Mixer {
 public:
  Tlinformer(const TlinformerOptions& o, const MixerArgs& args, Rng rng)
      : o_(o), args_(args), width_(completed("tlinformer", {o.heads, 0, o.head_dim}, args).head_dim) {
    WEFT_CHECK(o.depth >= 2 && o.window >= 1 && o.rows >= 1,
               str("tlinformer: depth ", o.depth, ", window ", o.window, ", rows ", o.rows),
               "use a depth of 2 or more, and 1 or more tokens and rows");
    check_chunk("tlinformer: window", o.window);
    for (int64_t i = 0; i < o.depth; ++i) {
      layers_.push_back(std::make_unique<Layer>(o, width_, args, rng["layers"][static_cast<uint64_t>(i)]));
      name_part({str("layers.", i), *layers_.back()});
    }
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const ChunkPlaces all = chunk_places(tokens, o_.window), near = chunk_places(tokens, o_.window, o_.window);
    const TlinWindows windows(all, near, o_.rows, x_BTD.device());
    std::optional<ops::RotaryTable> rotation;  // of the rows
    if (args_.rotary && windows.count > 0)
      rotation = make_rotary_table(
          numbers_on(x_BTD.device(), windows.row_positions, {tokens.batch(), windows.count * o_.rows}), width_,
          *args_.rotary);
    Var r_BMD,
        added_BTD;  // M = N R; to x, apart from it: in bf16 the difference of two large numbers would have no digits left
    auto with_added = [&] {
      return added_BTD.defined() ? cast(cast(x_BTD, added_BTD.dtype()) + added_BTD, x_BTD.dtype()) : x_BTD;
    };
    auto add = [&](const Var& y_BTD) {
      Var wide = cast(y_BTD, pair_dtype(x_BTD));
      added_BTD = added_BTD.defined() ? added_BTD + wide : wide;
    };
    for (size_t i = 0; i < layers_.size(); ++i) {
      Layer& layer = *layers_[i];
      Scope inside(layer.name());
      const Var h_BTD = with_added();
      const Heads mine = of_tokens(layer, h_BTD, tokens);
      const bool is_first = i == 0, is_last = i + 1 == layers_.size();
      Var read_BTHK;
      if (is_first) {
        const Var seen[] = {mine.k, mine.v, h_BTD};
        const std::vector<Var> gathered = tokens.gather(seen);
        if (windows.count > 0) {
          r_BMD =
              reshape(take_or_zero(gathered[2], windows.rows), {tokens.batch(), windows.count * o_.rows, args_.dim});
          auto [history, of_rows] = over_history(mine, of_rows_of(layer, r_BMD, rotation).q, gathered, windows);
          read_BTHK = to_tokens(over_own(mine, gathered, windows.own, windows) + history, windows, tokens);
          r_BMD = with_ffn(layer, r_BMD + layer.out_(of_rows), tokens);
        }
      } else {
        const Var seen[] = {mine.k, mine.v};
        const std::vector<Var> gathered = tokens.gather(seen, o_.window);
        if (windows.count > 0) {
          const Heads rows = of_rows_of(layer, r_BMD, rotation);
          Var of_rows = over_rows(windowed(mine.q, windows), rows, windows);
          read_BTHK = to_tokens(over_own(mine, gathered, windows.own_near, windows) + of_rows, windows, tokens);
          if (!is_last) r_BMD = with_ffn(layer, r_BMD + layer.out_(among_rows(rows, windows)), tokens);
        }
      }
      if (!read_BTHK.defined()) read_BTHK = mine.q * 0.0;  // no token here but padding
      add(layer.out_(merge_heads(tokens.heads(read_BTHK))));
      add(ffn_of(layer, with_added(), tokens));
    }
    return cast(added_BTD, x_BTD.dtype());
  }

  // Tokens and rows go through every layer; the first one also over the history, for the tokens and for the rows.
  double flops_per_token(double keys) const override {
    const auto W = static_cast<double>(o_.window), R = static_cast<double>(o_.rows), D = static_cast<double>(o_.depth);
    const double per_row = 6.0 * static_cast<double>(num_params()) * R / W;
    const double pairs = keys * (1 + R / W) + D * W / 2 + (D - 1) * R * (1 + R / W);
    return 12.0 * static_cast<double>(o_.heads * width_) * pairs + per_row;
  }

 private:
  Var ffn_of(Layer& layer, const Var& x, Tokens& tokens) const {
    return layer.ffn_->forward(layer.ffn_norm_(x), tokens);
  }
  Var with_ffn(Layer& layer, const Var& x, Tokens& tokens) const { return x + ffn_of(layer, x, tokens); }

  Heads of_tokens(Layer& layer, const Var& h_BTD, Tokens& tokens) const {
    Var n = layer.norm_(h_BTD);
    auto heads = [&](const Linear& projection) { return split_heads(projection(n), o_.heads); };
    return {rotated(heads(layer.q_), args_, tokens), rotated(heads(layer.k_), args_, tokens), heads(layer.v_)};
  }
  // Of the rows [B, M, D]: [B, M, H, K] each.
  Heads of_rows_of(Layer& layer, const Var& r_BMD, const std::optional<ops::RotaryTable>& rotation) const {
    Var n = layer.norm_(r_BMD);
    auto heads = [&](const Linear& projection) { return split_heads(projection(n), o_.heads); };
    auto turned = [&](const Var& x) { return rotation ? rotary(x, *rotation) : x; };
    return {turned(heads(layer.q_)), turned(heads(layer.k_)), heads(layer.v_)};
  }

  // Queries of the tokens here by window: [B, T, H, K] -> [B N, Q, H, K].
  Var windowed(const Var& q_BTHK, const TlinWindows& windows) const {
    return by_window(merge_heads(q_BTHK), windows.queries_of, windows.queries);
  }
  Var by_window(const Var& x, const std::vector<int32_t>& index, int64_t each) const {
    const auto count = static_cast<int64_t>(index.size()) / std::max<int64_t>(each, 1);
    return reshape(take_or_zero(x, index), {count, each, o_.heads, width_});
  }
  // [B N, Q, H, K] -> [B, T, H, K].
  Var to_tokens(const Var& y, const TlinWindows& windows, Tokens& tokens) const {
    return reshape(take_or_zero(merge_heads(y), windows.place),
                   {tokens.batch(), tokens.num_tokens(), o_.heads, width_});
  }

  // softmax(q k^T / sqrt(K)) v of whom the mask allows, [A, I, H, K] over [A, J, H, K].
  Var softmax_over(const Var& q, const Var& k, const Var& v, const Tensor& mask) const {
    Var scores = pair_products(q, k) * (1 / std::sqrt(static_cast<double>(width_)));
    return mix_values(masked_softmax(scores, mask), v);
  }
  Var over_own(const Heads& mine, std::span<const Var> gathered, const std::vector<int32_t>& own,
               const TlinWindows& windows) const {
    return softmax_over(windowed(mine.q, windows), by_window(merge_heads(gathered[0]), own, windows.length),
                        by_window(merge_heads(gathered[1]), own, windows.length), windows.sees_own);
  }
  Var over_rows(const Var& q_AQHK, const Heads& rows, const TlinWindows& windows) const {
    return softmax_over(q_AQHK, rows_of(rows.k, windows), rows_of(rows.v, windows), windows.has_row);
  }
  Var among_rows(const Heads& rows, const TlinWindows& windows) const {
    Var y = over_rows(rows_of(rows.q, windows), rows, windows);
    return reshape(merge_heads(y), {rows.q.size(0), rows.q.size(1), o_.heads * width_});
  }
  // [B, N R, H, K] -> [B N, R, H, K].
  Var rows_of(const Var& x, const TlinWindows& windows) const {
    return reshape(x, {x.size(0) * windows.count, o_.rows, o_.heads, width_});
  }

  // What tokens [B N, Q, H, K] and rows [B, M, H K] read of the whole history, window by window, so that no more than the scores of one
  // window and its rows are there at a time.
  std::pair<Var, Var> over_history(const Heads& mine, const Var& rows_BMHK, std::span<const Var> gathered,
                                   const TlinWindows& windows) const {
    const int64_t B = rows_BMHK.size(0), N = windows.count, Q = windows.queries, H = o_.heads, K = width_;
    Var q_BNQHK = reshape(windowed(mine.q, windows), {B, N, Q, H, K});
    Var r_BNRHK = reshape(rows_BMHK, {B, N, o_.rows, H, K});
    std::vector<Var> of_tokens, of_rows;
    for (int64_t n = 0; n < N; ++n) {
      const int64_t end = std::max<int64_t>(windows.history_end[static_cast<size_t>(n)], 1);
      const Var both[] = {select(q_BNQHK, 1, n), select(r_BNRHK, 1, n)};
      const Var in[] = {concatenate(both, 1), slice(gathered[0], 1, 0, end), slice(gathered[1], 1, 0, end)};
      auto run = [this, mask = windows.is_history.select(1, n).slice(-1, 0, end)](std::span<const Var> given) {
        return std::vector<Var>{softmax_over(given[0], given[1], given[2], mask)};
      };
      Var y = is_recording() ? recompute(run, in)[0] : run(in)[0];
      of_tokens.push_back(slice(y, 1, 0, Q));
      of_rows.push_back(slice(y, 1, Q, Q + o_.rows));
    }
    Var tokens = reshape(stack(of_tokens, 1), {B * N, Q, H, K});
    return {tokens, reshape(stack(of_rows, 1), {B, N * o_.rows, H * K})};
  }

  TlinformerOptions o_;
  MixerArgs args_;
  int64_t width_;
  std::vector<std::unique_ptr<Layer>> layers_;
};

}  // namespace

std::unique_ptr<Mixer> TlinformerOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Tlinformer>(*this, args, rng);
}

}  // namespace weft
