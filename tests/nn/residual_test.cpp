// Routed residual streams in two phases are those that read every source for each sublayer: values and gradients of every parameter.
#include "weft/nn/residual.h"

#include <gtest/gtest.h>

#include <cmath>

#include "weft/autograd/functions.h"

namespace weft {
namespace {

constexpr int64_t kDim = 6, kTokens = 5;

struct Result {
  std::vector<double> out = {}, reports = {};
  std::vector<std::vector<double>> grads = {};
};

Result run(RoutedResidualOptions options, int64_t sublayers, DType dtype) {
  options.query_std = 0.7;
  auto residual = options({.dim = kDim, .sublayers = sublayers}, Rng(1));
  residual->set_compute(dtype);
  Var x = variable(cast(normal_init({1, kTokens, kDim}, Rng(2), 1.0), dtype).value());
  Tokens tokens(plain_tokens(1, kTokens), {.takes_diagnostics = true});
  auto stream = residual->start(x, tokens);
  for (int64_t l = 0; l < sublayers; ++l) {
    Var w = cast(normal_init({kDim, kDim}, Rng(3)[static_cast<uint64_t>(l)], 0.5), dtype);
    stream->write(tanh(matmul(stream->input(), w)));
  }
  Var y = stream->output();
  Var factors = cast(normal_init({1, kTokens, kDim}, Rng(4), 1.0), dtype);
  const int all[] = {0, 1, 2};
  backward(sum(cast(y * factors, kF64), all));
  auto numbers = [](const Tensor& t) { return cast(Var(t), kF64).value().to_vector<double>(); };
  Result result{.out = numbers(y.value())};
  result.grads.push_back(numbers(x.grad()));
  for (const NamedParam& p : residual->params()) result.grads.push_back(numbers(p.param->grad()));
  for (const Tokens::Report& r : tokens.reports()) result.reports.push_back(r.sum / r.count);
  return result;
}

void expect_near(const std::vector<double>& got, const std::vector<double>& want, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double scale = 1;  // inputs are of that size; a gradient may be 0 but for rounding
  for (double x : want) scale = std::max(scale, std::abs(x));
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], tolerance * scale) << what << " " << i;
}

TEST(TwoPhases, AreTheSameStream) {
  for (DType dtype : {kF64, kF32})
    for (ResidualSources sources : {ResidualSources::outputs, ResidualSources::block_sums, ResidualSources::states})
      for (ResidualCombine combine : {ResidualCombine::replace, ResidualCombine::add})
        for (bool has_key_norm : {true, false})
          for (int64_t blocks : {1, 3, 9}) {
            if (sources != ResidualSources::block_sums && blocks > 1) continue;
            RoutedResidualOptions options{
                .sources = sources, .combine = combine, .blocks = blocks, .has_key_norm = has_key_norm, .group = 1};
            Result direct = run(options, 9, dtype);
            for (int64_t group : {0, 2, 4, 20}) {
              options.group = group;
              Result phased = run(options, 9, dtype);
              std::string what =
                  str(dtype, " sources ", static_cast<int>(sources), " combine ", static_cast<int>(combine), " norm ",
                      has_key_norm, " blocks ", blocks, " group ", group);
              const double tolerance = dtype == kF64 ? 1e-12 : 1e-5;
              expect_near(phased.out, direct.out, tolerance, what);
              expect_near(phased.reports, direct.reports, 1e-6, what + " reports");
              ASSERT_EQ(phased.grads.size(), direct.grads.size());
              for (size_t i = 0; i < direct.grads.size(); ++i)
                expect_near(phased.grads[i], direct.grads[i], 10 * tolerance, str(what, " gradient ", i));
            }
          }
}

// With w = 0 a router gives the mean of its sources, so a loop over blocks says what the stream is.
TEST(Blocks, AreAsManyAsAskedAndTheLastAreShorter) {
  auto mean_of = [](const std::vector<double>& sources) {
    double sum = 0;
    for (double s : sources) sum += s;
    return sum / static_cast<double>(sources.size());
  };
  for (int64_t sublayers = 1; sublayers <= 12; ++sublayers)
    for (int64_t blocks = 1; blocks <= sublayers; ++blocks)
      for (int64_t group : {0, 1, 3})
        for (bool is_added : {false, true}) {
          RoutedResidualOptions options{.sources = ResidualSources::block_sums, .blocks = blocks, .group = group};
          if (is_added) options.combine = ResidualCombine::add;
          auto residual = options({.dim = 1, .sublayers = sublayers}, Rng(1));
          residual->set_compute(kF64);
          Tokens tokens(plain_tokens(1, 1));
          auto stream = residual->start(Tensor::full({1, 1, 1}, 0.7, kF64), tokens);
          std::vector<double> sources{0.7};
          double partial = 0, sum = 0.7;
          int64_t inside = 0, left = blocks;  // sublayers of the running block, blocks from it on
          const int64_t length = (sublayers + blocks - 1) / blocks;
          auto expected = [&] {
            std::vector<double> all = sources;
            if (inside > 0 && !is_added) all.push_back(partial);
            return mean_of(all) + (is_added ? sum : 0);
          };
          const std::string what = str(sublayers, " sublayers in ", blocks, " blocks, group ", group, is_added);
          for (int64_t l = 0; l < sublayers; ++l) {
            Var h = stream->input();
            EXPECT_NEAR(h.value().item(), l == 0 ? 0.7 : expected(), 1e-12) << what << ", sublayer " << l;
            Var y = sin(h + static_cast<double>(l));
            stream->write(y);
            partial += y.value().item(), sum += y.value().item(), ++inside;
            const bool is_end = inside == length || sublayers - l - 1 == left - 1;
            if (!is_end) continue;
            sources.push_back(partial);
            partial = 0, inside = 0, --left;
          }
          EXPECT_EQ(std::ssize(sources), blocks + 1) << what;
          EXPECT_NEAR(stream->output().value().item(), is_added ? sum : mean_of(sources), 1e-12) << what;
        }
}

// A sublayer whose output nothing uses gives no gradient, and the others theirs.
TEST(TwoPhases, GoWithoutAGradientOfAQuery) {
  for (int64_t group : {1, 4}) {
    RoutedResidualOptions options{.query_std = 0.5, .group = group};
    auto residual = options({.dim = kDim, .sublayers = 4}, Rng(1));
    Var x = variable(normal_init({1, kTokens, kDim}, Rng(2), 1.0));
    Tokens tokens(plain_tokens(1, kTokens));
    auto stream = residual->start(x, tokens);
    Var kept;
    for (int64_t l = 0; l < 4; ++l) {
      Var h = stream->input();
      if (l == 2) kept = h;
      stream->write((l == 1 ? h.detach() : h) * 0.5);
    }
    const int all[] = {0, 1, 2};
    backward(sum(square(kept), all));
    for (double g : cast(Var(x.grad()), kF64).value().to_vector<double>()) EXPECT_TRUE(std::isfinite(g));
    EXPECT_TRUE(x.grad().defined());
  }
}

}  // namespace
}  // namespace weft
