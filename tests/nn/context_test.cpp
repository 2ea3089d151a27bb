// The calls through which tokens see each other, where the tokens of a row are on several ranks: outputs and gradients are those of one rank,
// in every layout. Ranks are threads.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <mutex>

#include "src/nn/mixing/mixing.h"
#include "tests/distributed/counting_communicator.h"
#include "tests/nn/mixing_support.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/recurrence.h"
#include "weft/core/parallel.h"
#include "weft/data/spread.h"
#include "weft/nn/tokens.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using test::error_of;
using test::random_normal;

constexpr int64_t kBatch = 2, kLength = 29, kWidth = 3;

// Ids that tell row and position; in each row three documents of other lengths, the last of one token.
data::Batch rows() {
  data::Batch batch;
  for (Tensor* x : {&batch.tokens, &batch.targets, &batch.positions, &batch.documents, &batch.document_positions})
    *x = Tensor::zeros({kBatch, kLength}, kI32, Device::cpu());
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t t = 0; t < kLength; ++t) {
      const int64_t first = 9 + 4 * b, document = t < first ? 0 : t + 1 < kLength ? 1 : 2, at = b * kLength + t;
      batch.tokens.mutable_data<int32_t>()[at] = static_cast<int32_t>(at);
      batch.positions.mutable_data<int32_t>()[at] = static_cast<int32_t>(t);
      batch.documents.mutable_data<int32_t>()[at] = static_cast<int32_t>(document);
      batch.document_positions.mutable_data<int32_t>()[at] = static_cast<int32_t>(t - (document == 0   ? 0
                                                                                       : document == 1 ? first
                                                                                                       : kLength - 1));
    }
  return batch;
}

TokenData data_of(const data::Batch& batch, bool has_documents) {
  TokenData data{.positions = batch.positions, .are_consecutive = are_consecutive(batch.positions)};
  if (has_documents) data.documents = batch.documents, data.document_positions = batch.document_positions;
  return data;
}

// y [B, n, ...] of x [B, n, kWidth] and w, of which every rank has a copy.
using Layer = std::function<Var(Tokens&, const Var& x, const Var& w)>;

struct Numbers {
  std::vector<double> y, dx, dw;  // of tokens by row and position
};

// Of the tokens of x that `batch` has; padding has zeros.
Tensor tokens_of(const Tensor& x, const data::Batch& batch) {
  const int64_t n = batch.tokens.num_elements(), each = x.num_elements() / (kBatch * kLength);
  Tensor out = Tensor::zeros({kBatch, n / kBatch, each}, kF64, Device::cpu());
  for (int64_t i = 0; i < n; ++i)
    if (batch.positions.data<int32_t>()[i] < kLength)
      for (int64_t d = 0; d < each; ++d)
        out.mutable_data<double>()[i * each + d] = x.data<double>()[batch.tokens.data<int32_t>()[i] * each + d];
  return out;
}

void run(const Layer& layer, const data::Batch& batch, bool has_documents, const ContextGroup* group, Numbers& into,
         std::mutex& mutex) {
  const Tensor x_all = random_normal({kBatch, kLength, kWidth}, "x", kF64);
  Var x = variable(tokens_of(x_all, batch)), w = variable(random_normal({kWidth, 4}, "w", kF64));
  Tokens tokens(data_of(batch, has_documents), {.is_training = true, .rng = Rng(3), .context = group});
  Var y = tokens.settled(layer(tokens, x, w));
  const int64_t each = y.value().num_elements() / (y.size(0) * y.size(1));
  const Tensor dy = tokens_of(random_normal({kBatch, kLength, each}, "dy", kF64), batch);
  backward(sum_all(reshape(y, dy.shape()) * dy));
  Tensor dw = w.grad().defined() ? ops::clone(w.grad()) : Tensor::zeros(w.shape(), kF64, Device::cpu());
  if (group) group->tokens->all_reduce(dw);
  const Tensor out = ops::contiguous(y.value()),
               dx = x.grad().defined() ? x.grad() : Tensor::zeros(x.shape(), kF64, Device::cpu());
  std::lock_guard lock(mutex);
  into.y.resize(static_cast<size_t>(kBatch * kLength * each)), into.dx.resize(kBatch * kLength * kWidth);
  for (int64_t i = 0; i < batch.tokens.num_elements(); ++i) {
    if (batch.positions.data<int32_t>()[i] >= kLength) continue;
    const int64_t to = batch.tokens.data<int32_t>()[i];
    for (int64_t d = 0; d < each; ++d) into.y[static_cast<size_t>(to * each + d)] = out.data<double>()[i * each + d];
    for (int64_t d = 0; d < kWidth; ++d)
      into.dx[static_cast<size_t>(to * kWidth + d)] = dx.data<double>()[i * kWidth + d];
  }
  into.dw = dw.to_vector<double>();
}

