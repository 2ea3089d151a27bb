// Continues several prompts at once, each as if it were alone: one batch, padded where lengths differ, and one cache.
//   std::vector<Generation> made = generate(model, rows, {.vocab = 256});
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "weft/models/language_model.h"

namespace weft::serve {

struct GenerationRow {
  std::vector<int32_t> prompt;  // at least one id
  int64_t max_tokens = 0;       // new ones; 0: the prompt is only scored
  double temperature = 1;       // 0: the most likely token
  double top_p = 1;
  uint64_t seed = 1;                // draws are those of weft::sample() with this seed
  bool scores_prompt = false;       // also log probabilities of the prompt's tokens
  std::optional<int64_t> top = {};  // log probabilities, with those of so many most likely ids
  // Called with each new id, on the thread that generates. Returns false where the text ends with it.
  std::function<bool(int32_t id)> goes_on = {};
  std::function<void()> begins_anew =
      {};  // called where an error ended the row, and it is tried again from its first id
};

struct TokenScore {
  double logprob = 0;                                // natural log of the softmax over all ids of the model
  std::vector<std::pair<int32_t, double>> top = {};  // most likely first, ties by the smaller id
};

struct Generation {
  std::vector<int32_t> ids = {};               // without the end of text
  std::vector<TokenScore> scores = {};         // of ids, if asked for
  std::vector<TokenScore> prompt_scores = {};  // of the prompt's ids but the first, if asked for
  std::optional<TokenScore> end_score = {};    // of the end of text, if that ended it and scores are asked for
  bool ended = false;                          // by the end of text or by goes_on(), not by max_tokens
};

struct GenerationOptions {
  int64_t vocab = 0;                        // ids from here on are never drawn and not among the most likely
  std::optional<int32_t> end_of_text = {};  // a row ends there
  std::function<bool()> should_stop = {};   // looked at between steps; true: train::Stopped is thrown
};

// A row that is alone, or whose prompts are all of one length, is read without padding and documents.
std::vector<Generation> generate(LanguageModel& model, std::span<const GenerationRow> rows,
                                 const GenerationOptions& options);

}  // namespace weft::serve
