// Comparison of a device's results with the CPU's where both must be the same numbers.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "tests/reference/values.h"
#include "weft/core/tensor.h"

namespace weft::test {

// The same dtype, shape, numbers and signs of zeros; NaN is NaN, whatever its bits. 64-bit integers are compared as such.
inline void expect_same_values(const Tensor& got, const Tensor& want, const std::string& what) {
  ASSERT_EQ(got.dtype(), want.dtype()) << what;
  ASSERT_EQ(got.shape(), want.shape()) << what;
  if (want.dtype() == kI64) {
    EXPECT_EQ(got.to_vector<int64_t>(), want.to_vector<int64_t>()) << what;
    return;
  }
  std::vector<double> a = reference::values(got), b = reference::values(want);
  for (size_t i = 0; i < b.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    ASSERT_TRUE(a[i] == b[i] && std::signbit(a[i]) == std::signbit(b[i]))
        << what << " element " << i << ": got " << a[i] << ", want " << b[i];
  }
}

}  // namespace weft::test