void expect_near(const std::vector<double>& got, const std::vector<double>& expected, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-12) << what << ", number " << i;
}

// Without documents the layouts pad 29 tokens, so all tokens are of document 0 then, and those of padding of -1.
void expect_equals_one_rank(const Layer& layer, std::optional<dist::Carry> carry = {}, int64_t block = 2) {
  for (bool has_documents : {false, true}) {
    std::mutex mutex;
    Numbers expected;
    run(layer, rows(), has_documents, nullptr, expected, mutex);
    for (int ranks : {1, 2, 3, 4})
      for (auto kind : {dist::LayoutKind::contiguous, dist::LayoutKind::striped, dist::LayoutKind::zigzag,
                        dist::LayoutKind::balanced}) {
        const data::SpreadOptions options{
            .layout = kind, .ranks = ranks, .block = block, .keeps_documents_apart = has_documents};
        Numbers got;
        dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
          const ContextGroup group{.tokens = &comm, .carry = carry};
          run(layer, data::spread(rows(), options, comm.rank()), true, &group, got, mutex);
        });
        const std::string what = str(to_string(kind), ", ", ranks, " ranks", has_documents ? ", documents: " : ": ");
        expect_near(got.y, expected.y, what + "output");
        expect_near(got.dx, expected.dx, what + "gradient of x");
        expect_near(got.dw, expected.dw, what + "gradient of w");
      }
  }
}

// A recurrence whose inputs are made of x and w: heads of queries, keys and values, decays of each kind, strengths, masked writes.
struct RecurrentCase {
  std::string name;
  std::vector<int64_t> decay = {};  // of a token; {0}: one number per head for all tokens
  ops::DecaySide side = ops::DecaySide::key;
  bool is_delta = false, has_writes = false;
};

Var recurrent_layer(const RecurrentCase& c, Tokens& tokens, const Var& x, const Var& w) {
  constexpr int64_t H = 2, G = 1, K = 3, V = 4;
  const int64_t B = x.size(0), T = x.size(1);
  Var q = reshape(x, {B, T, G, K}), k = sin(q * 2.0), v = reshape(matmul(x, w), {B, T, 1, V}), u = sum(v, -1);
  const Var both[] = {v, cos(v)};
  RecurrenceVars in{.q_BTGK = q, .k_BTGK = k * 0.7, .v_BTHV = concatenate(both, 2)};
  Var z = sum(w, std::vector<int>{0, 1}) * 0.1;
  if (c.decay == std::vector<int64_t>{0}) {
    in.log_decay = log_sigmoid(expand(reshape(z, {1}), {H}) + Var(Tensor::full({H}, 1, kF64)));
  } else if (!c.decay.empty()) {
    const bool is_per_channel = c.decay.size() == 2;
    const int64_t each = is_per_channel ? H * c.decay[1] : H;
    const Shape shape = is_per_channel ? Shape{B, T, H, c.decay[1]} : Shape{B, T, H};
    Var raw = expand(reshape(u, {B, T, 1}), {B, T, each}) * Var(random_normal({each}, "raw", kF64));
    in.log_decay = reshape(log_sigmoid(raw + 1.0), shape);
  }
  if (c.is_delta) in.beta = sigmoid(expand(u, {B, T, H}) * Var(random_normal({H}, "beta", kF64)));
  if (c.has_writes) in.writes = greater(expand(u, {B, T, H}), -0.3);
  return reshape(tokens.recur(in, {.scale = 0.6, .side = c.side}), {B, T, H * V});
}

