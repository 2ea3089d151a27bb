// The mixture over depth against float64 loops.
#include "weft/ops/depth.h"

#include "tests/ops/row_check.h"
#include "tests/reference/depth.h"
#include "tests/support/errors.h"
#include "weft/ops/elementwise.h"

namespace weft::test {
namespace {

// What every source gets when all queries have left their readings.
std::vector<ops::DepthSourceGrads> source_grads(const std::vector<Tensor>& douts, const Tensor& weights,
                                                const ops::DepthMixGrads& grads, std::span<const Tensor> v,
                                                std::span<const Tensor> s, const Tensor& directions) {
  std::vector<ops::DepthSourceGrads> all;
  for (size_t i = 0; i < v.size(); ++i) {
    std::vector<ops::DepthReading> readings;
    for (size_t q = 0; q < douts.size(); ++q)
      readings.push_back({.dout = douts[q],
                          .weights = weights,
                          .dscores = grads.dscores,
                          .directions = ops::contiguous(directions),
                          .query = static_cast<int64_t>(q),
                          .source = static_cast<int64_t>(i)});
    all.push_back(ops::depth_source_backward(readings, v[i], s.empty() ? Tensor() : s[i]));
  }
  return all;
}

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
          const ops::DepthMixOptions options{.is_sigmoid = is_sigmoid};
          Tensor directions = w.unsqueeze(0);
          auto [outs, weights, lse] = ops::depth_mix(v, s, directions, options);
          expect_close(outs[0], want.out, "out");
          expect_close(weights, want.weights, "weights");
          const std::vector<Tensor> douts{dout};
          ops::DepthMixGrads grads = ops::depth_mix_backward(douts, weights, v, s, directions, options);
          std::vector<ops::DepthSourceGrads> of_sources = source_grads(douts, weights, grads, v, s, directions);
          for (size_t i = 0; i < v.size(); ++i) {
            expect_close(of_sources[i].dvalue, want.dvalues[i], str("dvalue ", i));
            if (!has_scales) continue;
            expect_close(of_sources[i].dscale, want.dscales[i], str("dscale ", i), dtype == kF64 ? 1e-11 : 1e-4);
          }
          expect_close(grads.ddirections, want.ddirection, "ddirection", dtype == kF64 ? 1e-11 : 1e-4);
        }
}

