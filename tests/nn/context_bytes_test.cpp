// What ranks that share the tokens of a row send for mixers that choose what travels. Ranks are threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>

#include "tests/distributed/counting_communicator.h"
#include "tests/nn/mixing_support.h"
#include "tests/support/random.h"
#include "weft/distributed/choose_scheme.h"
#include "weft/nn/context_group.h"
#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/hybrids.h"
#include "weft/nn/tokens.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using test::random_normal;

// Chunks twice as long have half as many last tokens. Of each a key, a value and its position travel.
TEST(ContextBytes, RatSendsTheKeysOfLastTokensOfItsChunks) {
  constexpr int64_t kTokens = 48, kDim = 16;
  dist::run_thread_ranks(2, [&](dist::Communicator& comm) {
    NoGrad no_grad;
    auto bytes_of = [&](int64_t chunk) {
      auto mixer = RatOptions{.heads = 2, .chunk = chunk}({.dim = kDim, .context = 2 * kTokens}, Rng(1));
      test::CountingCommunicator counting(comm);
      const ContextGroup group{.tokens = &counting};
      Tokens tokens(plain_tokens(1, kTokens, comm.rank() * kTokens), {.context = &group});
      const Var x = random_normal({1, kTokens, kDim}, "x", kF32);
      mixer->forward(x, tokens);
      const int64_t first = counting.collective_bytes;
      mixer->forward(x, tokens);
      return counting.collective_bytes - first;
    };
    const int64_t of_a_key = static_cast<int64_t>(sizeof(float)) * (2 * kDim + 1);
    EXPECT_EQ(bytes_of(4) - bytes_of(8), (kTokens / 4 - kTokens / 8) * of_a_key);
    EXPECT_EQ(bytes_of(8) - bytes_of(24), (kTokens / 8 - kTokens / 24) * of_a_key);
  });
}

// The latent and its gradient, or keys and values of heads and theirs: whatever has fewer bytes.
TEST(ContextBytes, MultiHeadLatentAttentionSendsTheFormWithFewerBytes) {
  constexpr int64_t kTokens = 24, kDim = 16;
  struct Row {
    MlaOptions options;
    dist::Scheme scheme;
    int ranks;
    bool sends_latent;
  };
  const MlaOptions many{.heads = 4, .head_dim = 6, .rope_dim = 4, .kv_rank = 10},
      one{.heads = 1, .head_dim = 4, .rope_dim = 2, .kv_rank = 12};
  for (const Row& row : {Row{many, dist::Scheme::ring, 2, true}, Row{many, dist::Scheme::all_gather, 3, true},
                         Row{many, dist::Scheme::ulysses, 4, false}, Row{one, dist::Scheme::ring, 3, false}}) {
    SCOPED_TRACE(str(to_string(row.scheme), ", ", row.options.heads, " heads, ", row.ranks, " ranks"));
    const int64_t n = kTokens / row.ranks, H = row.options.heads, N = row.options.head_dim, R = row.options.rope_dim,
                  C = row.options.kv_rank;
    const Tensor x_all = random_normal({1, kTokens, kDim}, "x", kF64),
                 dy = random_normal({1, kTokens, kDim}, "dy", kF64);
    auto run = [&](const ContextGroup* group) {
      const int64_t first = group ? group->tokens->rank() * n : 0, count = group ? n : kTokens;
      auto mixer = row.options({.dim = kDim, .context = kTokens, .std = 0.4, .out_std = 0.4}, Rng(2));
      mixer->set_compute(kF64);
      Tokens tokens(plain_tokens(1, count, first), {.is_training = true, .context = group});
      const Var x = variable(ops::clone(x_all.slice(1, first, first + count)));
      const Var y = tokens.settled(mixer->forward(x, tokens));
      backward(sum_all(y * ops::contiguous(dy.slice(1, first, first + count))));
      return std::pair(y.value().to_vector<double>(), x.grad().to_vector<double>());
    };
    const auto [y, dx] = run(nullptr);
    const dist::ContextShape latent{.ranks = row.ranks,
                                    .tokens = n,
                                    .heads = H,
                                    .key_width = C + R,
                                    .value_width = C,
                                    .dtype = kF64,
                                    .are_values_in_keys = true},
        heads{.ranks = row.ranks,
              .tokens = n,
              .heads = H,
              .kv_heads = H,
              .key_width = N + R,
              .value_width = N,
              .dtype = kF64};
    const dist::HopPlan plan = plan_hops(dist::Layout::contiguous(kTokens, row.ranks), {});
    auto most_of = [&](const dist::ContextShape& shape) {
      const dist::MessageBytes sent = message_bytes(row.scheme, shape, {}, plan);
      return sent.forward + sent.backward;
    };
    std::mutex mutex;
    int64_t most = 0;
    dist::run_thread_ranks(row.ranks, [&](dist::Communicator& comm) {
      test::CountingCommunicator counting(comm);
      const ContextGroup group{.tokens = &counting, .scheme = row.scheme};
      const auto [mine, dmine] = run(&group);
      std::lock_guard lock(mutex);
      most = std::max(most, counting.bytes);
      const auto from = static_cast<std::ptrdiff_t>(comm.rank() * n * kDim),
                 to = from + static_cast<std::ptrdiff_t>(n * kDim);
      mixing_test::expect_near(mine, {y.begin() + from, y.begin() + to}, 1e-12, "output");
      mixing_test::expect_near(dmine, {dx.begin() + from, dx.begin() + to}, 1e-12, "gradient");
    });
    // The largest sum of a rank is at most the sum of the largest.
    EXPECT_LE(most, most_of(row.sends_latent ? latent : heads));
    EXPECT_GT(most, most_of(row.sends_latent ? latent : heads) / 2);
    if (row.sends_latent) {
      EXPECT_LT(2 * most, most_of(heads));
    } else {
      EXPECT_LT(most, most_of(latent));
    }
  }
}

}  // namespace
}  // namespace weft
