// Tiny models, rows and trainings.
#pragma once

#include <vector>

#include "weft/training/training.h"

namespace weft::test {

constexpr int64_t kVocab = 13, kContext = 8;

inline LanguageModelOptions tiny_options() {
  return {.vocab = kVocab,
          .dim = 16,
          .layers = 2,
          .context = kContext,
          .mixers = {SoftmaxOptions{.heads = 2}},
          .ffn = {.hidden = 24}};
}

// Rows with a pattern to learn; a pure function of the sample's number.
inline data::Batch rows_from(int64_t first, int64_t rows) {
  data::Batch batch{.tokens = Tensor::empty({rows, kContext}, kI32, Device::cpu()),
                    .targets = Tensor::empty({rows, kContext}, kI32, Device::cpu())};
  for (int64_t i = 0; i < rows * kContext; ++i) {
    const int64_t row = first + i / kContext, t = i % kContext;
    auto id = [&](int64_t place) { return static_cast<int32_t>((row * 5 + place * 3) % kVocab); };
    batch.tokens.mutable_data<int32_t>()[i] = id(t);
    batch.targets.mutable_data<int32_t>()[i] = (row + t) % 7 == 0 ? -1 : id(t + 1);
  }
  return batch;
}

inline std::vector<std::vector<float>> weights_of(const Module& model) {
  std::vector<std::vector<float>> all;
  for (const NamedParam& p : model.params()) all.push_back(p.param->value().to_vector<float>());
  return all;
}

// Whether every matrix that forward reads is its master, rounded.
inline bool working_copies_agree(const Module& model) {
  for (const NamedParam& p : model.params()) {
    const Var& read = *p.param;
    auto master = p.param->value().to_vector<float>();
    for (size_t i = 0; i < master.size() && read.dtype() == kBF16; ++i)
      if (read.value().data<BFloat16>()[i].bits != BFloat16(master[i]).bits) return false;
  }
  return true;
}

}  // namespace weft::test
