// Cutting a text into the pieces that BPE encodes one by one. A rule finds the end of the piece that begins at a
// piece boundary; scanning left to right gives the same pieces as the regular expression it stands for.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace weft::data {

struct PieceRule {
  size_t (*piece_end)(std::string_view text, size_t begin);  // begin < text.size(), a boundary; the result is > begin
  size_t (*last_cut)(std::string_view text);                 // see Tokenizer::last_cut
};

// What a pattern is called: in a config's tokenizer.json it stands as a regular expression.
struct PiecePattern {
  std::string_view name;   // "gpt2", "llama3", "qwen2"
  std::string_view regex;  // as those files write it
  const PieceRule& rule;
  bool is_composed;  // texts are brought to NFC first
};
std::span<const PiecePattern> piece_patterns();

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
extern const PieceRule kGpt2Pieces;

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
extern const PieceRule kLlama3Pieces;

// The same with \p{N}: each digit by itself.
extern const PieceRule kQwen2Pieces;

}  // namespace weft::data