TEST(Context, Recurrences) {
  using enum ops::DecaySide;
  for (const RecurrentCase& c : {RecurrentCase{"no decay"},
                                 {"constant", {0}},
                                 {"per head", {2}},
                                 {"per channel", {2, 3}, key, false, true},
                                 {"per value channel", {2, 4}, value},
                                 {"delta", {}, key, true},
                                 {"delta per channel", {2, 3}, key, true, true}}) {
    for (dist::Carry carry : {dist::Carry::gather, dist::Carry::scan}) {
      SCOPED_TRACE(str(c.name, ", ", to_string(carry)));
      expect_equals_one_rank(
          [&](Tokens& tokens, const Var& x, const Var& w) { return recurrent_layer(c, tokens, x, w); }, carry);
    }
  }
}

// How many heads go at a time is agreed on, since it makes the messages.
TEST(Context, RecurrencesOfRanksWithOtherNumbersOfThreads) {
  std::atomic<int> calls{0};
  expect_equals_one_rank(
      [&](Tokens& tokens, const Var& x, const Var& w) {
        constexpr int64_t H = 3, V = 4;
        set_num_threads(1 + calls++ % 3);
        const int64_t B = x.size(0), T = x.size(1);
        Var q = reshape(x, {B, T, H, 1}), v = expand(reshape(matmul(x, w), {B, T, 1, V}), {B, T, H, V});
        return reshape(tokens.recur({.q_BTGK = q, .k_BTGK = sin(q * 2.0), .v_BTHV = v * q}), {B, T, H * V});
      },
      dist::Carry::scan);
  set_num_threads(1);
}

TEST(Context, ElementWiseRecurrences) {
  for (bool is_constant : {false, true})
    expect_equals_one_rank([&](Tokens& tokens, const Var& x, const Var& w) {
      Var y = matmul(x, w), z = log_sigmoid(is_constant ? sum(w, 0) : sin(y) + 1.0);
      return tokens.decay_scan(y, z);
    });
}

// Of a second call: the first one also asks where all tokens are.
TEST(Context, RecurrencesSendTheBytesOfTheirLayout) {
  constexpr int64_t kTokens = 48, H = 2, K = 4, V = 6, kBlock = 4;
  for (int ranks : {2, 3, 4})
    for (auto kind : {dist::LayoutKind::contiguous, dist::LayoutKind::striped, dist::LayoutKind::zigzag,
                      dist::LayoutKind::balanced}) {
      SCOPED_TRACE(str(to_string(kind), ", ", ranks, " ranks"));
      const dist::Layout layout = data::layout_of_row({.layout = kind, .ranks = ranks, .block = kBlock}, kTokens, {});
      dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
        NoGrad no_grad;
        test::CountingCommunicator counting(comm);
        const std::vector<int32_t> positions = layout.positions(comm.rank());
        const auto n = static_cast<int64_t>(positions.size());
        for (dist::Carry carry : {dist::Carry::gather, dist::Carry::scan}) {
          const ContextGroup group{.tokens = &counting, .carry = carry};
          Tokens tokens({.positions = Tensor::from(std::span<const int32_t>(positions), {1, n})}, {.context = &group});
          const Var q = random_normal({1, n, H, K}, "q", kF32), v = random_normal({1, n, H, V}, "v", kF32);
          for (bool is_delta : {false, true}) {
            RecurrenceVars in{.q_BTGK = q, .k_BTGK = q, .v_BTHV = v};
            if (is_delta) in.beta = Tensor::full({1, n, H}, 0.1);
            tokens.recur(in);
            const int64_t gathered = counting.collective_bytes, sent = counting.bytes;
            tokens.recur(in);
            const dist::CarryBytes bytes = dist::carry_bytes({.ranks = ranks,
                                                              .segments = counts_of(layout, 1),
                                                              .key_heads = H,
                                                              .heads = H,
                                                              .key_width = K,
                                                              .value_width = V,
                                                              .is_delta = is_delta});
            const bool is_gather = carry == dist::Carry::gather;
            EXPECT_EQ(counting.collective_bytes - gathered, is_gather ? bytes.gather_forward : 0);
            EXPECT_LE(counting.bytes - sent, is_gather ? 0 : bytes.scan);
          }
          const Var x = random_normal({1, n, 5}, "x", kF32), g = Tensor::full({5}, -0.1);
          tokens.decay_scan(x, g);
          const int64_t gathered = counting.collective_bytes;
          tokens.decay_scan(x, g);
          EXPECT_EQ(counting.collective_bytes - gathered, dist::carry_bytes({.ranks = ranks,
                                                                             .segments = counts_of(layout, 1),
                                                                             .key_heads = 5,
                                                                             .heads = 5,
                                                                             .is_elementwise = true})
                                                              .gather_forward);
        }
      });
    }
}

