// Controlled variants of "Deconstructing Attention" (2510.11602), each with the parameters of plain attention:
//   none              (silu(x W_g) * (x W_u)) W_d: no token sees another
//   key_only          s_j = sum_c silu(x_j W_Q)_c (x_j W_K)_c / sqrt(K), a causal softmax over j of scores that are the same for all i
//   random_embedding, fixed_text  q and k of token t from a fixed sequence's state at t's position within its document
//   static_embedding  q = rot(e W_Q), k = rot(e W_K) of the input embedding e, v = x W_V
// B batch, T tokens, D model width, H heads, K head width.
#include <cmath>

#include "weft/core/error.h"
#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

class NoMixing final : public Mixer {
 public:
  NoMixing(const MixerArgs& args, Rng rng)  // 3 D F = 4 D^2
      : ffn_(make_ffn({.dim = args.dim, .hidden = 4 * args.dim / 3, .std = args.std, .out_std = args.out_std}, rng)) {
    name_parts({{"ffn", *ffn_}});
  }
  Var forward(const Var& x_BTD, Tokens& tokens) override { return ffn_->forward(x_BTD, tokens); }
  double flops_per_token(double) const override { return 0; }

 private:
  std::unique_ptr<Ffn> ffn_;
};

class OtherScores final : public ProjectedMixer {
 public:
  OtherScores(const DeconstructedOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("deconstructed", {o.heads, o.heads, 0}, args, rng), kind_(o.kind) {}

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var v = values(x_BTD);
    if (kind_ == DeconstructedKind::key_only) {
      double scale = 1 / std::sqrt(static_cast<double>(s_.head_dim));
      Var product = silu(queries(x_BTD)) * keys(x_BTD);
      Var score_BTH1 = sum(product, -1, true), one = Tensor::full(score_BTH1.shape(), 1, v.dtype(), v.device());
      return written(tokens.attend(one, score_BTH1, v, {.scale = scale})[0], tokens);
    }
    if (kind_ == DeconstructedKind::static_embedding) {
      const Var& e_BTD = tokens.shared("embedding");
      return written(tokens.attend(rotated(queries(e_BTD), args_, tokens), rotated(keys(e_BTD), args_, tokens), v)[0],
                     tokens);
    }
    const std::string name = fixed_sequence_name(args_.layer);
    const bool is_sequence = tokens.has_shared("fixed_sequence");
    if (is_sequence) tokens.share(name, x_BTD);
    WEFT_CHECK(tokens.has_shared(name), "deconstructed: no fixed sequence to read",
               "use it in a LanguageModel, which makes one, or share fixed_sequence_name(layer) before");
    const Var source_BTD = is_sequence ? x_BTD : at_positions(tokens.shared(name), tokens);
    Var q = rotated(queries(source_BTD), args_, tokens), k = rotated(keys(source_BTD), args_, tokens);
    return written(tokens.attend(q, k, v)[0], tokens);
  }

  double flops_per_token(double keys) const override {
    double width = kind_ == DeconstructedKind::key_only ? static_cast<double>(s_.heads + args_.dim)
                                                        : 2 * static_cast<double>(args_.dim);
    return 6.0 * width * keys;
  }

  FixedSequence fixed_sequence() const override {
    return kind_ == DeconstructedKind::random_embedding ? FixedSequence::random
           : kind_ == DeconstructedKind::fixed_text     ? FixedSequence::text
                                                        : FixedSequence::none;
  }

 private:
  Var at_positions(const Var& sequence_1SD, const Tokens& tokens) const {
    const int64_t B = tokens.batch(), T = tokens.num_tokens(), S = sequence_1SD.size(1), D = sequence_1SD.size(2);
    for (int32_t position : tokens.cpu_document_positions())
      WEFT_CHECK(position < S, str("fixed sequence: a token at position ", position, ", it has ", S),
                 "use documents up to the model's context");
    Var rows = take_rows(reshape(sequence_1SD, {S, D}), tokens.document_positions().reshape({B * T}));
    return reshape(rows, {B, T, D});
  }

  DeconstructedKind kind_;
};

}  // namespace

std::unique_ptr<Mixer> DeconstructedOptions::operator()(const MixerArgs& args, Rng rng) const {
  if (kind == DeconstructedKind::none) return std::make_unique<NoMixing>(args, rng);
  return std::make_unique<OtherScores>(*this, args, rng);
}

}  // namespace weft
