// Comparisons of two elements, and of an element with a number, once for every device. What is compared with NaN is only unequal.
#pragma once

#include <math.h>

#include <type_traits>

#include "weft/core/dtype.h"

namespace weft::math {

enum class Comparison { equal, not_equal, less, less_equal, greater, greater_equal };

template <class T>
WEFT_HD bool compare(Comparison kind, T a, T b) {
  switch (kind) {
    case Comparison::equal: return a == b;
    case Comparison::not_equal: return a != b;
    case Comparison::less: return a < b;
    case Comparison::less_equal: return a <= b;
    case Comparison::greater: return a > b;
    case Comparison::greater_equal: break;
  }
  return a >= b;
}

// A type in which every element of type T is exact, and which has the comparisons.
template <class T>
using Comparable = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

// x with a number that an integer x need not be able to hold: 2 < 2.5, and 255 < 300 for a u8.
template <class T>
WEFT_HD bool compare_number(Comparison kind, T x, double number) {
  if constexpr (!std::is_same_v<T, int64_t>) {
    return compare(kind, static_cast<double>(static_cast<Comparable<T>>(x)), number);
  } else {
    // A double has too few digits for x, so the whole part of the number becomes an integer instead.
    if (number != number) return kind == Comparison::not_equal;
    if (number >= 0x1p63) return compare(kind, 0, 1);
    if (number < -0x1p63) return compare(kind, 1, 0);
    const double whole = floor(number);
    const auto bound = static_cast<int64_t>(whole);
    return x == bound && whole < number ? compare(kind, 0, 1) : compare(kind, x, bound);
  }
}

}  // namespace weft::math
