// Cutting a text into the pieces that BPE encodes one by one. A rule finds the end of the piece that begins at a
// piece boundary; scanning left to right gives the same pieces as the regular expression it stands for.
#pragma once

#include <cstddef>
#include <string_view>

namespace weft::data {

struct PieceRule {
  size_t (*piece_end)(std::string_view text, size_t begin);  // begin < text.size(), a boundary; the result is > begin
  size_t (*last_cut)(std::string_view text);                 // see Tokenizer::last_cut
};

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
extern const PieceRule kGpt2Pieces;

}  // namespace weft::data
