// Tokens cut into chunks by their position within the document: chunk n has the positions n C to n C + C - 1.
// B batch rows, S gathered tokens.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "weft/nn/tokens.h"

namespace weft {

// Error where positions, which are i32, and sums of two of them would not hold a chunk's length.
void check_chunk(std::string_view what, int64_t length);

// Of the tokens of Tokens::gather() with the same window, row by row. Padding is of document -1.
struct ChunkPlaces {
  int64_t batch = 0, num_tokens = 0, chunk = 1;         // B, S, C
  std::vector<int32_t> documents = {}, positions = {};  // [B S]; positions within the document
  std::vector<int32_t> here = {};                       // [B T]: which of the S each of the tokens here is

  int32_t number(int64_t row, int64_t token) const {
    return positions[static_cast<size_t>(row * num_tokens + token)] / static_cast<int32_t>(chunk);
  }
  int32_t document(int64_t row, int64_t token) const {
    return documents[static_cast<size_t>(row * num_tokens + token)];
  }
};
ChunkPlaces chunk_places(Tokens& tokens, int64_t chunk, int64_t window = 0);

// Numbers and truths of the CPU as tensors on a device.
Tensor numbers_on(Device device, const std::vector<int32_t>& numbers, const Shape& shape);
Tensor truths_on(Device device, const std::vector<uint8_t>& truths, const Shape& shape);
// Rows of x [..., width] by number, where -1 is a row of zeros: [index.size(), width].
Var take_or_zero(const Var& x, const std::vector<int32_t>& index);

}  // namespace weft
