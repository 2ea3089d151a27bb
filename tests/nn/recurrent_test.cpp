// Recurrences as layers see them: in decoding, and over the layers of a model. The conformance suite runs every recurrent mixer.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/recurrence.h"
#include "weft/models/language_model.h"

namespace weft {
namespace {

using test::error_of;
using test::random_normal;

constexpr int64_t kBatch = 2, kTokens = 13, kHeads = 2, kWidth = 4;

// Rows of documents that begin every 5 and every 4 tokens. Where `is_padding` says so a token is padding, and the next one has its position.
TokenData packed(int64_t batch, int64_t num_tokens, const std::function<bool(int64_t b, int64_t t)>& is_padding) {
  std::vector<int32_t> positions, documents;
  for (int64_t b = 0; b < batch; ++b)
    for (int32_t t = 0, position = 0; t < num_tokens; ++t) {
      const bool is_pad = is_padding(b, t);
      positions.push_back(position);
      documents.push_back(is_pad ? -1 : position / (5 - static_cast<int32_t>(b)));
      position += is_pad ? 0 : 1;
    }
  return {.positions = Tensor::from(std::span<const int32_t>(positions), {batch, num_tokens}),
          .documents = Tensor::from(std::span<const int32_t>(documents), {batch, num_tokens})};
}

TokenData part_of(const TokenData& all, int64_t begin, int64_t end) {
  auto part = [&](const Tensor& t) {
    return t.defined() ? cast(cast(Var(t.slice(1, begin, end)), kF64), kI32).value() : t;
  };
  return {.positions = part(all.positions), .documents = part(all.documents)};
}

struct Layers {
  Var q, k, v, g, beta;
  explicit Layers(const Var& x_BTD) {
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1);
    q = reshape(x_BTD, {B, T, kHeads, kWidth});
    k = sin(q), v = cos(q * 2.0), g = log_sigmoid(q + 1.0), beta = sigmoid(sum(q, -1));
  }
};

// What both recurrences return for x, one beside the other.
Var both(Tokens& tokens, const Var& x_BTD) {
  const Layers l(x_BTD);
  Var delta = tokens.recur({.q_BTGK = l.q, .k_BTGK = l.k * 0.5, .v_BTHV = l.v, .log_decay = l.g, .beta = l.beta});
  const Var parts[] = {reshape(delta, x_BTD.shape()), tokens.decay_scan(x_BTD, reshape(l.g, x_BTD.shape()))};
  return concatenate(parts, -1);
}

std::vector<double> numbers(const Var& x) { return cast(x, kF64).value().to_vector<double>(); }

TEST(Recurrent, DecodesInStepsOfAnySize) {
  NoGrad no_grad;
  const Tensor x = random_normal({kBatch, kTokens, kHeads * kWidth}, "x", kF64);
  for (int64_t step : {1, 2, 5, 13})
    for (bool has_documents : {false, true}) {
      // In a step padding is last: in row 0 of every second one, in row 1 of the first.
      auto is_padding = [&](int64_t b, int64_t t) {
        const bool is_last = (t + 1) % step == 0 || t + 1 == kTokens;
        return is_last && (b == 0 ? t / step % 2 == 1 : t < step);
      };
      const TokenData data = has_documents ? packed(kBatch, kTokens, is_padding) : plain_tokens(kBatch, kTokens);
      Tokens all(data);
      const std::vector<double> expected = numbers(both(all, x));
      auto cache = make_cache(kBatch, kTokens);
      std::vector<Var> parts;
      int64_t bytes = 0;
      for (int64_t begin = 0; begin < kTokens; begin += step) {
        const int64_t end = std::min(begin + step, kTokens);
        Tokens some(part_of(data, begin, end), {.cache = cache});
        parts.push_back(both(some, x.slice(1, begin, end)));
        some.finish_decode_step();
        if (begin == 0) bytes = cached_bytes(*cache);
      }
      EXPECT_EQ(cached_bytes(*cache), bytes) << "the state does not grow";
      EXPECT_EQ(bytes, kBatch * 8 * (kHeads * kWidth * kWidth + kHeads * kWidth));
      const std::vector<double> got = numbers(concatenate(parts, 1));
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-12) << step << ", number " << i;
    }
}

