// Miras (2504.13173) with a memory that is a matrix: it answers k W to a key k, and each token moves it against the gradient of how far the
// answer is from v. Per head, with A = 0 before the first token of a document, and W_0 the memory where the token's chunk of C tokens began:
//   A_t = a_t A_(t-1) - b_t k_t^T psi(k_t W_0 - v_t),  o_t = q_t W_t
//   moneta   psi(e) = 3 tanh(10 e) (e^2 + 1e-6)               W = A / max(1, |A|_4)^2, of the chunk's beginning
//   yaad     psi(e) = e min(1, d_t / |e|)                     W = A
//   memora   psi(e) = K e                                     W = softmax of A over the channels of the key
// Softmax of A is W^a e^(-b k^T psi), normalised: the logs that a multiplies differ from A by one number per channel of v. Within a chunk the
// psi do not depend on each other, and A is a gated sum. Memora's step has the factor K because the gradient of a channel of a normed key is
// small, and it moves logs of shares.
// A chunk waits for the one before it: over ranks every rank gathers all tokens and walks through all chunks, and nothing of the walk is faster
// than on one rank. Decoding keeps A and the A of the chunk's beginning, whatever the length.
//   q, k = l2(silu(conv(x W))), v = silu(conv(x Wv)), a = sigmoid(x Wa + c)^(1/16), b = sigmoid(x Wb), d = softplus(x Wd) per head
// and the output RMSNorm(o) silu(x Wg) Wo.
// B batch, T tokens, D model width, H heads, K head width, C tokens of one chunk.
#include "src/nn/mixers/chunks.h"
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/autograd/recompute.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