TEST(Context, RunningSums) {
  expect_equals_one_rank([](Tokens& tokens, const Var& x, const Var&) { return tokens.scan(x * x); });
}
TEST(Context, SumsOverAWindow) {
  for (int64_t window : {1, 2, 7, 40})
    expect_equals_one_rank([=](Tokens& tokens, const Var& x, const Var&) { return tokens.scan(x * x, window); });
}
TEST(Context, Shifts) {
  for (int64_t n : {1, 5, 40})
    expect_equals_one_rank([=](Tokens& tokens, const Var& x, const Var&) { return tokens.shift(x, n) * x; });
}
// Four tokens wide, over stretches of one and of two tokens: what is in front of a stretch comes from several ranks.
TEST(Context, Convolution) {
  for (int64_t block : {1, 2})
    expect_equals_one_rank([](Tokens& tokens, const Var& x, const Var& w) { return tokens.conv(x, w) * x; }, {}, block);
}
TEST(Context, SumsOverRowsAndTheBatchAreThoseOfAllRanks) {
  expect_equals_one_rank([](Tokens& tokens, const Var& x, const Var&) {
    return x * unsqueeze(tokens.sum(x * x, Over::row), 1) + tokens.sum(x) / tokens.num_counted();
  });
}
TEST(Context, GatheredTokensAndWhatIsSeenOfThem) {
  expect_equals_one_rank([](Tokens& tokens, const Var& x, const Var&) {
    const Var values[] = {x, x * x};
    const std::vector<Var> all = tokens.gather(values);
    Var seen = cast(Var(tokens.seen(0, tokens.num_tokens(), all[0].size(1), 11)), kF64);
    return matmul(seen, all[0] * all[1]);
  });
}
TEST(Context, CountsOfVisibleKeys) {
  for (int64_t window : {0, 6})
    expect_equals_one_rank([=](Tokens& tokens, const Var& x, const Var&) {
      return x * unsqueeze(cast(Var(tokens.visible_keys(window)), kF64), -1);
    });
}
TEST(Context, Attention) {
  expect_equals_one_rank([](Tokens& tokens, const Var& x, const Var& w) {
    Var q = unsqueeze(matmul(x, w), 2);
    auto [out, lse] = tokens.attend(q, q * 0.5, q, {.mask = {.window = 12}});
    return concatenate(std::array{squeeze(out, 2), lse}, -1);
  });
}

// Ranks have different numbers of the chosen keys, and some have none.
TEST(Context, AttentionToChosenKeys) {
  expect_equals_one_rank([](Tokens& tokens, const Var& x, const Var& w) {
    auto [out, lse] = mixing_test::attend_to_every_third(tokens, unsqueeze(matmul(x, w), 2));
    return concatenate(std::array{squeeze(out, 2), lse}, -1);
  });
}