// Short convolutions and windows beside the state, with documents and without: memory after 20 tokens is memory after 300.
TEST(Recurrent, DecodesWithoutABoundOnTheLength) {
  NoGrad no_grad;
  constexpr int64_t kLong = 300, kDim = 8;
  const MixerMaker mixers[] = {DeltaOptions{.decay = DeltaDecay::head, .heads = 2},
                               HgrnOptions{.heads = 0},
                               GlaOptions{.heads = 2, .kernel = 4},
                               LinearAttentionOptions{.heads = 2, .kernel = 3},
                               RetnetOptions{.heads = 2, .kernel = 4},
                               LightningOptions{.heads = 2, .kernel = 2},
                               HgrnOptions{.heads = 2, .kernel = 4},
                               HgrnOptions{.heads = 0, .kernel = 5},
                               GatedSlotsOptions{.heads = 4, .kv_heads = 2, .slots = 3, .kernel = 4},
                               AdditiveSlotsOptions{.heads = 2, .kernel = 4},
                               SoftmaxOptions{.heads = 2, .window = 3},
                               AdditiveSlotsOptions{.kind = SlotKind::agent, .heads = 2, .slots = 3},
                               FlowOptions{.heads = 2},
                               RalaOptions{.heads = 2},
                               MirasOptions{.kind = MirasKind::moneta, .heads = 2, .chunk = 5},
                               MirasOptions{.kind = MirasKind::yaad, .heads = 2, .chunk = 7},
                               MirasOptions{.kind = MirasKind::memora, .heads = 2, .chunk = 5},
                               PoolingOptions{.heads = 2},
                               PoolingOptions{.kind = PoolingKind::broadcast, .heads = 2}};
  const TokenData with_documents = packed(1, kLong, [](int64_t, int64_t t) { return t % 20 == 19; });
  for (const MixerMaker& make : mixers)
    for (const TokenData& data : {plain_tokens(1, kLong), with_documents}) {
      auto mixer = make({.dim = kDim, .context = 16}, Rng(3));
      mixer->set_compute(kF64);
      const Tensor x = random_normal({1, kLong, kDim}, "x", kF64);
      Tokens all(data);
      const std::vector<double> expected = numbers(mixer->forward(x, all));
      auto cache = make_cache(1, 0);
      int64_t bytes = 0;
      std::vector<Var> parts;
      for (int64_t t = 0, step = 3; t < kLong; t += step, step = 1) {
        Tokens some(part_of(data, t, t + step), {.cache = cache});
        parts.push_back(mixer->forward(x.slice(1, t, t + step), some));
        some.finish_decode_step();
        if (t == 80) bytes = cached_bytes(*cache);
      }
      EXPECT_EQ(cached_bytes(*cache), bytes);
      const std::vector<double> got = numbers(concatenate(parts, 1));
      for (size_t i = 0; i < got.size(); ++i) {
        const bool is_padding = data.documents.defined() && data.documents.data<int32_t>()[i / kDim] < 0;
        ASSERT_NEAR(got[i], is_padding ? got[i] : expected[i], 1e-12) << "number " << i;
      }
    }
  Tokens tokens(plain_tokens(1, 1), {.cache = make_cache(1, 0)});
  Var x = random_normal({1, 1, 1, 2}, "x");
  EXPECT_EQ(error_of([&] { tokens.attend(x, x, x); }, {"attend: all tokens of a decoding without a bound", "window"}),
            "");
  EXPECT_EQ(error_of([&] { tokens.seen(0, 1, 1); }, {"gathered: all tokens of a decoding without a bound", "window"}),
            "");
}

