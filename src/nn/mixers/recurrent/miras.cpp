// Miras (2504.13173) with a memory that is a matrix: it answers k W to a key k, and each token moves it against the gradient of how far the
// answer is from v. Per head, with A = 0 before the first token of a document, and W_0 the memory where the token's chunk of C tokens began:
//   A_t = a_t A_(t-1) - b_t k_t^T psi(k_t W_0 - v_t),  o_t = q_t W_t
//   moneta   psi(e) = 3 tanh(10 e) (e^2 + 1e-6)               W = A / max(1, |A|_4)^2, of the chunk's beginning
//   yaad     psi(e) = e min(1, d_t / |e|)                     W = A
//   memora   psi(e) = K e                                     W = softmax of A over the channels of the key
// Softmax of A is W^a e^(-b k^T psi), normalised: the logs that a multiplies differ from A by one number per channel of v. Within a chunk the
// psi do not depend on each other, and A is a gated sum. Memora's step has the factor K because the gradient of a channel of a normed key is
// small, and it moves logs of shares.
//   q, k = l2(silu(conv(x W))), v = silu(conv(x Wv)), a = sigmoid(x Wa + c)^(1/16), b = sigmoid(x Wb), d = softplus(x Wd) per head
// and the output RMSNorm(o) silu(x Wg) Wo.
// B batch, T tokens, D model width, H heads, K head width, N chunks of C tokens, F numbers per token that a chunk needs.
#include "src/nn/mixers/chunks.h"
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/autograd/recompute.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

// Which gathered token stands at each place of each chunk, [N B C], -1 for none.
struct ChunkTable {
  int64_t chunks = 0, length = 0;  // N, and C or less: of the longest chunk that occurs
  std::vector<int32_t> tokens;
  std::vector<uint8_t> begins;  // [N B]: whether a document begins there
  std::vector<int32_t> place;   // [B T]: of the tokens here, -1 for padding
};