// Only some tokens of row 1 attend, chosen by what they are: a rank may have none, and its keys are read by others all the same.
TEST(Context, KeysOnceForWhateverQueriesAreChosen) {
  expect_equals_one_rank([](Tokens& tokens, const Var& x, const Var& w) {
    Var k = unsqueeze(matmul(x, w), 2);
    const KeySet keys = tokens.keys(k, k * 2.0);
    const int64_t T = tokens.num_tokens();
    std::vector<int32_t> chosen, places(static_cast<size_t>(kBatch * T), 0);
    for (int64_t t = 0; t < T; ++t)
      if (!tokens.is_padding(T + t) && tokens.cpu_positions()[static_cast<size_t>(T + t)] % 11 == 5)
        chosen.push_back(static_cast<int32_t>(t));
    Var y = reshape(k, {kBatch, T, 4}) * 0.0;
    if (chosen.empty()) return y;
    std::vector<int32_t> of_row;
    for (int32_t t : chosen) of_row.push_back(static_cast<int32_t>(T) + t);
    const auto count = static_cast<int64_t>(chosen.size());
    Tensor index = Tensor::from(std::span<const int32_t>(of_row), {count});
    Var q = reshape(take_rows(reshape(k, {kBatch * T, 4}), index), {1, count, 1, 4});
    auto [out, lse] = tokens.attend_part(tokens.queries(q, 1, chosen), keys.rows()[1], {});
    // Back to their places: row i of a table of zeros and the outputs.
    for (size_t i = 0; i < chosen.size(); ++i) places[static_cast<size_t>(of_row[i])] = static_cast<int32_t>(i) + 1;
    const Var parts[] = {Tensor::zeros({1, 4}, kF64, Device::cpu()), reshape(out, {count, 4})};
    Tensor back = Tensor::from(std::span<const int32_t>(places), {kBatch * T});
    return y + reshape(take_rows(concatenate(parts, 0), back), {kBatch, T, 4});
  });
}

TEST(Context, NeighboursBehindAToken) {
  dist::run_thread_ranks(3, [](dist::Communicator& comm) {
    const data::Batch mine =
        data::spread(rows(), {.layout = dist::LayoutKind::striped, .ranks = 3, .block = 2}, comm.rank());
    const Tokens tokens(data_of(mine, true));
    const ContextGroup group{.tokens = &comm};
    const Var x = cast(unsqueeze(Var(mine.tokens), -1), kF64);
    const Mixing::Neighbours near = make_context(tokens, group)->neighbours(x, 0, 1);
    const std::vector<double> ids = near.x.value().to_vector<double>();
    const std::vector<int32_t> chains = near.documents.to_vector<int32_t>();
    const data::Batch all = rows();
    for (int64_t i = 0; i < mine.tokens.num_elements(); ++i) {
      if (mine.documents.data<int32_t>()[i] < 0) continue;
      const int32_t id = mine.tokens.data<int32_t>()[i];
      const auto place = static_cast<size_t>(near.places[static_cast<size_t>(i)]);
      ASSERT_EQ(ids[place], id);
      const bool ends =
          id % kLength == kLength - 1 || all.documents.data<int32_t>()[id] != all.documents.data<int32_t>()[id + 1];
      const bool has_next = place + 1 < ids.size() && chains[place + 1] == chains[place];
      ASSERT_EQ(has_next, !ends) << id;
      if (has_next) { ASSERT_EQ(ids[place + 1], id + 1); }
    }
  });
}

TEST(Context, ErrorsNameTheRanksAndTheFix) {
  EXPECT_EQ(error_of(
                [] {
                  dist::run_thread_ranks(2, [](dist::Communicator& comm) {
                    const ContextGroup group{.tokens = &comm};
                    TokenData data = plain_tokens(1, 4, 4 * comm.rank());
                    if (comm.rank() == 1) data.documents = Tensor::zeros({1, 4}, kI32, Device::cpu());
                    Tokens tokens(data, {.context = &group});
                    tokens.scan(Var(Tensor::zeros({1, 4, 1}, kF64, Device::cpu())));
                  });
                },
                {"rank 1 has documents", "rank 0 has none", "every rank or on none"}),
            "");
  dist::run_thread_ranks(1, [](dist::Communicator& comm) {
    const ContextGroup group{.tokens = &comm};
    EXPECT_EQ(error_of([&] { Tokens(plain_tokens(1, 4), {.cache = make_cache(1, 8), .context = &group}); },
                       {"a cache beside a context", "make_cache(batch, max_tokens, ranks)"}),
              "");
  });
}

}  // namespace
}  // namespace weft
