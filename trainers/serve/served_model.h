// What is known of the model that answers: its name, its ids and their texts.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/data/tokenizer.h"

namespace weft::serve {

// Of ids that stand for no text. Other programs name them so, and /tokenize gives the id of a text that is exactly one of them.
inline constexpr std::string_view kEndOfText = "<|endoftext|>", kFirstToken = "<|first|>";

struct ServedModel {
  std::string name = {}, address = {};  // a request may name either: the run's folder, or RUN as it was given
  int64_t step = 0, context = 0;        // most tokens that the model reads of a prompt and its completion
  bool can_continue = true;             // by more than the token that one forward gives
  std::shared_ptr<const data::Tokenizer> tokenizer = {};
  std::optional<int32_t> end_of_text = {}, first_token = {};  // first_token stands before every prompt

  std::vector<int32_t> encode(const std::string& text) const;     // RequestError where the tokenizer refuses it
  bool has_id(int64_t id) const;                                  // may stand in a prompt
  bool adds_first_token(std::span<const int32_t> prompt) const {  // before this prompt; not where it begins with it
    return first_token && (prompt.empty() || prompt.front() != *first_token);
  }
  // The bytes that the id adds to a text; ids without text, such as the end of text, add none.
  std::string piece(int32_t id, bool is_first) const;
  std::string text(std::span<const int32_t> ids) const;
  // Names one id: its text; <|endoftext|>; bytes:\xe2\x80 where its bytes are no whole characters; token_id:7 for other ids without text.
  std::string token_name(int32_t id) const;
};

bool is_utf8(std::string_view text);
int64_t count_characters(std::string_view bytes);  // bytes that begin no character count with the one before

}  // namespace weft::serve
