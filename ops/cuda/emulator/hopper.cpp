#include "ops/cuda/emulator/hopper.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "ops/cuda/emulator/emulator.h"
#include "ops/cuda/emulator/memory.h"
#include "weft/core/error.h"

namespace weft::cuda::emulator {

namespace {

// The copy engine's and the tensor cores' permutation of 16-byte groups: bits 4 to 6 of an address by bits 7 to 9.
uint32_t swizzled(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

unsigned char* pointer_to(uint32_t address, size_t bytes) {
  const uint32_t offset = address - kSharedOffset;
  if (address < kSharedOffset || offset + bytes > self->shared_bytes)
    stop(str("shared address ", address, " is outside the block's ", self->shared_bytes, " bytes"));
  return self->shared + offset;
}

// An operand in shared memory.
struct SharedTile {
  uint32_t start, leading, stride;

  explicit SharedTile(uint64_t descriptor)
      : start(static_cast<uint32_t>(descriptor & 0x3fff) << 4),
        leading(static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4) {
    if (descriptor >> 62 != 1) stop("an operand whose layout is not swizzled by 128 bytes");
    if ((descriptor >> 49 & 7) != 0) stop("an operand with a base offset");
  }

  // K-major: row i's elements lie one after the other, eight rows of 128 bytes make an atom, `stride` to the next eight.
  uint32_t by_channel(int i, int k) const {
    return swizzled(start + static_cast<uint32_t>(i / 8) * stride + static_cast<uint32_t>(i % 8 * 128 + k * 2));
  }
  // MN-major: 64 elements of n lie one after the other, eight k make an atom; `leading` to the next 64 n, `stride` to the next 8 k.
  uint32_t by_token(int n, int k) const {
    return swizzled(start + static_cast<uint32_t>(n / 64) * leading + static_cast<uint32_t>(k / 8) * stride +
                    static_cast<uint32_t>(k % 8 * 128 + n % 64 * 2));
  }
};

// `count` neighbours within 16 bytes.
template <int count>
void read_numbers(float* to, int step, uint32_t address) {
  uint16_t bits[count];
  std::memcpy(bits, pointer_to(address, sizeof bits), sizeof bits);
  for (int i = 0; i < count; ++i) to[i * step] = std::bit_cast<float>(uint32_t{bits[i]} << 16);
}

}  // namespace

uint32_t shared_address(const void* at) {
  return kSharedOffset + static_cast<uint32_t>(static_cast<const unsigned char*>(at) - self->shared);
}

// Barriers.

HopperBarriers::Barrier& HopperBarriers::find(const uint64_t* at) {
  for (Barrier& b : all_)
    if (b.at == at) return b;
  stop("a barrier that nobody has initialised");
}

void HopperBarriers::init(const uint64_t* at, int count) {
  for (const Barrier& b : all_)
    if (b.at == at) stop("a barrier is initialised twice");
  Barrier b;
  b.at = at, b.count = b.missing = count;
  all_.push_back(std::move(b));
}

void HopperBarriers::arrive(const uint64_t* at, const Arrival& who, int64_t bytes) {
  Barrier& b = find(at);
  if (b.missing == 0) stop("more arrivals at a barrier than its count, before its copies are there");
  --b.missing, b.expected_bytes += bytes;
  for (int w = 0; w < kMostWarps; ++w) b.gathered[w] = std::max(b.gathered[w], (*who.seen)[w]);
  b.gathered[who.warp] = std::max(b.gathered[who.warp], who.sync);
  end_phase(b);
}

void HopperBarriers::copy(const uint64_t* at, const Arrival& who, void* to, const TileMap& from,
                          const std::array<int32_t, 4>& first) {
  Barrier& b = find(at);
  if (shared_address(to) % 1024 != 0) stop("a tile is copied to an address that is no multiple of 1024");
  b.copied_bytes += int64_t{from.rows} * 128;
  b.copies.push_back({to, from, first});
  b.gathered[who.warp] = std::max(b.gathered[who.warp], who.sync + 1);  // the copy's own write
  end_phase(b);
}

void HopperBarriers::end_phase(Barrier& b) {
  if (b.missing > 0 || b.expected_bytes != b.copied_bytes) return;
  for (const Copy& c : b.copies) {
    auto* to = static_cast<unsigned char*>(c.to);
    for (int r = 0; r < c.from.rows; ++r)
      for (int i = 0; i < 64; ++i) {
        const int64_t at[4] = {int64_t{c.first[0]} + i, c.first[1], int64_t{c.first[2]} + r, c.first[3]};
        bool is_there = true;
        const char* element = c.from.data;
        for (int d = 0; d < 4; ++d) {
          is_there = is_there && at[d] >= 0 && at[d] < c.from.sizes[d];
          element += at[d] * c.from.strides[d];
        }
        const uint32_t address = swizzled(shared_address(to) + static_cast<uint32_t>(r * 128 + i * 2));
        if (is_there) std::memcpy(pointer_to(address, 2), element, 2);
        else std::memset(pointer_to(address, 2), 0, 2);
      }
  }
  b.copies.clear();
  b.missing = b.count, b.expected_bytes = b.copied_bytes = 0, ++b.phase;
  b.published = b.gathered;
}

bool HopperBarriers::has_ended(const uint64_t* at, unsigned parity, Clock& seen) {
  const Barrier& b = find(at);
  if ((b.phase & 1) == parity) return false;
  for (int w = 0; w < kMostWarps; ++w) seen[w] = std::max(seen[w], b.published[w]);
  return true;
}

// Products.

void Products::start(float* d, int n, bool accumulates, const float (*a_rows)[16], uint64_t a, uint64_t b,
                     bool is_b_by_token) {
  if (!is_fenced_) stop("a product of a warpgroup without wgmma_fence() since the last wait");
  Product p{d, n, groups_, accumulates, a_rows != nullptr, is_b_by_token, a, b, {}, {}};
  if (a_rows) std::memcpy(p.rows, a_rows, sizeof p.rows);
  const bool is_chained = std::any_of(all_.begin(), all_.end(), [&](const Product& q) { return q.d == d; });
  if (!is_chained) {
    p.before.assign(d, d + n / 2);
    std::fill(d, d + n / 2, std::nanf(""));
  }
  all_.push_back(std::move(p));
}

void Products::wait(int pending) {
  size_t count = 0;
  while (count < all_.size() && all_[count].group + pending < groups_) ++count;
  for (size_t i = 0; i < count; ++i) run(all_[i]);
  all_.erase(all_.begin(), all_.begin() + static_cast<std::ptrdiff_t>(count));
  is_fenced_ = false;
}

// d[64, n] (+)= a[64, 16] b[16, n]: this lane's rows 16 (warp % 4) + lane / 4 (+ 8), columns 8 j + 2 (lane % 4) (+ 1).
void Products::run(Product& p) {
  if (!p.before.empty()) std::copy(p.before.begin(), p.before.end(), p.d);
  const int g = lane() / 4, t = lane() % 4;
  const SharedTile b(p.b);
  if (lane() == 0) {  // one lane reads for its warp: 16 bytes at a time, which stay together
    for (int i = 0; i < (p.is_b_by_token ? 16 : p.n); ++i)
      for (int c = 0; c < (p.is_b_by_token ? p.n : 16); c += 8)
        on_read(pointer_to(p.is_b_by_token ? b.by_token(c, i) : b.by_channel(i, c), 16), 16);
  }
  if (!p.has_rows) {
    const SharedTile a(p.a);
    const int first = warp() % 4 * 16;
    if (lane() == 0)
      for (int i = 0; i < 32; ++i) on_read(pointer_to(a.by_channel(first + i / 2, i % 2 * 8), 16), 16);
    for (int h = 0; h < 2; ++h)
      for (int k = 0; k < 16; k += 8) read_numbers<8>(&p.rows[h][k], 1, a.by_channel(first + g + 8 * h, k));
  }
  for (int j = 0; j < p.n / 8; ++j) {
    float columns[2][16];
    const int n = 8 * j + 2 * t;
    if (p.is_b_by_token) {
      for (int k = 0; k < 16; ++k) read_numbers<2>(&columns[0][k], 16, b.by_token(n, k));
    } else {
      for (int e = 0; e < 2; ++e)
        for (int k = 0; k < 16; k += 8) read_numbers<8>(&columns[e][k], 1, b.by_channel(n + e, k));
    }
    for (int e = 0; e < 2; ++e)
      for (int h = 0; h < 2; ++h) {
        float& d = p.d[4 * j + 2 * h + e];
        float sum = p.accumulates ? d : 0.0f;
        for (int k = 0; k < 16; ++k) sum += p.rows[h][k] * columns[e][k];
        d = sum;
      }
  }
}

}  // namespace weft::cuda::emulator