// Of two rows whose documents and padding do not stand at the same places.
TEST(Recurrent, CountsKeysWithoutABoundOnTheLength) {
  constexpr int64_t kLong = 120, kStep = 3;
  const TokenData with_documents =
      packed(2, kLong, [](int64_t b, int64_t t) { return t % kStep == kStep - 1 && (t / kStep + b) % 4 == 0; });
  for (const TokenData& data : {plain_tokens(2, kLong), with_documents})
    for (int64_t window : {0, 1, 3, 50}) {
      Tokens all(data);
      auto expected = all.visible_keys(window).to_vector<float>();
      auto cache = make_cache(2, 0);
      for (int64_t t = 0; t < kLong; t += kStep) {
        Tokens some(part_of(data, t, t + kStep), {.cache = cache});
        auto got = some.visible_keys(window).to_vector<float>();
        some.finish_decode_step();
        for (size_t i = 0; i < got.size(); ++i) {
          const auto b = static_cast<int64_t>(i) / kStep, at = b * kLong + t + static_cast<int64_t>(i) % kStep;
          ASSERT_EQ(got[i], expected[static_cast<size_t>(at)]) << window << ", row " << b << ", token " << t;
        }
      }
    }
}

// The last inputs of a convolution, with room for as many again, and the state as without it.
TEST(Recurrent, ShortConvolutionsCacheTheTailOfTheirInputs) {
  NoGrad no_grad;
  constexpr int64_t kDim = 8, kKernel = 4;
  auto bytes_of = [&](const MixerMaker& make) {
    auto mixer = make({.dim = kDim, .context = 16, .rotary = std::nullopt}, Rng(3));
    auto cache = make_cache(1, 0);
    for (int64_t t = 0; t < 9; ++t) {
      Tokens some(part_of(plain_tokens(1, 9), t, t + 1), {.cache = cache});
      mixer->forward(random_normal({1, 1, kDim}, "x"), some);
      some.finish_decode_step();
    }
    return cached_bytes(*cache);
  };
  struct Row {
    MixerMaker without, with;
    int64_t channels;  // of all convolutions
  };
  const Row rows[] = {
      {GlaOptions{.heads = 2}, GlaOptions{.heads = 2, .kernel = kKernel}, 2 * kDim},
      {LinearAttentionOptions{.heads = 2}, LinearAttentionOptions{.heads = 2, .kernel = kKernel}, 3 * kDim},
      {RetnetOptions{.heads = 2}, RetnetOptions{.heads = 2, .kernel = kKernel}, 4 * kDim},
      {LightningOptions{.heads = 2}, LightningOptions{.heads = 2, .kernel = kKernel}, 3 * kDim},
      {HgrnOptions{.heads = 2}, HgrnOptions{.heads = 2, .kernel = kKernel}, 3 * kDim},
      {HgrnOptions{.heads = 0}, HgrnOptions{.heads = 0, .kernel = kKernel}, 2 * kDim},
      {GatedSlotsOptions{.heads = 4, .kv_heads = 2}, GatedSlotsOptions{.heads = 4, .kv_heads = 2, .kernel = kKernel},
       2 * kDim},
      {AdditiveSlotsOptions{.heads = 2}, AdditiveSlotsOptions{.heads = 2, .kernel = kKernel}, 3 * kDim}};
  for (size_t i = 0; i < std::size(rows); ++i)
    EXPECT_EQ(bytes_of(rows[i].with) - bytes_of(rows[i].without), 4 * 2 * (kKernel - 1) * rows[i].channels)
        << "row " << i;
}

TEST(Recurrent, RefusesWhatIsTheTokensBusiness) {
  Tokens tokens(plain_tokens(1, 3));
  Var x = random_normal({1, 3, 1, 2}, "x");
  RecurrenceVars in{.q_BTGK = x, .k_BTGK = x, .v_BTHV = x, .state = Tensor::zeros({1, 1, 2, 2})};
  EXPECT_EQ(error_of([&] { tokens.recur(in); }, {"recur: a state or documents of the caller's", "leave them out"}), "");
  in.state = {}, in.v_BTHV = random_normal({1, 2, 1, 2}, "v");
  EXPECT_EQ(error_of([&] { tokens.recur(in); }, {"recur: values are", "[1, 2, 1, 2]", "the tokens are [1, 3]"}), "");
  EXPECT_EQ(error_of(
                [&] {
                  tokens.decay_scan(random_normal({1, 2, 4}, "y"), Tensor::zeros({4}));
                },
                {"decay_scan: values are", "the tokens are [1, 3]"}),
            "");
}

