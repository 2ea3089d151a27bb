// Ranks that have nothing but padding: they take part in every exchange, of backward too, and change no number. Ranks are threads.
#include <gtest/gtest.h>

#include <mutex>

#include "tests/support/random.h"
#include "weft/comm/communicator.h"
#include "weft/data/spread.h"
#include "weft/nn/context_group.h"
#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/hybrids.h"
#include "weft/nn/mixers/pair_scores.h"
#include "weft/nn/mixers/recurrent.h"
#include "weft/nn/mixers/softmax.h"
#include "weft/nn/tokens.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using test::random_normal;

constexpr int64_t kTokens = 9, kDim = 8;
constexpr int kRanks = 4;  // of 3 tokens: the last one has none

data::Batch row() {
  data::Batch batch;
  for (Tensor* x : {&batch.tokens, &batch.targets, &batch.positions, &batch.documents, &batch.document_positions})
    *x = Tensor::zeros({1, kTokens}, kI32, Device::cpu());
  for (Tensor* x : {&batch.tokens, &batch.positions, &batch.document_positions})
    for (int64_t t = 0; t < kTokens; ++t) x->mutable_data<int32_t>()[t] = static_cast<int32_t>(t);
  return batch;
}

// Of the tokens at the positions of `batch`; padding has zeros.
Tensor tokens_of(const char* name, const data::Batch& batch) {
  const Tensor all = random_normal({1, kTokens, kDim}, name, kF64);
  const int64_t n = batch.positions.num_elements();
  Tensor out = Tensor::zeros({1, n, kDim}, kF64, Device::cpu());
  for (int64_t i = 0; i < n; ++i)
    for (int64_t d = 0; d < kDim; ++d)
      if (const int64_t t = batch.positions.data<int32_t>()[i]; t < kTokens)
        out.mutable_data<double>()[i * kDim + d] = all.data<double>()[t * kDim + d];
  return out;
}

struct Numbers {
  std::vector<double> y, dx;                // of the tokens here
  std::vector<std::vector<double>> params;  // gradients, of all ranks together
};

Numbers run(const MixerMaker& make, const data::Batch& batch, const ContextGroup* group) {
  auto mixer = make({.dim = kDim, .context = kTokens, .std = 0.4, .out_std = 0.4}, Rng(2));
  mixer->set_compute(kF64);
  const TokenData data{.positions = batch.positions,
                       .documents = batch.documents,
                       .document_positions = batch.document_positions,
                       .are_consecutive = are_consecutive(batch.positions)};
  Tokens tokens(data, {.is_training = true, .rng = Rng(3), .context = group});
  const Var x = variable(tokens_of("x", batch));
  const Var y = tokens.settled(mixer->forward(x, tokens));
  backward(sum_all(y * tokens_of("dy", batch)));
  Numbers numbers{y.value().to_vector<double>(), x.grad().to_vector<double>(), {}};
  for (const NamedParam& p : mixer->params()) {
    Tensor grad = p.param->grad().defined() ? ops::clone(cast(Var(p.param->grad()), kF64).value())
                                            : Tensor::zeros(p.param->value().shape(), kF64, Device::cpu());
    if (group) group->tokens->all_reduce(grad);
    numbers.params.push_back(grad.to_vector<double>());
  }
  return numbers;
}

void expect_near(std::span<const double> got, std::span<const double> expected, const std::string& what) {
  for (size_t i = 0; i < std::min(got.size(), expected.size()); ++i)
    ASSERT_NEAR(got[i], expected[i], 1e-10) << what << ", number " << i;
}

TEST(ContextPadding, ARankOfNothingElseTakesPartInBackward) {
  const std::pair<const char*, MixerMaker> rows[] = {
      {"softmax", SoftmaxOptions{.heads = 2}},
      {"tlinformer", TlinformerOptions{.heads = 2, .depth = 3, .window = 4, .rows = 2, .hidden = 12}},
      {"hysparse", HySparseOptions{.heads = 2, .kv_heads = 1, .sparse = 0, .block = 2, .blocks = 2, .window = 2}},
      {"nats", NatsOptions{.heads = 2, .kv_heads = 1, .window = 2}},
      {"nats_l", NatsLinearOptions{.heads = 2, .head_dim = 2, .chunk = 3, .kernel = 2}},
      {"miras", MirasOptions{.heads = 2, .chunk = 4}},
      {"simplified", SimplifiedOptions{.heads = 2}},
      {"local_linear", LocalLinearOptions{.heads = 2}}};
  for (const auto& [name, make] : rows) {
    SCOPED_TRACE(name);
    const Numbers expected = run(make, row(), nullptr);
    std::mutex mutex;
    dist::run_thread_ranks(kRanks, [&](dist::Communicator& comm) {
      const ContextGroup group{.tokens = &comm};
      const data::Batch mine =
          data::spread(row(), {.layout = dist::LayoutKind::contiguous, .ranks = kRanks}, comm.rank());
      const Numbers got = run(make, mine, &group);
      std::lock_guard lock(mutex);
      const int64_t first = comm.rank() * mine.positions.num_elements();
      const size_t from = static_cast<size_t>(std::min(first, kTokens) * kDim);
      expect_near(got.y, std::span(expected.y).subspan(from), "output");
      expect_near(got.dx, std::span(expected.dx).subspan(from), "gradient of x");
      for (size_t i = 0; i < got.params.size(); ++i)
        expect_near(got.params[i], expected.params[i], str("gradient of parameter ", i));
    });
  }
}

}  // namespace
}  // namespace weft
