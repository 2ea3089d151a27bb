// Rotary position embedding (Su et al., 2104.09864): pair (a, b) of a head becomes (a cos - b sin, b cos + a sin).
// x [tokens, heads, K], cos and sin [tokens, rotated / 2] in f32. The backward is the rotation by the negative angle.
#include "ops/cpu/rotary.h"

#include <algorithm>
#include <cstring>

#include "ops/cpu/norm_lanes.h"

namespace weft::cpu {

using namespace HWY_NAMESPACE;

namespace {

// Angles as lanes of the compute type. f64 exists for gradient checks and is converted one by one.
template <class C, class N>
HWY_INLINE Pack<C> load_angle(const float* at, N count) {
  if constexpr (std::is_same_v<C, float>) {
    return load(at, count);
  } else {
    C lanes[Pack<C>::kLanes] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = at[i];
    return load(static_cast<const C*>(lanes));
  }
}

// Every lane twice: the lower half of x as (x0, x0, x1, x1, ...), and the upper half.
template <class C>
struct Twice {
  using Tag = typename Pack<C>::Tag;
  static constexpr int64_t L = Pack<C>::kLanes;
  decltype(hn::SetTableIndices(Tag(), static_cast<const hwy::MakeSigned<C>*>(nullptr))) lower_, upper_;

  Twice() : lower_(table(0)), upper_(table(L / 2)) {}
  HWY_INLINE Pack<C> lower(Pack<C> x) const { return Pack<C>(hn::TableLookupLanes(x.v, lower_)); }
  HWY_INLINE Pack<C> upper(Pack<C> x) const { return Pack<C>(hn::TableLookupLanes(x.v, upper_)); }

 private:
  static auto table(int64_t first) {
    alignas(64) hwy::MakeSigned<C> index[L];
    for (int64_t i = 0; i < L; ++i) index[i] = static_cast<hwy::MakeSigned<C>>(first + i / 2);
    return hn::SetTableIndices(Tag(), index);
  }
};

// Rotates the pairs in lanes (0, 1), (2, 3), ... of x; cos and sin hold each pair's value twice.
template <class C>
struct NeighbourRotation {
  using Tag = typename Pack<C>::Tag;
  Pack<C> signs;  // of sin in (a cos - b sin, b cos + a sin)

  explicit NeighbourRotation(double direction)
      : signs(Pack<C>(hn::OddEven(hn::Set(Tag(), C(1)), hn::Set(Tag(), C(-1)))) * Pack<C>(direction)) {}
  HWY_INLINE Pack<C> operator()(Pack<C> x, Pack<C> cos, Pack<C> sin) const {
    return fused(Pack<C>(hn::Reverse2(Tag(), x.v)), sin * signs, x * cos);
  }
};

template <class T>
void copy_rest(const T* x, T* y, int64_t from, int64_t width) {
  if (from < width) std::memcpy(static_cast<void*>(y + from), x + from, static_cast<size_t>(width - from) * sizeof(T));
}

// Calls f(x, y, cos, sin) for every head.
template <class T, class F>
HWY_INLINE void for_heads(const RotaryArgs<T>& args, int64_t begin, int64_t end, F&& f) {
  const int64_t pairs = args.rotated / 2, width = args.x_rows.width;
  RowCursor<const T> row(args.x, args.x_rows, begin);
  for (int64_t head = begin; head < end;) {
    const int64_t token = head / args.heads, last = std::min(end, (token + 1) * args.heads);
    for (; head < last; ++head, row.next()) {
      f(row.get(), args.y + head * width, args.cos + token * pairs, args.sin + token * pairs);
      copy_rest(row.get(), args.y + head * width, args.rotated, width);
    }
  }
}

}  // namespace

template <Isa I, class T>
void RotaryKernels<I, T>::half(const RotaryArgs<T>& args, int64_t begin, int64_t end) {
  using C = Lane<T>;
  const int64_t pairs = args.rotated / 2;
  const Pack<C> direction(args.direction);
  for_heads(args, begin, end, [&](const T* x, T* y, const float* cos, const float* sin) {
    for_row<C>(pairs, [&](int64_t m, auto count) {
      Pack<C> c = load_angle<C>(cos + m, count), s = load_angle<C>(sin + m, count) * direction;
      Pack<C> a = load(x + m, count), b = load(x + pairs + m, count);
      store(a * c - b * s, y + m, count);
      store(b * c + a * s, y + pairs + m, count);
    });
  });
}

template <Isa I, class T>
void RotaryKernels<I, T>::interleaved(const RotaryArgs<T>& args, int64_t begin, int64_t end) {
  using C = Lane<T>;
  constexpr int64_t L = Pack<C>::kLanes;
  const int64_t pairs = args.rotated / 2;
  if constexpr (L == 1) {  // a pair does not fit into a pack
    const Pack<C> direction(args.direction);
    return for_heads(args, begin, end, [&](const T* x, T* y, const float* cos, const float* sin) {
      for (int64_t m = 0; m < pairs; ++m) {
        Pack<C> c = load_angle<C>(cos + m, Whole<C>{}), s = load_angle<C>(sin + m, Whole<C>{}) * direction;
        Pack<C> a = load(x + 2 * m), b = load(x + 2 * m + 1);
        store(a * c - b * s, y + 2 * m);
        store(b * c + a * s, y + 2 * m + 1);
      }
    });
  }
  const Twice<C> twice;
  const NeighbourRotation<C> rotated(args.direction);
  for_heads(args, begin, end, [&](const T* x, T* y, const float* cos, const float* sin) {
    for_row<C>(pairs, [&](int64_t m, auto count) {  // count pairs: a full pack and a rest, or a part of one pack
      Pack<C> c = load_angle<C>(cos + m, count), s = load_angle<C>(sin + m, count);
      const int64_t i = 2 * m, rest = 2 * count - L;
      if (rest < 0)
        return store(rotated(load_part(x + i, 2 * count), twice.lower(c), twice.lower(s)), y + i, 2 * count);
      store(rotated(load(x + i), twice.lower(c), twice.lower(s)), y + i);
      if (rest == L) store(rotated(load(x + i + L), twice.upper(c), twice.upper(s)), y + i + L);
      else if (rest > 0) store(rotated(load_part(x + i + L, rest), twice.upper(c), twice.upper(s)), y + i + L, rest);
    });
  });
}

template struct RotaryKernels<kThisIsa, float>;
template struct RotaryKernels<kThisIsa, BFloat16>;
template struct RotaryKernels<kThisIsa, double>;

}  // namespace weft::cpu