TEST(Recurrent, LayersOfAModelShareTheirBounds) {
  LanguageModel model({.vocab = 11,
                       .dim = 8,
                       .layers = 4,
                       .context = 6,
                       .mixers = {SoftmaxOptions{.heads = 2}, HgrnOptions{.heads = 2}, HgrnOptions{.heads = 0}},
                       .pattern = {0, 1, 2, 1},
                       .ffn = {.hidden = 8}},
                      Rng(1));
  std::vector<NamedParam> bounds;
  for (const NamedParam& p : model.params())
    if (p.name.find("bounds") != std::string::npos) bounds.push_back(p);
  ASSERT_EQ(bounds.size(), 1u);
  EXPECT_EQ(bounds[0].name, "layers.1.mixer.bounds");
  EXPECT_EQ(bounds[0].param->value().shape(), (Shape{4 * 8}));
  const Tensor ids = Tensor::from<int32_t>({1, 5, 2, 7, 3, 9}, {1, 6});
  Tokens tokens(plain_tokens(1, 6), {.is_training = true});
  backward(model.loss(ids, ids, tokens, 1.0).loss);
  const Tensor grad = bounds[0].param->grad();
  ASSERT_TRUE(grad.defined());
  // Rows of the softmax over layers: the gradients of a channel add up to 0, and every layer's row has some.
  for (int64_t d = 0; d < 8; ++d) {
    double sum = 0;
    for (int64_t l = 0; l < 4; ++l) sum += static_cast<double>(grad.data<float>()[l * 8 + d]);
    EXPECT_NEAR(sum, 0, 1e-6);
  }
  for (int64_t l = 0; l < 4; ++l) EXPECT_NE(grad.data<float>()[l * 8], 0.0f);
}

// Three times the forward's: a state is written and read, with the delta rule also asked for what it knows.
TEST(Recurrent, FlopsAreThoseOfTheState) {
  const MixerArgs args{.dim = 16, .context = 16};
  for (double keys : {8.0, 4096.0}) {
    EXPECT_EQ(GlaOptions{.heads = 2}(args, Rng(1))->flops_per_token(keys), 3 * 4 * 2 * 4 * 8);
    EXPECT_EQ((DeltaOptions{.heads = 2}(args, Rng(1))->flops_per_token(keys)), 3 * 6 * 2 * 8 * 8);
    EXPECT_EQ(HgrnOptions{.heads = 0}(args, Rng(1))->flops_per_token(keys), 3 * 2 * 16);
  }
}

void expect_finite(const Var& x, const std::string& what) {
  if (!x.defined()) return;
  for (double v : numbers(x)) ASSERT_TRUE(std::isfinite(v)) << what;
}

// A gate that is 0, or far below, forgets everything before, without infinities.
TEST(Recurrent, AClosedGateStaysFinite) {
  for (const char* name : {"gla", "gated_delta_net", "kda", "kda_safe", "mamba2", "hgrn2", "hgrn", "gsa", "gla_conv",
                           "hgrn2_conv", "hgrn_conv", "gsa_conv", "gsa_grouped"}) {
    SCOPED_TRACE(name);
    auto mixer = mixer_row(name)({.dim = 16, .context = 16, .layer = 0, .layers = 2}, Rng(3));
    Var x = variable((Var(random_normal({1, 9, 16}, "x")) * 1e6).value());
    Tokens tokens(plain_tokens(1, 9), {.is_training = true});
    Var y = mixer->forward(x, tokens);
    backward(sum_all(y));
    expect_finite(y, "outputs");
    expect_finite(x.grad(), "the gradient of x");
    for (const NamedParam& p : mixer->params()) expect_finite(p.param->grad(), p.name);
  }
}

Var param_of(Mixer& mixer, const std::string& name) {
  for (const NamedParam& p : mixer.params())
    if (p.name == name) return *p.param;
  ADD_FAILURE() << name;
  return {};
}

