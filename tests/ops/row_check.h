// What the tests of ops over rows share: comparison with a tolerance per dtype, equality bit for bit across thread
// counts, error texts, central differences.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tests/ops/isa.h"
#include "tests/reference/values.h"
#include "tests/support/random.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/core/tensor.h"

namespace weft::test {

using Numbers = std::vector<double>;

using reference::values;

// Largest allowed |got - want| / (1 + |want|) of a result stored as `dtype`.
inline double tolerance(DType dtype) { return dtype == kF64 ? 1e-11 : dtype == kF32 ? 2e-5 : 8e-3; }

inline void expect_close(const Tensor& got, const Numbers& want, const std::string& what, double allowed = 0) {
  ASSERT_TRUE(got.defined()) << what;
  Numbers found = values(got);
  ASSERT_EQ(found.size(), want.size()) << what;
  if (allowed == 0) allowed = tolerance(got.dtype());
  for (size_t i = 0; i < want.size(); ++i) {
    if (found[i] == want[i]) continue;  // infinities too
    double error = std::abs(found[i] - want[i]) / (1 + std::abs(want[i]));
    ASSERT_TRUE(error <= allowed) << what << ": element " << i << " is " << found[i] << ", expected " << want[i];
  }
}

// `f` returns tensors; they must be the same bytes with 1, 2 and 3 threads.
inline void expect_same_for_all_threads(const std::function<std::vector<Tensor>()>& f) {
  int before = num_threads();
  set_num_threads(1);
  std::vector<Tensor> alone = f();
  for (int threads : {2, 3}) {
    set_num_threads(threads);
    std::vector<Tensor> together = f();
    for (size_t i = 0; i < alone.size(); ++i) {
      ASSERT_EQ(alone[i].num_bytes(), together[i].num_bytes());
      EXPECT_EQ(std::memcmp(alone[i].raw(), together[i].raw(), alone[i].num_bytes()), 0)
          << "result " << i << ", " << threads << " threads";
    }
  }
  set_num_threads(before);
}

struct ErrorRow {
  std::function<void()> call;
  std::vector<std::string> parts;  // substrings of the text
};
inline void expect_errors(const std::vector<ErrorRow>& rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    try {
      rows[i].call();
      ADD_FAILURE() << "row " << i << " gave no error";
    } catch (const Error& error) {
      for (const std::string& part : rows[i].parts)
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
            << "row " << i << ": no '" << part << "' in: " << error.what();
    }
  }
}

// d loss / d x by central differences; x is f64 and changed in place meanwhile.
inline Numbers central_differences(Tensor x, const std::function<double()>& loss, double step = 1e-5) {
  Numbers result;
  for (int64_t i = 0; i < x.num_elements(); ++i) {
    double* at = x.mutable_data<double>() + i;
    double value = *at;
    *at = value + step;
    double up = loss();
    *at = value - step;
    double down = loss();
    *at = value;
    result.push_back((up - down) / (2 * step));
  }
  return result;
}
inline double dot(const Tensor& a, const Tensor& b) {
  Numbers x = values(a), y = values(b);
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

// A heads view [B, T, H, K] cut out of a fused [B, T, 3 H K]: rows are not evenly spaced.
inline Tensor fused_heads(int64_t B, int64_t T, int64_t H, int64_t K, std::string_view name, DType dtype) {
  Tensor fused = random_normal({B, T, 3 * H * K}, name, dtype);
  return fused.slice(2, H * K, 2 * H * K).reshape({B, T, H, K});
}

}  // namespace weft::test
