// Parts of your own in the `weft` command, one of each kind: a norm, a feed-forward network, a residual stream, a mixture of heads, and
// attention with a mask and a score.
//   own_parts check --mixer norm.cube_root     the conformance suite on a part; the others: ffn.relu2, residual.damped, heads.talking,
//                                              attention.dilated
//   own_parts bench train --mixer ffn.relu2    a step with it beside one without
//   own_parts train run.txtpb                  with  ffn { custom { type: "relu2" number { key: "times" value: 3 } } }  in the config
#include <cmath>
#include <concepts>

#include "weft/nn/attend_with.h"
#include "weft/weft.h"

namespace {

using weft::Rng;
using weft::Var;

double number(const std::map<std::string, double>& numbers, const std::string& key, double otherwise) {
  auto found = numbers.find(key);
  return found == numbers.end() ? otherwise : found->second;
}

// x / (mean |x|^3)^(1/3), with a gain per feature.
class CubeRootNorm final : public weft::OwnNorm {
 public:
  explicit CubeRootNorm(const weft::NormArgs& args) : eps_(args.eps), gain_(weft::Tensor::full({args.dim}, 1)) {
    name_parts({{"gain", gain_}});
  }
  Var forward(const Var& x) const override {
    Var size = weft::abs(x);
    Var mean = weft::mean(size * size * size, -1, true) + eps_;
    return x * weft::exp(weft::log(mean) * (-1.0 / 3)) * weft::cast(Var(gain_), x.dtype());
  }

 private:
  double eps_;
  weft::Param gain_;
};

// down(relu(up x)^2), `times` as wide as the model.
class SquaredRelu final : public weft::Ffn {
 public:
  SquaredRelu(const weft::FfnArgs& args, Rng rng)
      : up_(args.dim, hidden(args), rng["up"], {.std = args.std}),
        down_(hidden(args), args.dim, rng["down"], {.std = args.out_std}) {
    name_parts({{"up", up_}, {"down", down_}});
  }
  Var forward(const Var& x_BTD, weft::Tokens&) override { return down_(weft::square(weft::relu(up_(x_BTD)))); }

 private:
  static int64_t hidden(const weft::FfnArgs& args) {
    return static_cast<int64_t>(number(args.numbers, "times", 4)) * args.dim;
  }
  weft::Linear up_, down_;
};

// Each sublayer reads the sum so far, whose older part is damped by a learned factor per feature, at first 1.
class Damped final : public weft::Residual {
 public:
  explicit Damped(const weft::ResidualArgs& args) : factor_(weft::Tensor::full({args.dim}, 1)) {
    name_parts({{"factor", factor_}});
  }
  std::unique_ptr<weft::ResidualStream> start(const Var& x_BTD, weft::Tokens&) override {
    struct Stream final : weft::ResidualStream {
      Stream(Var start, Var by) : sum(std::move(start)), factor(std::move(by)) {}
      Var input() override { return sum; }
      void write(const Var& y) override { sum = sum * factor + y; }
      Var output() override { return sum; }
      Var sum, factor;
    };
    return std::make_unique<Stream>(x_BTD, weft::cast(Var(factor_), x_BTD.dtype()));
  }

 private:
  weft::Param factor_;
};

// Talking heads: outputs of heads are mixed by a learned matrix, at first the identity.
class TalkingHeads final : public weft::OwnHeadMixture {
 public:
  explicit TalkingHeads(const weft::HeadMixtureArgs& args) : mix_(weft::Tensor::zeros({args.heads, args.heads})) {
    for (int64_t h = 0; h < args.heads; ++h) {
      weft::Tensor one = mix_.value().slice(0, h, h + 1).slice(1, h, h + 1);
      weft::assign(one, weft::Tensor::full({1, 1}, 1));
    }
    name_parts({{"mix", mix_}});
  }
  Var forward(const Var& y_BTHV, const Var&, weft::Tokens&) override {
    Var y_BTVH = weft::transpose(y_BTHV, 2, 3);
    return weft::transpose(weft::linear(y_BTVH, weft::cast(Var(mix_), y_BTHV.dtype())), 2, 3);
  }

