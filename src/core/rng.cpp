#include "weft/core/rng.h"

#include <cmath>
#include <numbers>

namespace weft {

// A stream's key is a Philox block of the parent's key at a counter made of the name (FNV-1a) or number.
static uint64_t derive(uint64_t key, uint64_t label, uint32_t kind) {
  auto bits = philox({static_cast<uint32_t>(label), static_cast<uint32_t>(label >> 32), kind, 0x77656674u}, key);
  return uint64_t{bits[0]} | uint64_t{bits[1]} << 32;
}

Rng Rng::operator[](std::string_view purpose) const {
  uint64_t hash = 0xcbf29ce484222325u;
  for (char c : purpose) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return Rng(derive(key_, hash, 1));
}

Rng Rng::operator[](uint64_t index) const { return Rng(derive(key_, index, 2)); }

float Rng::normal(uint64_t index) const {
  auto block = bits(index);
  // 1 - u lies in (0, 1], so the logarithm is finite.
  double radius = std::sqrt(-2.0 * std::log(1.0 - static_cast<double>(uniform_from_bits(block[0]))));
  double angle = 2.0 * std::numbers::pi * static_cast<double>(uniform_from_bits(block[1]));
  return static_cast<float>(radius * std::cos(angle));
}

uint64_t Rng::below(uint64_t bound, uint64_t index) const {
  auto block = bits(index);
  uint64_t word = uint64_t{block[0]} | uint64_t{block[1]} << 32;
  return static_cast<uint64_t>((static_cast<unsigned __int128>(word) * bound) >> 64);
}

}  // namespace weft
