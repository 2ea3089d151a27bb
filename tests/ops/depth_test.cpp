// The mixture over depth against float64 loops.
#include "weft/ops/depth.h"

#include "tests/ops/row_check.h"
#include "tests/reference/depth.h"
#include "tests/support/errors.h"
#include "weft/ops/elementwise.h"

namespace weft::test {
namespace {

TEST(DepthMix, EqualsTheReference) {
  for (DType dtype : {kF64, kF32, kBF16})
    for (auto [rows, width, count] : {std::array<int64_t, 3>{1, 1, 1}, {3, 7, 2}, {5, 64, 9}, {67, 33, 5}, {0, 8, 3}})
      for (bool is_sigmoid : {false, true})
        for (bool has_scales : {false, true}) {
          SCOPED_TRACE(str(dtype, " ", rows, "x", width, " of ", count, is_sigmoid ? " sigmoid" : "",
                           has_scales ? " scaled" : ""));
          const DType wide = dtype == kF64 ? kF64 : kF32;
          std::vector<Tensor> v, s;
          std::vector<reference::Numbers> v_numbers, s_numbers;
          for (int64_t i = 0; i < count; ++i) {
            v.push_back(random_normal({rows, width}, str("v", i), dtype));
            v_numbers.push_back(values(v.back()));
            if (!has_scales) continue;
            s.push_back(ops::abs(random_normal({rows, 1}, str("s", i), wide)));
            s_numbers.push_back(values(s.back()));
          }
          Tensor w = random_normal({width}, "w", wide), dout = random_normal({rows, width}, "dout", dtype);
          reference::DepthReference want(v_numbers, s_numbers, values(w), is_sigmoid, values(dout));
          auto [out, weights] = ops::depth_mix(v, s, w, is_sigmoid);
          expect_close(out, want.out, "out");
          expect_close(weights, want.weights, "weights");
          ops::DepthMixGrads grads = ops::depth_mix_backward(dout, weights, v, s, w, is_sigmoid);
          for (size_t i = 0; i < v.size(); ++i) expect_close(grads.dvalues[i], want.dvalues[i], str("dvalue ", i));
          for (size_t i = 0; i < s.size(); ++i)
            expect_close(grads.dscales[i], want.dscales[i], str("dscale ", i), dtype == kF64 ? 1e-11 : 1e-4);
          expect_close(grads.ddirection, want.ddirection, "ddirection", dtype == kF64 ? 1e-11 : 1e-4);
        }
}

TEST(DepthMix, SaysWhatDoesNotFit) {
  Tensor x = Tensor::zeros({2, 4}, kF32), w = Tensor::zeros({4}, kF32), r = Tensor::zeros({2, 1}, kF32);
  const std::vector<Tensor> one{x}, other{x, Tensor::zeros({2, 5}, kF32)}, scale{r}, wrong{Tensor::zeros({2}, kF32)};
  EXPECT_EQ(error_of([&] { ops::depth_mix({}, {}, w, false); }, {"depth_mix: no sources"}), "");
  EXPECT_EQ(error_of([&] { ops::depth_mix(other, {}, w, false); }, {"depth_mix: source 1 is [2, 5] f32"}), "");
  EXPECT_EQ(error_of([&] { ops::depth_mix(one, wrong, w, false); }, {"scale 0 is [2] f32", "[2, 1]"}), "");
  EXPECT_EQ(error_of([&] { ops::depth_mix(one, scale, x, false); }, {"direction is [2, 4] f32", "[4]"}), "");
  EXPECT_EQ(error_of(
                [&] {
                  ops::depth_mix(std::vector<Tensor>{x, x}, scale, w, false);
                },
                {"1 scales for 2 sources"}),
            "");
}

}  // namespace
}  // namespace weft::test
