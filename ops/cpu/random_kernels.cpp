// Dropout, compiled once per instruction set: Philox4x32-10 on lanes that hold consecutive counters.
#include "ops/cpu/pack_math.h"
#include "ops/cpu/random.h"

namespace weft::cpu {

namespace HWY_NAMESPACE {

constexpr int64_t kGroups = F32::kLanes;  // counters at a time, four words each

#if HWY_TARGET == HWY_SCALAR
void philox_words(uint32_t group, uint32_t position, uint64_t row, uint64_t key, uint32_t* words) {
  auto block = philox({group, position, static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32)}, key);
  for (size_t k = 0; k < 4; ++k) words[k] = block[k];
}
#else
using Tag32 = hn::RebindToUnsigned<F32::Tag>;
using V32 = hn::Vec<Tag32>;

// The two halves of the 64-bit product of each lane.
struct Product {
  V32 high, low;
};
HWY_INLINE Product multiply(V32 a, V32 b) {
  Tag32 d;
  hn::RepartitionToWide<Tag32> d64;
  auto even = hn::MulEven(a, b);
  auto odd = hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(d64, a))), b);
  return {hn::OddEven(hn::BitCast(d, odd), hn::BitCast(d, hn::ShiftRight<32>(even))),
          hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(odd)), hn::BitCast(d, even))};
}

// words[4 g + k] = word k of counter {group + g, position, row}.
void philox_words(uint32_t group, uint32_t position, uint64_t row, uint64_t key, uint32_t* words) {
  Tag32 d;
  V32 c0 = hn::Iota(d, group), c1 = hn::Set(d, position);
  V32 c2 = hn::Set(d, static_cast<uint32_t>(row)), c3 = hn::Set(d, static_cast<uint32_t>(row >> 32));
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  const V32 m0 = hn::Set(d, 0xd2511f53u), m1 = hn::Set(d, 0xcd9e8d57u);
  for (int round = 0; round < 10; ++round) {
    Product p0 = multiply(c0, m0), p1 = multiply(c2, m1);
    c0 = hn::Xor(hn::Xor(p1.high, c1), hn::Set(d, k0));
    c2 = hn::Xor(hn::Xor(p0.high, c3), hn::Set(d, k1));
    c1 = p1.low;
    c3 = p0.low;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  hn::StoreInterleaved4(c0, c1, c2, c3, d, words);
}
#endif

// Keeps x where the upper 24 bits of its word are at least `dropped`.
template <class S>
HWY_INLINE Pack<Lane<S>> keep(Pack<Lane<S>> x, const uint32_t* words, uint32_t dropped, Lane<S> factor) {
  using P = Pack<Lane<S>>;
  Lane<S> uniform[P::kLanes];
  for (int64_t i = 0; i < P::kLanes; ++i) uniform[i] = static_cast<Lane<S>>(static_cast<int32_t>(words[i] >> 8));
  P is_kept = load(static_cast<const Lane<S>*>(uniform));
  return select(is_kept < P(dropped), P(0), x * P(factor));
}

template <class S>
void dropout_token(const DropoutToken& token, const S* x, S* y) {
  constexpr int64_t kLanes = Pack<Lane<S>>::kLanes;
  uint32_t words[4 * kGroups];
  for (int64_t first = 0; first < token.dim; first += 4 * kGroups) {
    philox_words(static_cast<uint32_t>(first / 4), token.position, token.row, token.key, words);
    int64_t n = token.dim - first < 4 * kGroups ? token.dim - first : 4 * kGroups;
    const auto factor = static_cast<Lane<S>>(token.factor);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      store(keep<S>(load(x + first + i), words + i, token.dropped, factor), y + first + i);
    if (i < n)
      store_part(keep<S>(load_part(x + first + i, n - i), words + i, token.dropped, factor), y + first + i, n - i);
  }
}

}  // namespace HWY_NAMESPACE

namespace simd = HWY_NAMESPACE;

template <Isa I>
void RandomKernels<I>::dropout(DType dtype, const DropoutToken& token, const void* x, void* y) {
  if (dtype == kF32) return simd::dropout_token(token, static_cast<const float*>(x), static_cast<float*>(y));
  if (dtype == kBF16) return simd::dropout_token(token, static_cast<const BFloat16*>(x), static_cast<BFloat16*>(y));
  simd::dropout_token(token, static_cast<const double*>(x), static_cast<double*>(y));
}

template struct RandomKernels<kThisIsa>;

}  // namespace weft::cpu
