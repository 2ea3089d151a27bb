// A small language model and token ids for its tests.
#pragma once

#include <utility>

#include "weft/core/rng.h"
#include "weft/models/language_model.h"

namespace weft::test {

inline LanguageModelOptions tiny_model(PositionKind position = PositionKind::rotary) {
  return {.vocab = 11,
          .dim = 16,
          .layers = 2,
          .context = 12,
          .norm = {},
          .position = position,
          .mixers = {SoftmaxOptions{.heads = 4, .kv_heads = 2, .qk_norm = QkNorm::rms}},
          .ffn = {.hidden = 24}};
}

// Of any mixer, with weights that are large enough to tell tokens apart.
inline LanguageModelOptions tiny_model_of(MixerMaker mixer, int64_t layers = 2) {
  return {.vocab = 11,
          .dim = 16,
          .layers = layers,
          .context = 12,
          .mixers = {std::move(mixer)},
          .ffn = {.hidden = 24},
          .std = 0.3};
}

// [batch, tokens] i32 below 11.
inline Tensor tiny_ids(int64_t batch, int64_t tokens, uint64_t seed = 1) {
  Tensor t = Tensor::empty({batch, tokens}, kI32);
  for (int64_t i = 0; i < batch * tokens; ++i)
    t.mutable_data<int32_t>()[i] = static_cast<int32_t>(Rng(seed).below(11, static_cast<uint64_t>(i)));
  return t;
}

}  // namespace weft::test