class Miras final : public Mixer {
 public:
  Miras(const MirasOptions& o, const MixerArgs& args, Rng rng)
      : o_(o),
        width_(args.dim / o.heads),
        q_(args.dim, args.dim, rng["q"], {.std = args.std}),
        k_(args.dim, args.dim, rng["k"], {.std = args.std}),
        v_(args.dim, args.dim, rng["v"], {.std = args.std}),
        q_conv_(args.dim, o.kernel, rng["q_conv"]),
        k_conv_(args.dim, o.kernel, rng["k_conv"]),
        v_conv_(args.dim, o.kernel, rng["v_conv"]),
        decay_(args.dim, o.heads, rng["decay"], {.has_bias = true, .std = args.std}),
        rate_(args.dim, o.heads, rng["rate"], {.std = args.std}),
        gate_(args.dim, args.dim, rng["gate"], {.std = args.std}),
        head_norm_(width_, {.eps = 1e-5}),
        out_(args.dim, args.dim, rng["out"], {.std = args.out_std}) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"q_conv", q_conv_}, {"k_conv", k_conv_}, {"v_conv", v_conv_}});
    name_parts({{"decay", decay_}, {"rate", rate_}, {"gate", gate_}, {"head_norm", head_norm_}, {"out", out_}});
    if (o.kind != MirasKind::yaad) return;
    bound_ = std::make_unique<Linear>(args.dim, o.heads, rng["bound"], LinearOptions{.std = args.std});
    name_part({"bound", *bound_});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var o_BTHK = tokens.recur_chunks(numbers(x_BTD, tokens), {}, {}, o_.chunk);
    Var y_BTHK = head_norm_(cast(o_BTHK, x_BTD.dtype())) * split_heads(silu(gate_(x_BTD)), o_.heads);
    return out_(merge_heads(tokens.heads(y_BTHK)));
  }

  double flops_per_token(double) const override {
    const double asks = 6.0 * static_cast<double>(o_.heads * width_ * width_);  // what the memory answers to the key
    return asks + recurrence_flops(o_.heads, width_, width_) * (o_.kind == MirasKind::memora ? 2 : 1);
  }

 private:
  // Beta has b, and for Yaad d behind it: [B, T, H, 1 or 2].
  RecurrenceVars numbers(const Var& x_BTD, Tokens& tokens) {
    constexpr double kRoot = 16;  // of the decay
    const DType dtype = wide(x_BTD);
    auto made = [&](const Linear& projection, const ShortConv& conv) {
      return split_heads(conv(projection(x_BTD), tokens), o_.heads);
    };
    Var rate = unsqueeze(sigmoid(wide_linear(x_BTD, rate_)), -1);
    if (bound_) {
      const Var both[] = {rate, unsqueeze(softplus(wide_linear(x_BTD, *bound_)), -1)};
      rate = concatenate(both, -1);
    }
    return {.q_BTGK = cast(l2_normed(made(q_, q_conv_)), dtype),
            .k_BTGK = cast(l2_normed(made(k_, k_conv_)), dtype),
            .v_BTHV = cast(made(v_, v_conv_), dtype),
            .log_decay = cast(floored(log_sigmoid(wide_linear(x_BTD, decay_)) * (1 / kRoot)), dtype),
            .beta = cast(rate, dtype),
            .step = [this](const RecurrenceVars& some, const Var& first) {
              return o_.kind == MirasKind::memora ? of_memora(some, first) : of_matrix(some, first);
            }};
  }

  // -b psi(k W - v) of a memory [B, H, K, K]: [B, C, H, K].
  Var writes(const RecurrenceVars& some, const Var& memory) const {
    constexpr double kTiny = 1e-12;
    Var e = transpose(matmul(transpose(some.k_BTGK, 1, 2), memory), 1, 2) - some.v_BTHV;
    if (o_.kind == MirasKind::memora) e = e * static_cast<double>(width_);
    if (o_.kind == MirasKind::moneta) e = tanh(e * 10.0) * (square(e) + 1e-6) * 3.0;
    if (o_.kind == MirasKind::yaad) e = e * minimum(slice(some.beta, -1, 1, 2) / (norm(e, -1, true) + kTiny), 1.0);
    return e * -slice(some.beta, -1, 0, 1);
  }

  // {outputs [B, C, H, K], state [B, H, K, K]} of Moneta and Yaad.
  std::array<Var, 2> of_matrix(const RecurrenceVars& some, const Var& first) const {
    Var memory = first, size;
    if (o_.kind == MirasKind::moneta) {
      Var fourths = sum(sum(square(square(first)), -1, true), -2, true);  // [B, H, 1, 1]
      size = sqrt(maximum(fourths, 1.0));
      memory = first / size;
    }
    auto [out, last] = recur({.q_BTGK = some.q_BTGK,
                              .k_BTGK = some.k_BTGK,
                              .v_BTHV = writes(some, memory),
                              .log_decay = some.log_decay,
                              .state = some.state});
    if (size.defined()) out = out / transpose(size, 1, 2);
    return {out, last};
  }

  // The same of Memora, whose state is [B, H, V, K]. Every token's memory is made, once more in backward.
  std::array<Var, 2> of_memora(const RecurrenceVars& some, const Var& first) const {
    const Var in[] = {some.q_BTGK, some.k_BTGK, some.v_BTHV, some.log_decay, some.beta, some.state, first};
    auto run = [this](std::span<const Var> given) {
      const RecurrenceVars c{.q_BTGK = given[0], .k_BTGK = given[1], .v_BTHV = given[2], .beta = given[4]};
      const int64_t B = c.k_BTGK.size(0), C = c.k_BTGK.size(1), H = o_.heads, K = width_;
      Var u = writes(c, transpose(softmax(given[6]), 2, 3));
      Var written = reshape(unsqueeze(u, -1) * unsqueeze(c.k_BTGK, -2), {B, C, H * K * K});
      Var decay = reshape(expand(unsqueeze(given[3], -1), {B, C, H, K * K}), {B, C, H * K * K});
      auto [states, last] = decay_scan({written, decay, reshape(given[5], {B, H * K * K})});
      Var memories = softmax(reshape(states, {B, C, H, K, K}));
      Var out = sum(memories * unsqueeze(c.q_BTGK, -2), -1);
      return std::vector<Var>{out, reshape(last, {B, H, K, K})};
    };
    const std::vector<Var> made = is_recording() ? recompute(run, in) : run(in);
    return {made[0], made[1]};
  }

  MirasOptions o_;
  int64_t width_;
  Linear q_, k_, v_;
  ShortConv q_conv_, k_conv_, v_conv_;
  Linear decay_, rate_, gate_;
  Norm head_norm_;
  Linear out_;
  std::unique_ptr<Linear> bound_;
};

}  // namespace

std::unique_ptr<Mixer> MirasOptions::operator()(const MixerArgs& args, Rng rng) const {
  check_heads("miras", heads, args.dim);
  WEFT_CHECK(chunk >= 1 && kernel >= 1, str("miras: chunk ", chunk, ", kernel ", kernel), "use 1 or more of each");
  check_chunk("miras: chunk", chunk);
  return std::make_unique<Miras>(*this, args, rng);
}

}  // namespace weft