ChunkTable chunk_table(const ChunkPlaces& places) {
  const int64_t B = places.batch, S = places.num_tokens;
  struct Place {
    int64_t chunk = -1, slot = 0;
  };
  std::vector<Place> of_tokens(static_cast<size_t>(B * S));
  std::vector<std::pair<int64_t, int64_t>> firsts;  // chunk, row
  int64_t most = 0, C = 0;
  for (int64_t b = 0; b < B; ++b) {
    int64_t chunk = -1, slot = 0, last = -1;
    for (int64_t s = 0; s < S; ++s) {
      if (places.document(b, s) < 0) continue;
      const bool begins = last < 0 || places.document(b, s) != places.document(b, last);
      if (begins || places.number(b, s) != places.number(b, last)) ++chunk, slot = 0;
      if (begins) firsts.emplace_back(chunk, b);
      of_tokens[static_cast<size_t>(b * S + s)] = {chunk, slot++};
      C = std::max(C, slot);
      last = s;
    }
    most = std::max(most, chunk + 1);
  }
  ChunkTable table{.chunks = most,
                   .length = C,
                   .tokens = std::vector<int32_t>(static_cast<size_t>(most * B * C), -1),
                   .begins = std::vector<uint8_t>(static_cast<size_t>(most * B)),
                   .place = {}};
  auto at = [&](int64_t b, const Place& p) { return (p.chunk * B + b) * C + p.slot; };
  for (int64_t i = 0; i < B * S; ++i)
    if (const Place& p = of_tokens[static_cast<size_t>(i)]; p.chunk >= 0)
      table.tokens[static_cast<size_t>(at(i / S, p))] = static_cast<int32_t>(i);
  for (auto [chunk, b] : firsts) table.begins[static_cast<size_t>(chunk * B + b)] = 1;
  const auto T = static_cast<int64_t>(places.here.size()) / B;
  for (int64_t i = 0; i < B * T; ++i) {
    const Place& p = of_tokens[static_cast<size_t>(i / T * S + places.here[static_cast<size_t>(i)])];
    table.place.push_back(p.chunk < 0 ? -1 : static_cast<int32_t>(at(i / T, p)));
  }
  return table;
}

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
    const int64_t B = tokens.batch(), T = tokens.num_tokens(), H = o_.heads;
    Var o_BTHK = reshape(answers(numbers(x_BTD, tokens), tokens), {B, T, H, width_});
    Var y_BTHK = head_norm_(cast(o_BTHK, x_BTD.dtype())) * split_heads(silu(gate_(x_BTD)), H);
    return out_(merge_heads(tokens.heads(y_BTHK)));
  }

  double flops_per_token(double) const override {
    const double asks = 6.0 * static_cast<double>(o_.heads * width_ * width_);  // what the memory answers to the key
    return asks + recurrence_flops(o_.heads, width_, width_) * (o_.kind == MirasKind::memora ? 2 : 1);
  }

 private:
  // q, k, v, log a, b and d of every token, in a row: [B, T, F].
  Var numbers(const Var& x_BTD, Tokens& tokens) {
    constexpr double kRoot = 16;  // of the decay
    const DType dtype = wide(x_BTD);
    auto made = [&](const Linear& projection, const ShortConv& conv) {
      return split_heads(conv(projection(x_BTD), tokens), o_.heads);
    };
    std::vector<Var> all = {merge_heads(l2_normed(made(q_, q_conv_))), merge_heads(l2_normed(made(k_, k_conv_))),
                            merge_heads(made(v_, v_conv_)),
                            floored(log_sigmoid(wide_linear(x_BTD, decay_)) * (1 / kRoot)),
                            sigmoid(wide_linear(x_BTD, rate_))};
    if (bound_) all.push_back(softplus(wide_linear(x_BTD, *bound_)));
    for (Var& x : all) x = cast(x, dtype);
    return concatenate(all, -1);
  }

  // The outputs of the heads of the tokens here: [B T, H K].
  Var answers(const Var& numbers_BTF, Tokens& tokens) {
    const Var mine[] = {numbers_BTF};
    const Var all_BSF = tokens.gather(mine)[0];
    const ChunkTable table = chunk_table(chunk_places(tokens, o_.chunk));
    const int64_t B = tokens.batch(), N = table.chunks, C = table.length, F = all_BSF.size(-1);
    const Var chunks = reshape(take_or_zero(all_BSF, table.tokens), {N, B, C, F});
    const Tensor begins_NB = truths_on(all_BSF.device(), table.begins, {N, B, 1, 1, 1});
    Var state = Tensor::zeros({B, o_.heads, width_, width_}, all_BSF.dtype(), all_BSF.device());
    std::vector<Var> outs;
    for (int64_t n = 0; n < N; ++n) {
      const Var in[] = {select(chunks, 0, n), where(begins_NB.select(0, n).expand(state.shape()), 0.0, state)};
      std::vector<Var> next = o_.kind == MirasKind::memora ? of_memora(in) : of_matrix(in[0], in[1]);
      outs.push_back(next[0]), state = next[1];
    }
    if (outs.empty())
      return Tensor::zeros({B * tokens.num_tokens(), o_.heads * width_}, all_BSF.dtype(), all_BSF.device());
    return take_or_zero(stack(outs, 0), table.place);
  }

  // The numbers of a chunk [B, C, F] apart.
  struct Chunk {
    Var q, k, v;             // [B, C, H, K]
    Var decay, rate, bound;  // [B, C, H]
  };
  Chunk parts_of(const Var& chunk_BCF) const {
    const int64_t H = o_.heads, D = H * width_;
    auto heads = [&](int64_t begin) { return split_heads(slice(chunk_BCF, -1, begin, begin + D), H); };
    auto gate = [&](int64_t which) { return slice(chunk_BCF, -1, 3 * D + which * H, 3 * D + (which + 1) * H); };
    return {heads(0), heads(D), heads(2 * D), gate(0), gate(1), bound_ ? gate(2) : Var()};
  }
  // -b psi(k W - v) of a memory [B, H, K, K]: [B, C, H, K].
  Var writes(const Chunk& c, const Var& memory) const {
    constexpr double kTiny = 1e-12;
    Var e = transpose(matmul(transpose(c.k, 1, 2), memory), 1, 2) - c.v;
    if (o_.kind == MirasKind::memora) e = e * static_cast<double>(width_);
    if (o_.kind == MirasKind::moneta) e = tanh(e * 10.0) * (square(e) + 1e-6) * 3.0;
    if (o_.kind == MirasKind::yaad) e = e * unsqueeze(minimum(c.bound / (norm(e, -1) + kTiny), 1.0), -1);
    return e * -unsqueeze(c.rate, -1);
  }

  // {outputs [B, C, H K], state [B, H, K, V]} of Moneta and Yaad.
  std::vector<Var> of_matrix(const Var& chunk_BCF, const Var& state) const {
    const Chunk c = parts_of(chunk_BCF);
    Var memory = state, size;
    if (o_.kind == MirasKind::moneta) {
      Var fourths = sum(sum(square(square(state)), -1, true), -2, true);  // [B, H, 1, 1]
      size = sqrt(maximum(fourths, 1.0));
      memory = state / size;
    }
    auto [out, last] =
        recur({.q_BTGK = c.q, .k_BTGK = c.k, .v_BTHV = writes(c, memory), .log_decay = c.decay, .state = state});
    if (size.defined()) out = out / transpose(size, 1, 2);
    return {merge_heads(out), last};
  }

  // The same of Memora, whose state is [B, H, V, K]. Every token's memory is made, once more in backward.
  std::vector<Var> of_memora(std::span<const Var> in) const {
    auto run = [this](std::span<const Var> given) {
      const Chunk c = parts_of(given[0]);
      const int64_t B = c.k.size(0), C = c.k.size(1), H = o_.heads, K = width_;
      Var u = writes(c, transpose(softmax(given[1]), 2, 3));
      Var written = reshape(unsqueeze(u, -1) * unsqueeze(c.k, -2), {B, C, H * K * K});
      Var decay = reshape(expand(unsqueeze(c.decay, -1), {B, C, H, K * K}), {B, C, H * K * K});
      auto [states, last] = decay_scan({written, decay, reshape(given[1], {B, H * K * K})});
      Var memories = softmax(reshape(states, {B, C, H, K, K}));
      Var out = sum(memories * unsqueeze(c.q, -2), -1);
      return std::vector<Var>{merge_heads(out), reshape(last, {B, H, K, K})};
    };
    return is_recording() ? recompute(run, in) : run(in);
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
