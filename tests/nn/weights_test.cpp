// Weights of softmax attention against their equations in plain loops (tests/reference/mixers/softmax.h), option by option.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/reference/mixers/softmax.h"
#include "tests/support/random.h"
#include "weft/nn/mixers.h"

namespace weft {
namespace {

using reference::Parameters;
using test::random_normal;

constexpr int64_t kBatch = 2, kTokens = 9, kDim = 8;

// Off its initial values, in f64, without rotation, whose tables are f32.
std::unique_ptr<Mixer> mixer_of(const MixerMaker& make, const MixerArgs& args) {
  auto mixer = make(args, Rng(1));
  for (const NamedParam& p : mixer->params())
    p.param->set_value(add(p.param->value(), random_normal(p.param->value().shape(), p.name) * 0.3).value());
  mixer->set_compute(kF64);
  return mixer;
}
MixerArgs plain_args() {
  MixerArgs args{.dim = kDim, .context = 12, .layer = 1, .layers = 3, .std = 0.4, .out_std = 0.4};
  args.rotary.reset();
  return args;
}

struct Rows {
  const char* name;
  TokenData data;
};
std::vector<Rows> all_rows() {
  TokenData packed = plain_tokens(kBatch, kTokens, 3), padded = packed;
  packed.documents = Tensor::from<int32_t>({0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 2, 2, 2, 2, 3, 3}, {kBatch, kTokens});
  padded.documents =
      Tensor::from<int32_t>({0, 0, 0, 1, 1, 1, 1, -1, -1, -1, 4, 4, 4, -1, -1, 9, 9, 9}, {kBatch, kTokens});
  packed.document_positions =
      Tensor::from<int32_t>({0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 0, 1, 0, 1, 2, 3, 0, 1}, {kBatch, kTokens});
  padded.document_positions =
      Tensor::from<int32_t>({5, 6, 7, 0, 1, 2, 3, 0, 0, 0, 8, 9, 10, 0, 0, 0, 1, 2}, {kBatch, kTokens});
  return {{"plain", plain_tokens(kBatch, kTokens)},
          {"late", plain_tokens(kBatch, kTokens, 41)},
          {"packed", packed},
          {"padded", padded}};
}

// The largest difference of what a mixer makes of tokens (not of padding), in training if it drops weights, to the plain loops.
double difference(const SoftmaxOptions& o, const TokenData& data) {
  const MixerArgs args = plain_args();
  auto mixer = mixer_of(o, args);
  Parameters parameters;
  for (const NamedParam& p : mixer->params()) parameters[p.name] = p.param->value();
  for (const NamedBuffer& b : mixer->buffers()) parameters[b.name] = cast(Var(b.buffer->value()), kF64).value();
  Tensor x = random_normal({kBatch, kTokens, kDim}, "x", kF64);
  Tokens tokens(data, {.is_training = o.dropout > 0, .rng = Rng(5)});
  auto got = mixer->forward(x, tokens).value().to_vector<double>();
  reference::SoftmaxMixer loops(args, parameters, x, data);
  if (o.dropout > 0) {
    Scope scope(mixer->name());
    loops.kept = [&, rng = tokens.random("attention")](int64_t b, int64_t h, int64_t i, int64_t j) {
      auto at = [&](int64_t t) {
        return static_cast<uint32_t>(tokens.cpu_positions()[static_cast<size_t>(b * kTokens + t)]);
      };
      auto bits = philox({at(i), at(j), static_cast<uint32_t>(h), static_cast<uint32_t>(b)}, rng.key());
      return static_cast<double>(uniform_from_bits(bits[0])) < o.dropout ? 0 : 1 / (1 - o.dropout);
    };
  }
  auto want = loops.run(o);
  EXPECT_EQ(got.size(), want.size());
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (tokens.is_padding(static_cast<int64_t>(i) / kDim)) continue;
    const double d = std::abs(got[i] - want[i]);
    worst = std::isnan(d) ? HUGE_VAL : std::max(worst, d);
  }
  return worst;
}

std::vector<std::pair<std::string, WeightOptions>> all_weights() {
  using enum WeightKind;
  std::vector<std::pair<std::string, WeightOptions>> all{{"softmax", {}}, {"signed", {.kind = signed_softmax}}};
  for (bool is_divided : {false, true}) {
    const char* end = is_divided ? " over sum" : "";
    for (SigmoidBias bias : {SigmoidBias::context, SigmoidBias::row, SigmoidBias::none})
      all.emplace_back(str("sigmoid ", static_cast<int>(bias), end),
                       WeightOptions{.kind = sigmoid, .bias = bias, .is_divided_by_sum = is_divided});
    for (double power : {0.0, 0.5, 1.0, 2.0})
      all.emplace_back(str("relu ", power, end),
                       WeightOptions{.kind = relu, .power = power, .is_divided_by_sum = is_divided});
    all.emplace_back(str("elu1", end), WeightOptions{.kind = elu1, .is_divided_by_sum = is_divided});
    all.emplace_back(str("taylor2", end), WeightOptions{.kind = taylor2, .is_divided_by_sum = is_divided});
  }
  return all;
}

TEST(Weights, OfEveryKindAreTheirEquation) {
  for (const auto& [name, weights] : all_weights())
    for (int64_t window : {0, 3})
      for (const Rows& rows : all_rows())
        for (int64_t kv_heads : {4, 2, 1})
          for (double dropout : {0.0, 0.3}) {
            SoftmaxOptions o{
                .heads = 4, .kv_heads = kv_heads, .window = window, .dropout = dropout, .weights = weights};
            const std::string what = str(name, ", window ", window, ", ", rows.name, ", kv_heads ", kv_heads);
            EXPECT_LT(difference(o, rows.data), 1e-11) << what << ", dropout " << dropout;
            if (dropout > 0 || kv_heads == 4) continue;
            for (HeadPath path : {HeadPath::dense, HeadPath::grouped}) {
              o.head_mixture = {.active = 1, .shared = 1, .path = path};
              EXPECT_LT(difference(o, rows.data), 1e-11) << what << ", head mixture " << static_cast<int>(path);
            }
          }
}

TEST(Weights, OfEveryKindAreTheirEquationUnderAffineScalingAndTemperature) {
  for (const auto& [name, weights] : all_weights())
    for (int64_t window : {0, 3})
      for (const Rows& rows : all_rows()) {
        SoftmaxOptions o{.heads = 4, .kv_heads = 2, .window = window, .weights = weights};
        o.affine = {.is_on = true, .initial_mean = 0.3};
        o.temperature = {true, true, true};
        EXPECT_LT(difference(o, rows.data), 1e-11) << name << ", window " << window << ", " << rows.name;
      }
}

// With the sum the power cancels, but for the 1e-8 beside the sum.
TEST(Relu, DividedBySumIsDividedOnce) {
  Tensor x = random_normal({1, 4, kDim}, "x", kF64);
  auto out = [&](double power) {
    SoftmaxOptions o{.heads = 1};
    o.weights = {.kind = WeightKind::relu, .power = power, .is_divided_by_sum = true};
    auto mixer = mixer_of(o, plain_args());
    Tokens tokens(plain_tokens(1, 4));
    return mixer->forward(x, tokens).value().to_vector<double>();
  };
  auto bare = out(0), once = out(1), twice = out(2);
  for (size_t i = 0; i < bare.size(); ++i) {
    EXPECT_NEAR(once[i], bare[i], 1e-5) << i;
    EXPECT_NEAR(twice[i], bare[i], 1e-5) << i;
  }
}

// Order of what is made of a query and a key, as the header of the options gives it.
TEST(QkNorm, LearnedScaleOfScoresIsBehindGatesAndTemperature) {
  for (bool has_l2 : {true, false})
    for (bool is_additive : {true, false})
      for (const Rows& rows : all_rows()) {
        SoftmaxOptions o{.heads = 4, .kv_heads = 2};
        o.qk_norm = has_l2 ? QkNorm::l2 : QkNorm::rms;
        o.has_score_scale = !has_l2;
        o.temperature = {true, true, true};
        GateOptions gate{.activation = GateActivation::silu, .is_additive = is_additive};
        for (GatePosition position : {GatePosition::keys, GatePosition::queries, GatePosition::values}) {
          gate.position = position;
          o.gates.push_back(gate);
        }
        EXPECT_LT(difference(o, rows.data), 1e-11) << has_l2 << is_additive << " " << rows.name;
        o.sink = {SinkKind::key_value_bias};
        o.softcap = 2;
        EXPECT_LT(difference(o, rows.data), 1e-11) << has_l2 << is_additive << " with a sink, " << rows.name;
      }
}

// A key that is a sink is capped as the keys beside it: as if it stood among them.
TEST(Sink, KeysAreUnderTheSoftCap) {
  for (SinkKind kind : {SinkKind::key_bias, SinkKind::key_value_bias})
    for (bool is_shared : {false, true})
      for (MixerPosition position : {MixerPosition::model, MixerPosition::alibi}) {
        SoftmaxOptions o{.heads = 4, .kv_heads = 2, .window = 3, .softcap = 0.5, .position = position};
        o.sink = {kind, is_shared};
        EXPECT_LT(difference(o, plain_tokens(kBatch, kTokens)), 1e-11) << static_cast<int>(kind) << is_shared;
      }
}

// The exponents 0 and b of the other sinks are no scores: a cap leaves them alone.
TEST(Sink, LogitsAreNotUnderTheSoftCap) {
  for (SinkKind kind : {SinkKind::off_by_one, SinkKind::logit}) {
    SoftmaxOptions o{.heads = 4, .softcap = 0.5};
    o.sink = {kind};
    EXPECT_LT(difference(o, plain_tokens(kBatch, kTokens)), 1e-11) << static_cast<int>(kind);
  }
}

// The number of a token is its position in the document, also where its row begins late: decoding needs nothing else.
TEST(Temperature, ReadsThePositionInTheDocument) {
  SoftmaxOptions o{.heads = 4};
  o.temperature = {.has_position = true};
  for (const Rows& rows : all_rows()) EXPECT_LT(difference(o, rows.data), 1e-11) << rows.name;
}

}  // namespace
}  // namespace weft
