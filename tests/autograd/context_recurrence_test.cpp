// context_recur() against the recurrence of one rank and against its composed form: outputs, states and all gradients, by gathering and by a scan.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <mutex>

#include "tests/autograd/composed_recurrence.h"
#include "tests/distributed/counting_communicator.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/recompute.h"
#include "weft/core/parallel.h"
#include "weft/core/stream.h"

namespace weft {
namespace {

using test::random_normal;

constexpr int64_t kTokens = 29, kKeyHeads = 2, kHeads = 4, kKeys = 3, kValues = 5;

// Of each rank its segments of the row, [begin, end).
using Layout = std::vector<std::vector<std::pair<int64_t, int64_t>>>;
struct NamedLayout {
  const char* name;
  Layout ranks;
};
const NamedLayout kLayouts[] = {
    {"contiguous 2", {{{0, 16}}, {{16, 29}}}},
    {"contiguous 4", {{{0, 7}}, {{7, 14}}, {{14, 28}}, {{28, 29}}}},
    {"zigzag 2", {{{0, 8}, {22, 29}}, {{8, 15}, {15, 22}}}},
    {"zigzag 3", {{{0, 5}, {25, 29}}, {{5, 10}, {20, 25}}, {{10, 15}, {15, 20}}}},
    {"striped 2", {{{0, 4}, {8, 12}, {16, 20}, {24, 28}}, {{4, 8}, {12, 16}, {20, 24}, {28, 29}}}},
    {"striped 3", {{{0, 6}, {18, 24}}, {{6, 12}, {24, 29}}, {{12, 18}}}},
};

struct Case {
  std::string name;
  Shape decay = {};  // behind the tokens; {} none, of one dimension: {H}, all tokens have the same
  ops::DecaySide side = ops::DecaySide::key;
  bool is_delta = false, has_writes = false, has_documents = false, has_state = true;
};
std::vector<Case> cases() {
  std::vector<Case> all;
  for (bool has_documents : {false, true}) {
    auto add = [&](Case c) {
      c.has_documents = has_documents;
      if (has_documents) c.name += ", documents";
      all.push_back(c);
    };
    add({"no decay"});
    add({"per head", {kHeads}});
    add({.name = "per token", .decay = {kTokens, kHeads}, .has_writes = true});
    add({.name = "per key channel", .decay = {kTokens, kHeads, kKeys}, .has_state = false});
    add({.name = "per value channel", .decay = {kTokens, kHeads, kValues}, .side = ops::DecaySide::value});
    add({.name = "delta", .is_delta = true, .has_writes = true});
    add({.name = "delta per head", .decay = {kHeads}, .is_delta = true, .has_state = false});
    add({.name = "delta per token", .decay = {kTokens, kHeads}, .is_delta = true});
    add({.name = "delta per channel", .decay = {kTokens, kHeads, kKeys}, .is_delta = true});
  }
  return all;
}

// Of token t; -1 is padding.
int32_t document_of(const Case& c, int64_t t) {
  if (!c.has_documents) return 0;
  return t == 10 ? -1 : t < 5 ? 0 : t < 17 ? 1 : t < 20 ? 2 : 3;
}

// All numbers of the row.
struct Row {
  std::vector<Var> inputs;  // q, k, v, log_decay, beta, state: those that there are
  Var q, k, v, g, beta, state;
  Tensor writes, dout, dends;

