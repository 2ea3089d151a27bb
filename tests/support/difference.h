// How far two tensors are apart.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "weft/core/tensor.h"

namespace weft::test {

inline double max_difference(const Tensor& a, const Tensor& b) {  // both f32
  auto x = a.to_vector<float>(), y = b.to_vector<float>();
  EXPECT_EQ(x.size(), y.size());
  double worst = 0;
  for (size_t i = 0; i < std::min(x.size(), y.size()); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(x[i]) - static_cast<double>(y[i])));
  return worst;
}

}  // namespace weft::test
