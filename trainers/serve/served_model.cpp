#include "trainers/serve/served_model.h"

#include <algorithm>

#include "src/data/utf8.h"
#include "trainers/serve/request_error.h"
#include "weft/core/error.h"

namespace weft::serve {

std::vector<int32_t> ServedModel::encode(const std::string& text) const {
  try {
    return tokenizer->encode(text);
  } catch (const Error& error) { throw RequestError(400, error.problem() + "; " + error.fix(), "prompt"); }
}

bool ServedModel::has_id(int64_t id) const {
  return (id >= 0 && id < tokenizer->vocab_size()) || (first_token && id == *first_token) ||
         (end_of_text && id == *end_of_text);
}

std::string ServedModel::piece(int32_t id, bool is_first) const {
  if (id < 0 || id >= tokenizer->vocab_size()) return {};
  if (end_of_text && id == *end_of_text && tokenizer->name() != "ids") return {};
  const std::string text = tokenizer->decode(std::span(&id, 1));
  return tokenizer->name() == "ids" && !is_first ? " " + text : text;  // numbers stand apart
}

std::string ServedModel::text(std::span<const int32_t> ids) const {
  std::string text;
  for (int32_t id : ids) text += piece(id, text.empty());
  return text;
}

std::string ServedModel::token_name(int32_t id) const {
  if (end_of_text && id == *end_of_text) return std::string(kEndOfText);
  if (first_token && id == *first_token) return std::string(kFirstToken);
  const std::string text = piece(id, true);
  if (text.empty()) return str("token_id:", id);
  if (is_utf8(text)) return text;
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string bytes = "bytes:";
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    bytes += {'\\', 'x', kDigits[byte / 16], kDigits[byte % 16]};
  }
  return bytes;
}

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const data::Char c = data::char_at(text, at);
    if (!c.is_valid) return false;
    at += c.length;
  }
  return true;
}

int64_t count_characters(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

}  // namespace weft::serve
