// Counter-based random numbers, Philox4x32-10 (Salmon et al., SC 2011). A number is a pure function of
// (seed, purpose, global index), so sharding, threads and resuming do not change it.
//   Rng rng = Rng(seed)["dropout"]["layer3"];   float u = rng.uniform(global_index);
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "weft/core/dtype.h"

namespace weft {

// One Philox4x32-10 block.
WEFT_HD std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = uint64_t{0xd2511f53u} * counter[0], p1 = uint64_t{0xcd9e8d57u} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ k0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return counter;
}

// Uniform in [0, 1) with 24 bits.
WEFT_HD float uniform_from_bits(uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24f; }

class Rng {
 public:
  explicit Rng(uint64_t seed = 0) : key_(seed) {}
  Rng operator[](std::string_view purpose) const;  // an independent stream for each name
  Rng operator[](uint64_t index) const;            // and for each number (layer, step)

  uint64_t key() const { return key_; }
  std::array<uint32_t, 4> bits(uint64_t index, uint64_t index2 = 0) const {
    return philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(index2),
                   static_cast<uint32_t>(index2 >> 32)},
                  key_);
  }
  float uniform(uint64_t index, uint64_t index2 = 0) const { return uniform_from_bits(bits(index, index2)[0]); }
  float normal(uint64_t index) const;                    // standard normal, Box-Muller on numbers 0 and 1 of the block
  uint64_t below(uint64_t bound, uint64_t index) const;  // uniform integer in [0, bound)

 private:
  uint64_t key_;
};

}  // namespace weft