// Of a layer in a model of kLayers: every M is 0 but that of layer 0, and small differences from channel to channel.
std::unique_ptr<Mixer> hgrn_with(double first, int64_t layer, DType dtype) {
  constexpr int64_t kLayers = 24, kDim = 8;
  auto mixer = HgrnOptions{.heads = 0}({.dim = kDim, .context = 16, .layer = layer, .layers = kLayers}, Rng(3));
  mixer->set_compute(dtype);
  std::vector<double> bounds(kLayers * kDim);
  for (size_t i = 0; i < bounds.size(); ++i) bounds[i] = i < kDim ? first : 0.05 * std::sin(static_cast<double>(i));
  for (const NamedParam& p : mixer->params())
    if (p.name == "bounds") {
      Tensor value = p.param->value();
      assign(value, cast(Var(Tensor::from(std::span<const double>(bounds), {kLayers * kDim})), value.dtype()).value());
    }
  return mixer;
}

TEST(Recurrent, BoundsNearOneStayFinite) {
  for (double first : {-14.0, -60.0})
    for (int64_t layer : {22, 23}) {
      SCOPED_TRACE(testing::Message() << first << ", layer " << layer);
      auto mixer = hgrn_with(first, layer, kF32);
      Var x = variable(random_normal({1, 9, 8}, "x"));
      Tokens tokens(plain_tokens(1, 9), {.is_training = true});
      Var y = mixer->forward(x, tokens);
      backward(sum_all(y));
      expect_finite(y, "outputs");
      expect_finite(x.grad(), "the gradient of x");
      for (const NamedParam& p : mixer->params()) expect_finite(p.param->grad(), p.name);
    }
}

TEST(Recurrent, BoundsAreSumsOfShares) {
  NoGrad no_grad;
  for (double first : {-1.0, 0.5})
    for (int64_t layer : {1, 7, 23}) {
      auto mixer = hgrn_with(first, layer, kF64);
      auto of = [&](const std::string& name) { return param_of(*mixer, name); };
      Var x = random_normal({1, 9, 8}, "x", kF64);
      auto linear = [&](const Var& in, const std::string& name) {
        return matmul(in, of(name + ".weight"), {.transpose_b = true});
      };
      Var c = sum(slice(softmax(reshape(of("bounds"), {24, 8}), 0), 0, 1, layer + 1), 0);
      Var f = expand(c, x.shape()) + (1.0 - c) * sigmoid(linear(x, "decay"));
      Tokens tokens(plain_tokens(1, 9)), others(plain_tokens(1, 9));
      Var h = tokens.decay_scan((1.0 - f) * silu(linear(x, "v")), log(f));
      Var expected = linear(rms_norm(h, of("norm.weight"), 1e-5) * silu(linear(x, "gate")), "out");
      const std::vector<double> want = numbers(expected), got = numbers(mixer->forward(x, others));
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-12) << layer << ", number " << i;
    }
}

// RetNet's rotation is a part of it; mixers that never rotate may have heads of any width.
TEST(Recurrent, RotationIsTheMixersOwn) {
  NoGrad no_grad;
  const Tensor x = random_normal({1, 7, 16}, "x");
  auto run = [&](const MixerMaker& make, const std::optional<ops::RotaryOptions>& rotary) {
    auto mixer = make({.dim = 16, .context = 16, .rotary = rotary}, Rng(3));
    Tokens tokens(plain_tokens(1, 7));
    return numbers(mixer->forward(x, tokens));
  };
  const MixerMaker retnet = RetnetOptions{.heads = 2};
  EXPECT_EQ(run(retnet, ops::RotaryOptions()), run(retnet, {}));
  EXPECT_EQ(run(retnet, ops::RotaryOptions()), run(retnet, ops::RotaryOptions{.base = 500, .fraction = 0.5}));
  const MixerArgs of_15{.dim = 15, .context = 16};
  EXPECT_EQ(error_of([&] { RetnetOptions{.heads = 3}(of_15, Rng(3)); }, {"retnet: heads of width 5", "even"}), "");
  const MixerMaker unrotated[] = {LinearAttentionOptions{.heads = 3}, FlowOptions{.heads = 3},
                                  LinearAttentionOptions{.feature_map = FeatureMap::taylor2, .heads = 3}};
  for (const MixerMaker& make : unrotated) {
    Tokens tokens(plain_tokens(1, 7));
    EXPECT_EQ(make(of_15, Rng(3))->forward(random_normal({1, 7, 15}, "x"), tokens).shape(), (Shape{1, 7, 15}));
  }
}

}  // namespace
}  // namespace weft