// Several queries are what each is by itself; a first score stands in for a source's own; totals for the sum over all sources.
TEST(DepthMix, OfSeveralQueries) {
  for (DType dtype : {kF64, kF32, kBF16}) {
    const DType wide = dtype == kF64 ? kF64 : kF32;
    const double tolerance = dtype == kF64 ? 1e-11 : dtype == kF32 ? 1e-4 : 5e-2;
    const int64_t rows = 9, width = 21, S = 3, N = 4;
    std::vector<Tensor> v, s, douts;
    for (int64_t i = 0; i < N; ++i) {
      v.push_back(random_normal({rows, width}, str("v", i), dtype));
      s.push_back(ops::abs(random_normal({rows, 1}, str("s", i), wide)));
    }
    for (int64_t q = 0; q < S; ++q) douts.push_back(random_normal({rows, width}, str("dout", q), dtype));
    Tensor w = random_normal({S, width}, "w", wide);
    ops::DepthMix all = ops::depth_mix(v, s, w);
    ops::DepthMixGrads grads = ops::depth_mix_backward(douts, all.weights, v, s, w);
    std::vector<ops::DepthSourceGrads> of_sources = source_grads(douts, all.weights, grads, v, s, w);
    std::vector<reference::Numbers> dv(N), ds(N);
    for (int64_t q = 0; q < S; ++q) {
      Tensor own = w.slice(0, q, q + 1);
      ops::DepthMix one = ops::depth_mix(v, s, own);
      auto at = static_cast<size_t>(q);
      expect_close(all.outs[at], values(one.outs[0]), str("out ", q), tolerance);
      expect_close(ops::contiguous(all.lse.slice(-1, q, q + 1)), values(one.lse), str("lse ", q), tolerance);
      const std::vector<Tensor> dout{douts[at]};
      ops::DepthMixGrads part = ops::depth_mix_backward(dout, one.weights, v, s, own);
      expect_close(ops::contiguous(grads.ddirections.slice(0, q, q + 1)), values(part.ddirections),
                   str("ddirection ", q), tolerance);
      std::vector<ops::DepthSourceGrads> parts = source_grads(dout, one.weights, part, v, s, own);
      for (size_t i = 0; i < N; ++i) {
        reference::Numbers a = values(parts[i].dvalue), b = values(parts[i].dscale);
        dv[i].resize(a.size(), 0.0), ds[i].resize(b.size(), 0.0);
        for (size_t k = 0; k < a.size(); ++k) dv[i][k] += a[k];
        for (size_t k = 0; k < b.size(); ++k) ds[i][k] += b[k];
      }
    }
    for (size_t i = 0; i < N; ++i) {
      expect_close(of_sources[i].dvalue, dv[i], str("dvalue ", i), tolerance);
      expect_close(of_sources[i].dscale, ds[i], str("dscale ", i), tolerance);
    }
    // Two phases by hand: sources 0 and 1, then their mixture as the first of three.
    Tensor own = w.slice(0, 0, 1);
    ops::DepthMix early = ops::depth_mix(std::span(v).first(2), std::span(s).first(2), own);
    ops::DepthMix late = ops::depth_mix(std::vector<Tensor>{early.outs[0], v[2], v[3]},
                                        std::vector<Tensor>{s[0], s[2], s[3]}, own, {.first_scores = early.lse});
    expect_close(late.outs[0], values(all.outs[0]), "two phases", tolerance);
    // And the gradients of the last two sources from the total over all.
    reference::Numbers h = values(all.outs[0]), g = values(douts[0]), total(static_cast<size_t>(rows), 0.0);
    for (size_t k = 0; k < h.size(); ++k) total[k / static_cast<size_t>(width)] += h[k] * g[k];
    Tensor t = ops::cast(Tensor::from(std::span<const double>(total), {rows, 1}), wide);
    const std::vector<Tensor> dout{douts[0]};
    ops::DepthMixGrads whole = ops::depth_mix_backward(dout, ops::contiguous(all.weights.slice(-2, 0, 1)), v, s, own);
    ops::DepthMixGrads rest =
        ops::depth_mix_backward(dout, ops::contiguous(late.weights.slice(-1, 1, 3)), std::span(v).last(2),
                                std::span(s).last(2), own, {.totals = ops::to(t, v[0].device())});
    expect_close(rest.dscores, values(ops::contiguous(whole.dscores.slice(-1, 2, 4))), "dscores", tolerance);
  }
}

TEST(DepthMix, SaysWhatDoesNotFit) {
  Tensor x = Tensor::zeros({2, 4}, kF32), w = Tensor::zeros({1, 4}, kF32), r = Tensor::zeros({2, 1}, kF32);
  const std::vector<Tensor> one{x}, other{x, Tensor::zeros({2, 5}, kF32)}, scale{r}, wrong{Tensor::zeros({2}, kF32)};
  EXPECT_EQ(error_of([&] { ops::depth_mix({}, {}, w); }, {"depth_mix: no sources"}), "");
  EXPECT_EQ(error_of([&] { ops::depth_mix(other, {}, w); }, {"depth_mix: source 1 is [2, 5] f32"}), "");
  EXPECT_EQ(error_of([&] { ops::depth_mix(one, wrong, w); }, {"scale 0 is [2] f32", "[2, 1]"}), "");
  EXPECT_EQ(error_of([&] { ops::depth_mix(one, scale, r); }, {"directions are [2, 1] f32", "[queries, 4]"}), "");
  EXPECT_EQ(error_of([&] { ops::depth_mix(std::vector<Tensor>{x, x}, scale, w); }, {"1 scales for 2 sources"}), "");
  Tensor a = Tensor::zeros({2, 1, 1}, kF32);
  std::vector<ops::DepthReading> readings{{.dout = x, .weights = a, .dscores = a, .directions = w, .source = 1}};
  EXPECT_EQ(error_of([&] { ops::depth_source_backward(readings, x, {}); }, {"source 1 of 1 and 1"}), "");
  readings[0] = {.dout = x, .weights = r, .dscores = a, .directions = w};
  EXPECT_EQ(error_of([&] { ops::depth_source_backward(readings, x, {}); }, {"weights or dscores are [2, 1] f32"}), "");
  readings[0] = {.dout = r, .weights = a, .dscores = a, .directions = w};
  EXPECT_EQ(error_of([&] { ops::depth_source_backward(readings, x, {}); }, {"dout is [2, 1] f32"}), "");
}

}  // namespace
}  // namespace weft::test