 private:
  weft::Param mix_;
};

// Every second key: even heads see those at even distances, odd heads the others.
struct Dilated {
  template <class I>
  auto keep(int64_t, int64_t head, weft::ops::Token<I> q, weft::ops::Token<I> k) const {
    return ((q.position - k.position + static_cast<int32_t>(head)) & 1) == 0;
  }
  weft::ops::Cover cover(int64_t, int64_t, weft::ops::TokenRange, weft::ops::TokenRange) const {
    return weft::ops::Cover::partial;
  }
};

// s / (1 + |s| / cap): a soft cap without exponentials.
struct SoftSign {
  template <std::floating_point T>
  T value(T s, int64_t, int64_t, weft::ops::Token<int32_t>, weft::ops::Token<int32_t>) const {
    return s / (1 + std::abs(s) / T(cap));
  }
  template <std::floating_point T>
  T slope(T s, int64_t, int64_t, weft::ops::Token<int32_t>, weft::ops::Token<int32_t>) const {
    const T below = 1 + std::abs(s) / T(cap);
    return 1 / (below * below);
  }
  double cap = 8;
};

// The last two in plain float64 loops: what the check `reference` compares with.
std::vector<double> dilated_loops(const weft::MixerArgs&, const weft::reference::Parameters& p,
                                  const weft::Tensor& x_BTD, const weft::TokenData& data) {
  namespace ref = weft::reference;
  const ref::Sequence s(x_BTD, data);
  const int64_t H = 4, K = s.D / H;
  ref::Numbers x = ref::values(x_BTD);
  ref::Numbers q = ref::linear(x, s.D, p, "q"), k = ref::linear(x, s.D, p, "k"), v = ref::linear(x, s.D, p, "v");
  ref::rotate(q, s, H, K);
  ref::rotate(k, s, H, K);
  ref::Numbers y = ref::mix(s, H, H, K, v, [&](int64_t b, int64_t i, int64_t h) {
    ref::Numbers scores = ref::scores(s, H, H, K, q, k, 1 / std::sqrt(static_cast<double>(K)), 0, b, i, h);
    const double none = -std::numeric_limits<double>::infinity();
    for (int64_t j = 0; j < s.T; ++j) {
      double& score = scores[static_cast<size_t>(j)];
      if ((i + j + h) % 2 != 0) score = none;
      if (score != none) score = score / (1 + std::abs(score) / 8);
    }
    return ref::softmax(scores);
  });
  return ref::linear(y, H * K, p, "out");
}

}  // namespace

int main(int argc, char** argv) {
  weft::cli::Extensions own;
  own.norms = {{.name = "cube_root",
                .make = [](const weft::NormArgs& args, Rng) { return std::make_unique<CubeRootNorm>(args); }}};
  own.ffns = {{.name = "relu2",
               .make = [](const weft::FfnArgs& args, Rng rng) { return std::make_unique<SquaredRelu>(args, rng); },
               .numbers = {{"times", 2}}}};
  own.residuals = {
      {.name = "damped", .make = [](const weft::ResidualArgs& args, Rng) { return std::make_unique<Damped>(args); }}};
  own.head_mixtures = {{.name = "talking", .make = [](const weft::HeadMixtureArgs& args, Rng) {
                          return std::make_unique<TalkingHeads>(args);
                        }}};
  own.attentions = {{.name = "dilated", .make = [](const weft::cli::AttentionArgs& args) {
                       return weft::functor_attention(Dilated{}, SoftSign{number(args.numbers, "cap", 8)});
                     }}};
  own.references = {{"attention.dilated", dilated_loops}};
  return weft::cli::main(argc, argv, own);
}
