// Padding counts for nothing: rows with padding behind them give the numbers of the rows alone.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "weft/models/analysis.h"
#include "weft/models/language_model.h"

namespace weft {
namespace {

constexpr int64_t kBatch = 3, kTokens = 8, kVocab = 11;

LanguageModelOptions options_of(std::vector<MixerMaker> mixers) {
  return {.vocab = kVocab,
          .dim = 16,
          .layers = 2,
          .context = 16,
          .mixers = std::move(mixers),
          .ffn = {.hidden = 24},
          .std = 0.3};
}

SoftmaxOptions everything() {
  SoftmaxOptions o{.heads = 4, .kv_heads = 2, .window = 5};
  o.gates = {{.is_per_head = true}, {.position = GatePosition::values, .activation = GateActivation::silu}};
  o.sink = {SinkKind::logit};
  o.affine = {.is_on = true, .initial_mean = 0.4};
  o.temperature = {true, true, true};
  o.head_mixture = {.active = 1, .shared = 1, .has_running_load = true};
  return o;
}

std::vector<LanguageModelOptions> models() {
  LanguageModelOptions softmax = options_of({everything()});
  softmax.position = PositionKind::learned;
  softmax.residual = RoutedResidualOptions{.combine = ResidualCombine::add, .query_std = 0.5};
  SoftmaxOptions grouped = everything();
  grouped.head_mixture.path = HeadPath::grouped;
  LanguageModelOptions umoe = options_of({UmoeOptions{.experts = 4, .active = 2, .query_rank = 3}});
  umoe.ffn = {.kind = FfnKind::umoe, .hidden = 4, .experts = 4, .active = 3};
  SoftmaxOptions relu{.heads = 2}, rows = relu;
  relu.weights = {.kind = WeightKind::relu, .is_divided_by_sum = true};
  rows.weights = {.kind = WeightKind::sigmoid, .bias = SigmoidBias::row};
  return {softmax,
          options_of({grouped}),
          options_of({MoaOptions{.experts = 4, .active = 2, .has_noise = true},
                      MoaOptions{.experts = 4, .active = 2, .is_detached = false}}),
          umoe,
          options_of({NapOptions{.heads = 2}, NapOptions{.heads = 2, .window = 3}}),
          options_of({relu, rows}),
          options_of({MultiTokenOptions{.heads = 2, .query_kernel = 2, .key_kernel = 3}, RcmhaOptions{.heads = 2}})};
}

// `padding` tokens behind each row of kTokens, in two documents; ids and targets of padding are those of any token.
struct Batch {
  Tensor ids, targets;
  TokenData data;
};
Batch batch_of(int64_t padding, int64_t batch = kBatch) {
  const int64_t T = kTokens + padding;
  Batch b{Tensor::empty({batch, T}, kI32), Tensor::empty({batch, T}, kI32), plain_tokens(batch, T)};
  b.data.documents = Tensor::empty({batch, T}, kI32);
  b.data.document_positions = Tensor::empty({batch, T}, kI32);
  for (int64_t row = 0; row < batch; ++row)
    for (int64_t t = 0; t < T; ++t) {
      const int64_t i = row * T + t, begin = row + 2;  // of the second document
      auto at = static_cast<uint64_t>(row * 100 + t);
      b.ids.mutable_data<int32_t>()[i] = static_cast<int32_t>(Rng(1).below(kVocab, at));
      b.targets.mutable_data<int32_t>()[i] = static_cast<int32_t>(Rng(2).below(kVocab, at));
      b.data.documents.mutable_data<int32_t>()[i] = t >= kTokens ? -1 : t >= begin;
      b.data.document_positions.mutable_data<int32_t>()[i] = static_cast<int32_t>(t >= kTokens ? 0
                                                                                  : t >= begin ? t - begin
                                                                                               : t);
    }
  return b;
}

// Loss, auxiliary losses, gradients, buffers after the step, and reports.
std::map<std::string, double> numbers_of(LanguageModel& model, const Batch& batch) {
  std::map<std::string, double> all;
  Tokens tokens(batch.data, {.is_training = true, .rng = Rng(3), .takes_diagnostics = true});
  LanguageModelLoss loss = model.loss(batch.ids, batch.targets, tokens, 1.0 / (kBatch * kTokens));
  backward(loss.loss);
  all["loss"] = loss.loss.value().item();
  for (size_t i = 0; i < tokens.losses().size(); ++i)
    all[str(tokens.losses()[i].name, " ", i)] = tokens.losses()[i].value.value().item();
  auto add = [&](const std::string& name, const Tensor& t) {
    auto numbers = cast(Var(t), kF64).value().to_vector<double>();
    for (size_t i = 0; i < numbers.size(); ++i) all[str(name, " ", i)] = numbers[i];
  };
  for (const NamedParam& p : model.params())
    if (p.param->grad().defined()) add("gradient of " + p.name, p.param->grad());
  model.update_buffers();
  for (const NamedBuffer& b : model.buffers()) add(b.name, b.buffer->value());
  for (const Tokens::Report& r : tokens.reports()) all[r.name] = r.is_max ? r.sum : r.count > 0 ? r.sum / r.count : 0;
  return all;
}

TEST(Padding, CountsForNothing) {
  size_t which = 0;
  for (const LanguageModelOptions& options : models()) {
    auto run = [&](int64_t padding) {
      LanguageModel model(options, Rng(1));
      model.set_compute(kF64);
      return numbers_of(model, batch_of(padding));
    };
    auto expected = run(0);
    for (int64_t padding : {1, 5}) {
      auto got = run(padding);
      EXPECT_EQ(got.size(), expected.size());
      for (const auto& [name, value] : expected) {
        ASSERT_TRUE(got.contains(name)) << name;
        EXPECT_NEAR(got[name], value, 2e-6 * std::max(1.0, std::abs(value)))
            << name << " of model " << which << " with " << padding;
      }
    }
    ++which;
  }
}

// Of a micro-batch that holds nothing else everything is 0, and buffers stay.
TEST(Padding, OfAWholeMicroBatchGivesZeros) {
  for (const LanguageModelOptions& options : models()) {
    LanguageModel model(options, Rng(1));
    Batch batch = batch_of(1);
    batch.data.documents = Tensor::full({kBatch, kTokens + 1}, -1, kI32);
    std::map<std::string, std::vector<float>> before;
    for (const NamedBuffer& b : model.buffers()) before[b.name] = b.buffer->value().to_vector<float>();
    for (const auto& [name, value] : numbers_of(model, batch)) {
      const bool is_zero = name == "loss" || name.starts_with("router") || name.starts_with("gradient");
      EXPECT_TRUE(!is_zero || value == 0) << name << " " << value;
      EXPECT_TRUE(std::isfinite(value)) << name;
    }
    for (const NamedBuffer& b : model.buffers()) EXPECT_EQ(b.buffer->value().to_vector<float>(), before[b.name]);
  }
}

TEST(Padding, LeavesAnalysesAlone) {
  LanguageModel model(options_of({everything(), SoftmaxOptions{.heads = 2}}), Rng(1));
  auto run = [&](int64_t padding) {
    Batch batch = batch_of(padding);
    auto* documents =
        batch.data.documents.mutable_data<int32_t>();  // one each, so that the first token reaches the last
    for (int64_t i = 0; i < batch.ids.num_elements(); ++i) documents[i] = std::min(documents[i], 0);
    batch.data.document_positions = batch.data.positions;
    std::map<std::string, double> all;
    for (const auto& [name, value] : analyse(model, {batch.ids, batch.targets, batch.data})) all[name] = value;
    return all;
  };
  auto expected = run(0);
  for (int64_t padding : {1, 6}) {
    auto got = run(padding);
    EXPECT_EQ(got.size(), expected.size());
    for (const auto& [name, value] : expected) {
      ASSERT_TRUE(got.contains(name)) << name;
      EXPECT_NEAR(got[name], value, 1e-4 * std::max(1.0, std::abs(value))) << name << " with " << padding;
    }
  }
}

}  // namespace
}  // namespace weft