  explicit Row(const Case& c) {
    auto input = [&](const char* name, const Shape& shape, double scale) {
      inputs.push_back(variable((Var(random_normal(shape, name, kF64)) * scale).value()));
      return inputs.back();
    };
    q = input("q", {1, kTokens, kKeyHeads, kKeys}, 1), k = input("k", {1, kTokens, kKeyHeads, kKeys}, 0.5);
    v = input("v", {1, kTokens, kHeads, kValues}, 1);
    if (c.decay.num_dims() > 0) {
      Shape shape = c.decay;
      if (shape.num_dims() == 2) shape = {1, shape[0], shape[1]};
      else if (shape.num_dims() == 3) shape = {1, shape[0], shape[1], shape[2]};
      g = log_sigmoid(input("g", shape, 1) + 1.0);
    }
    if (c.is_delta) beta = sigmoid(input("beta", {1, kTokens, kHeads}, 1));
    if (c.has_state) state = input("state", {1, kHeads, kKeys, kValues}, 1);
    if (c.has_writes) writes = greater(Var(random_normal({1, kTokens, kHeads}, "writes", kF64)), -0.5);
    dout = random_normal({1, kTokens, kHeads, kValues}, "dout", kF64);
    dends = random_normal({kTokens + 1, kHeads, kKeys, kValues}, "dends", kF64);  // of a state behind any token
  }
};

// Segments [J, L, ...] of x [1, T, ...]; behind the last token of a segment stand numbers that must not be read.
Var in_segments(const Var& x, const std::vector<std::pair<int64_t, int64_t>>& segments, int64_t longest) {
  std::vector<Var> rows;
  for (const auto& [begin, end] : segments) {
    Shape rest = x.shape();
    rest[1] = longest - (end - begin);
    const Var parts[] = {slice(x, 1, begin, end), Tensor::full(rest, 7, kF64)};
    rows.push_back(concatenate(parts, 1));
  }
  return concatenate(rows, 0);
}

// Bytes of messages, number and bytes of all-gathers.
struct Sent {
  int64_t messages = 0, gathers = 0, gathered = 0;
  bool operator==(const Sent&) const = default;
};

struct Result {
  std::vector<double> out, last_state;
  std::vector<std::vector<double>> grads;
  std::vector<Sent> sent;  // by rank
};

using Recur = std::function<std::array<Var, 2>(dist::Communicator&, std::shared_ptr<const dist::SegmentPlan>,
                                               const RecurrenceVars&, const ops::RecurrenceOptions&)>;

dist::SegmentPlan plan_of(const Case& c, const Layout& layout) {
  // The first token from `begin` on, and the last one before `end`, that is no padding.
  auto first = [&](int64_t begin) { return document_of(c, document_of(c, begin) < 0 ? begin + 1 : begin); };
  auto last = [&](int64_t end) { return document_of(c, document_of(c, end - 1) < 0 ? end - 2 : end - 1); };
  dist::SegmentPlan plan;
  std::vector<std::pair<int64_t, dist::SegmentPlan::Segment>> all;
  for (size_t r = 0; r < layout.size(); ++r) {
    for (size_t j = 0; j < layout[r].size(); ++j) {
      const auto [begin, end] = layout[r][j];
      const bool comes_in = begin > 0 && last(begin) == first(begin);
      all.push_back({begin,
                     {.rank = static_cast<int32_t>(r),
                      .index = static_cast<int32_t>(j),
                      .comes_in = comes_in,
                      .passes = comes_in && first(begin) == last(end)}});
    }
    plan.most = std::max(plan.most, static_cast<int64_t>(layout[r].size()));
  }
  std::ranges::sort(all, [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [begin, segment] : all) plan.segments.push_back(segment);
  return plan;
}

// With a gradient of the state behind every segment, or behind the last one alone, which one rank has too.
Result over_ranks(const Case& c, const Layout& layout, bool has_all_ends, const Recur& f,
                  dist::ThreadRanksOptions ranks_options = {}) {
  Result result;
  result.sent.resize(layout.size());
  std::mutex mutex;
  const auto plan = std::make_shared<const dist::SegmentPlan>(plan_of(c, layout));
  dist::run_thread_ranks(
      static_cast<int>(layout.size()),
      [&](dist::Communicator& world) {
        test::CountingCommunicator comm(world);
        const auto& mine = layout[static_cast<size_t>(comm.rank())];
        const auto J = static_cast<int64_t>(mine.size());
        int64_t longest = 0;
        for (const auto& [begin, end] : mine) longest = std::max(longest, end - begin);
        const Row row(c);
        auto part = [&](const Var& x) { return x.defined() ? in_segments(x, mine, longest) : x; };
        RecurrenceVars in{.q_BTGK = part(row.q), .k_BTGK = part(row.k), .v_BTHV = part(row.v), .beta = part(row.beta)};
        in.log_decay = row.g.defined() && row.g.num_dims() > 1 ? part(row.g) : row.g;
        if (row.g.defined() && row.g.num_dims() > 1)  // behind the last token too it is a decay
          in.log_decay = minimum(in.log_decay, Var(Tensor::zeros({}, kF64)));
        if (row.writes.defined()) in.writes = greater(part(cast(Var(row.writes), kF64)), 0.5);
        std::vector<int32_t> documents(static_cast<size_t>(J * longest), -1);
        std::vector<Var> states, dends;
        for (int64_t j = 0; j < J; ++j) {
          const auto [begin, end] = mine[static_cast<size_t>(j)];
          for (int64_t t = begin; t < end; ++t)
            documents[static_cast<size_t>(j * longest + t - begin)] = document_of(c, t);
          const bool is_wanted = has_all_ends || end == kTokens;
          const Shape of_state{1, kHeads, kKeys, kValues};
          states.push_back(begin == 0 && row.state.defined() ? row.state : Var(Tensor::zeros(of_state, kF64)));
          dends.push_back(is_wanted ? row.dends.slice(0, end, end + 1) : Tensor::zeros(of_state, kF64));
        }
        if (row.state.defined()) in.state = concatenate(states, 0);
        in.documents = Tensor::from(std::span<const int32_t>(documents), {J, longest});
        auto [out, state] = f(comm, plan, in, {.scale = 0.6, .side = c.side, .chunk = 4});
        Var loss = sum_all(state * concatenate(dends, 0));
        for (int64_t j = 0; j < J; ++j) {
          const auto [begin, end] = mine[static_cast<size_t>(j)];
          loss = loss + sum_all(slice(slice(out, 0, j, j + 1), 1, 0, end - begin) * row.dout.slice(1, begin, end));
        }
        backward(loss);
        std::vector<std::vector<double>> grads;
        for (const Var& x : row.inputs) {
          Tensor grad = x.grad().defined() ? (Var(x.grad()) * 1.0).value() : Tensor::zeros(x.shape(), kF64);
          world.all_reduce(grad);
          grads.push_back(grad.to_vector<double>());
        }
        std::lock_guard lock(mutex);
        result.grads = grads;
        result.sent[static_cast<size_t>(comm.rank())] = {comm.bytes, comm.collectives, comm.collective_bytes};
        result.out.resize(kTokens * kHeads * kValues);
        for (int64_t j = 0; j < J; ++j) {
          const auto [begin, end] = mine[static_cast<size_t>(j)];
          const std::vector<double> numbers =
              slice(slice(out, 0, j, j + 1), 1, 0, end - begin).value().to_vector<double>();
          std::copy(numbers.begin(), numbers.end(), result.out.begin() + begin * kHeads * kValues);
          if (end == kTokens) result.last_state = slice(state, 0, j, j + 1).value().to_vector<double>();
        }
      },
      ranks_options);
  return result;
}

Result of_one_rank(const Case& c) {
  const Row row(c);
  std::vector<int32_t> documents;
  for (int64_t t = 0; t < kTokens; ++t) documents.push_back(document_of(c, t));
  auto [out, state] = recur({.q_BTGK = row.q,
                             .k_BTGK = row.k,
                             .v_BTHV = row.v,
                             .log_decay = row.g,
                             .beta = row.beta,
                             .writes = row.writes,
                             .state = row.state,
                             .documents = Tensor::from(std::span<const int32_t>(documents), {1, kTokens})},
                            {.scale = 0.6, .side = c.side});
  backward(sum_all(out * row.dout) + sum_all(state * row.dends.slice(0, kTokens, kTokens + 1)));
  Result result{out.value().to_vector<double>(), state.value().to_vector<double>(), {}, {}};
  for (const Var& x : row.inputs) result.grads.push_back(x.grad().to_vector<double>());
  return result;
}

void expect_near(const std::vector<double>& got, const std::vector<double>& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-12) << what << ", number " << i;
}
void expect_equal(const Result& got, const Result& want, const std::string& what) {
  expect_near(got.out, want.out, what + ": out");
  expect_near(got.last_state, want.last_state, what + ": state");
  ASSERT_EQ(got.grads.size(), want.grads.size());
  for (size_t i = 0; i < got.grads.size(); ++i)
    expect_near(got.grads[i], want.grads[i], str(what, ": gradient of input ", i));
}

Recur fused(dist::Carry carry) {
  return [carry](dist::Communicator& comm, std::shared_ptr<const dist::SegmentPlan> plan, const RecurrenceVars& in,
                 const ops::RecurrenceOptions& options) { return context_recur(comm, plan, carry, in, options); };
}
Recur composed() {
  return [](dist::Communicator& comm, std::shared_ptr<const dist::SegmentPlan> plan, const RecurrenceVars& in,
            const ops::RecurrenceOptions& options) { return test::composed_recur(comm, *plan, in, options); };
}

// The same by kernels of a GPU that all ranks share; what the ranks send each other is on it too.
Recur on_gpu(const Recur& f) {
  return [f](dist::Communicator& comm, std::shared_ptr<const dist::SegmentPlan> plan, const RecurrenceVars& in,
             const ops::RecurrenceOptions& options) {
    RecurrenceVars there = in;
    for (Var* x : {&there.q_BTGK, &there.k_BTGK, &there.v_BTHV, &there.log_decay, &there.beta, &there.state})
      if (x->defined()) *x = to(*x, Device::cuda());
    for (Tensor* x : {&there.writes, &there.documents})
      if (x->defined()) *x = to(*x, Device::cuda()).value();
    auto [out, state] = f(comm, plan, there, options);
    return std::array<Var, 2>{to(out, Device::cpu()), to(state, Device::cpu())};
  };
}

TEST(ContextRecurrence, OnAGpuIsThatOfOneRankOfTheCpu) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  set_num_threads(1);
  for (const Case& c : cases()) {
    if (!c.has_documents || c.decay.num_dims() < 2) continue;  // the emulator takes its time
    const Result want = of_one_rank(c);
    for (dist::Carry carry : {dist::Carry::gather, dist::Carry::scan})
      expect_equal(over_ranks(c, kLayouts[3].ranks, false, on_gpu(fused(carry))), want,
                   str(c.name, ", ", to_string(carry)));
  }
}

TEST(ContextRecurrence, IsThatOfOneRank) {
  set_num_threads(1);
  for (const Case& c : cases()) {
    const Result want = of_one_rank(c);
    for (const auto& [name, layout] : kLayouts)
      for (dist::Carry carry : {dist::Carry::gather, dist::Carry::scan})
        expect_equal(over_ranks(c, layout, false, fused(carry)), want, str(c.name, ", ", name, ", ", to_string(carry)));
  }
}

TEST(ContextRecurrence, IsItsComposedForm) {
  set_num_threads(1);
  for (const Case& c : cases())
    for (const auto& [name, layout] : kLayouts) {
      const Result want = over_ranks(c, layout, true, composed());
      for (dist::Carry carry : {dist::Carry::gather, dist::Carry::scan})
        expect_equal(over_ranks(c, layout, true, fused(carry)), want, str(c.name, ", ", name, ", ", to_string(carry)));
    }
}

// Ranks of several threads take several heads at once.
TEST(ContextRecurrence, DoesNotDependOnTheThreadsOfARank) {
  for (const Case& c : cases())
    expect_equal(over_ranks(c, kLayouts[2].ranks, false, fused(dist::Carry::scan), {.threads_per_rank = 3}),
                 of_one_rank(c), c.name);
}

// The results of the first run are kept but for states of chunks, so nothing is sent twice.
TEST(ContextRecurrence, RecomputationSendsNothingAgain) {
  set_num_threads(1);
  for (const Case& c : cases())
    for (dist::Carry carry : {dist::Carry::gather, dist::Carry::scan}) {
      const Recur again = [carry](dist::Communicator& comm, std::shared_ptr<const dist::SegmentPlan> plan,
                                  const RecurrenceVars& in, const ops::RecurrenceOptions& options) {
        const Var inputs[] = {in.q_BTGK};
        const std::vector<Var> y = recompute(
            [&comm, plan, carry, in, options](std::span<const Var> x) {
              RecurrenceVars of = in;
              of.q_BTGK = x[0];
              const auto [out, state] = context_recur(comm, plan, carry, of, options);
              return std::vector<Var>{out, state};
            },
            inputs);
        return std::array{y[0], y[1]};
      };
      const Result want = over_ranks(c, kLayouts[2].ranks, true, fused(carry)),
                   got = over_ranks(c, kLayouts[2].ranks, true, again);
      expect_equal(got, want, c.name);
      EXPECT_EQ(got.sent, want.sent) << c.name;
    }
}

dist::CarryShape shape_of(const Case& c, const Layout& layout) {
  return {.ranks = static_cast<int>(layout.size()),
          .segments = counts_of(plan_of(c, layout)),
          .key_heads = kKeyHeads,
          .heads = kHeads,
          .key_width = kKeys,
          .value_width = kValues,
          .is_delta = c.is_delta,
          .are_of_values = c.side == ops::DecaySide::value,
          .dtype = kF64};
}

// One all-gather each way, or a state for every segment that needs one.
TEST(ContextRecurrence, SendsTheBytesThatCarryBytesSays) {
  set_num_threads(1);
  for (const Case& c : cases())
    for (const auto& [name, layout] : kLayouts) {
      SCOPED_TRACE(str(c.name, ", ", name));
      const dist::CarryBytes bytes = carry_bytes(shape_of(c, layout));
      for (const Sent& sent : over_ranks(c, layout, true, fused(dist::Carry::gather)).sent)
        EXPECT_EQ(sent, (Sent{0, 2, bytes.gather_forward + bytes.gather_backward}));
      const dist::SegmentPlan plan = plan_of(c, layout);
      const int64_t each = kHeads * kKeys * kValues * 8;
      std::vector<Sent> want(layout.size());
      for (size_t i = 0; i + 1 < plan.segments.size(); ++i) {
        const int from = plan.segments[i].rank, to = plan.segments[i + 1].rank;
        if (!plan.is_needed(i) || from == to) continue;
        want[static_cast<size_t>(from)].messages += each, want[static_cast<size_t>(to)].messages += each;
      }
      const std::vector<Sent> got = over_ranks(c, layout, true, fused(dist::Carry::scan)).sent;
      EXPECT_EQ(got, want);
      for (const Sent& sent : got) EXPECT_LE(sent.messages, 2 * bytes.scan);
    }
}

TEST(ContextRecurrence, WhereNoStateComesInNothingIsSent) {
  Case c{"no decay"};
  const Layout layout{{{0, 17}}, {{17, 29}}};
  c.has_documents = true;
  for (dist::Carry carry : {dist::Carry::gather, dist::Carry::scan}) {
    const Result got = over_ranks(c, layout, false, fused(carry));
    expect_equal(got, of_one_rank(c), c.name);
    for (const Sent& sent : got.sent) EXPECT_EQ(sent, Sent());
  }
}

TEST(ContextRecurrence, RefusesInputsOfOtherSegments) {
  const Case c{"no decay"};
  EXPECT_EQ(test::error_of(
                [&] {
                  over_ranks(c, kLayouts[0].ranks, false,
                             [](dist::Communicator& comm, std::shared_ptr<const dist::SegmentPlan> plan,
                                const RecurrenceVars& in, const ops::RecurrenceOptions& options) {
                               dist::SegmentPlan other = *plan;
                               other.segments.push_back({.rank = comm.rank(), .index = 1});
                               return context_recur(comm, std::make_shared<const dist::SegmentPlan>(other),
                                                    dist::Carry::gather, in, options);
                             });
                },
                {"context recurrence: the plan has 2 segments of rank", "make the plan of the tokens"}),
            "");
}

}  // namespace
}  // namespace weft
