// Routes as data, the bytes that schemes send, the choice of a scheme, decoding over ranks, and what is refused.
#include <set>

#include "distributed/context/route.h"
#include "tests/distributed/context_case.h"
#include "tests/distributed/counting_communicator.h"
#include "tests/support/errors.h"
#include "weft/distributed/cost_model.h"

namespace weft::test {
namespace {

using dist::Route;

TEST(ContextRoute, EveryRankHasEveryPacketOnceAndItsSenderHasItBefore) {
  std::vector<std::pair<std::string, Route>> routes;
  for (int ranks : {1, 2, 3, 4, 5, 7, 8}) {
    routes.emplace_back(str("bidirectional ", ranks), dist::bidirectional_route(ranks));
    routes.emplace_back(str("all_gather ", ranks), dist::all_gather_route(ranks, 3));
    for (int node = 1; node <= ranks; ++node)
      if (ranks % node == 0)
        routes.emplace_back(str("ring ", ranks, " / ", node), dist::ring_route(ranks / node, node));
  }
  for (const auto& [what, forwards] : routes)
    for (const Route& route : {forwards, dist::reversed_of(forwards)})
      for (int rank = 0; rank < route.ranks(); ++rank) {
        SCOPED_TRACE(str(what, ", rank ", rank));
        std::set<std::pair<int, int>> seen;
        for (int t = 0; t < static_cast<int>(route.hops.size()); ++t) {
          const dist::Hop& hop = route.hops[static_cast<size_t>(t)];
          const int owner = route.owner(rank, t);
          EXPECT_TRUE(seen.insert({hop.part, owner}).second);
          EXPECT_EQ(route.holder(owner, t), rank);
          EXPECT_LE(hop.due, t);
          if (hop.from < 0) {
            EXPECT_EQ(owner, rank);
            continue;
          }
          const dist::Hop& from = route.hops[static_cast<size_t>(hop.from)];
          EXPECT_LT(hop.sent_in, hop.due);
          EXPECT_TRUE(from.from < 0 || from.due <= hop.sent_in);  // the sender has it
          EXPECT_EQ(from.part, hop.part);
          if (hop.sums_from >= 0) {
            EXPECT_LT(hop.sums_from, hop.sums_sent_in);
            EXPECT_LE(hop.sums_sent_in, t);
          }
          EXPECT_GT(hop.home_in, t);
        }
        EXPECT_EQ(seen.size(), static_cast<size_t>(route.ranks() * route.parts));
      }
}

TEST(ContextRoute, PacketsGoOnlyWhereTheyHaveWorkOrPassThrough) {
  const int ranks = 4;
  const Layout layout = Layout::contiguous(64, ranks);
  const HopPlan plan = plan_hops(layout, {});
  const Route ring = dist::ring_route(1, ranks), gather = dist::all_gather_route(ranks, 1);
  const dist::Traffic of_ring = dist::traffic_of_keys(ring, plan), of_gather = dist::traffic_of_keys(gather, plan);
  for (int rank = 0; rank < ranks; ++rank)
    for (int t = 1; t < ranks; ++t) {
      EXPECT_EQ(of_ring.has_packet(rank, t), rank >= t);  // nobody before sees later keys
      EXPECT_EQ(of_gather.has_packet(rank, t), rank >= t);
      EXPECT_EQ(of_gather.sends_home(rank, t), rank >= t);
      EXPECT_EQ(of_ring.sends_home(rank, t), rank == ranks - 1);  // the last one that sees them
    }
}

dist::ContextShape shape_of(const RankCase& c, int ranks) {
  const ops::AttentionScore& score = c.options.score;
  return {.ranks = ranks,
          .batch = c.q.size(0),
          .tokens = c.q.size(1),
          .heads = c.q.size(2),
          .kv_heads = c.k.size(2),
          .key_width = c.q.size(3),
          .value_width = c.v.size(3),
          .dtype = c.q.dtype(),
          .are_values_in_keys = c.v.raw() == c.k.raw(),
          .has_documents = c.here.documents.defined(),
          .has_lse = c.options.normaliser != ops::Normaliser::sum,
          .query_bias_heads = score.query_bias.defined() ? score.query_bias.size(2) : 0,
          .key_bias_heads = score.key_bias.defined() ? score.key_bias.size(2) : 0,
          .bias_dtype = score.query_bias.defined() ? score.query_bias.dtype() : kF32};
}

TEST(MessageBytes, AreThoseThatSchemesSend) {
  for (int ranks : {1, 2, 3, 4, 8})
    for (DType dtype : {kBF16, kF64})
      for (int64_t kv_heads : {1, 2, ranks == 3 ? 6 : 8})
        for (bool has_all : {false, true}) {
          const int64_t tokens = 8 * ranks;
          Sequence s =
              make_sequence("", tokens, dtype, {.B = 2, .H = ranks == 3 ? 6 : 8, .G = kv_heads, .K = 6, .V = 4});
          if (has_all) s.c.use_biases(true), use_documents(s, 7);
          else if (kv_heads == 2) s.c.options.normaliser = ops::Normaliser::sum;
          else if (kv_heads == 1) s.c.v = s.c.k.slice(3, 0, 4);
          const Layout layout = Layout::zigzag(tokens, ranks);
          std::vector<SchemeRow> rows = scheme_rows(ranks);
          rows.push_back({"ring, as it chooses", Scheme::ring});
          for (const SchemeRow& row : rows) {
            std::mutex mutex;
            dist::MessageBytes most, want;
            dist::run_thread_ranks(ranks, [&](Communicator& inner) {
              CountingCommunicator comm(inner, row.options.node);
              const RankCase mine(s.c, layout, comm.rank());
              const dist::ContextRanks of(comm, row.options);
              const HopPlan plan = HopPlan::every_hop(ranks);
              const ops::Attention y =
                  context_attention(of, row.scheme, mine.q, mine.k, mine.v, mine.here, mine.options, plan);
              const int64_t forward = comm.bytes, between = comm.between_nodes;
              context_attention_backward(of, row.scheme, mine.dout, mine.dlse, mine.q, mine.k, mine.v, y, mine.here,
                                         mine.options, plan);
              std::lock_guard lock(mutex);
              most.forward = std::max(most.forward, forward);
              most.backward = std::max(most.backward, comm.bytes - forward);
              most.forward_between_nodes = std::max(most.forward_between_nodes, between);
              most.backward_between_nodes = std::max(most.backward_between_nodes, comm.between_nodes - between);
              want = message_bytes(row.scheme, shape_of(mine, ranks), row.options);
            });
            SCOPED_TRACE(str(ranks, " ranks, ", dtype, ", ", kv_heads, " key heads, ", row.what));
            EXPECT_EQ(most.forward, want.forward);
            EXPECT_EQ(most.backward, want.backward);
            EXPECT_EQ(most.forward_between_nodes, want.forward_between_nodes);
            EXPECT_EQ(most.backward_between_nodes, want.backward_between_nodes);
          }
        }
}

// A plan's bytes, of a causal mask that leaves hops out, for MHA, GQA and the latent of MLA.
TEST(MessageBytes, OfTheCostModelAreThoseThatSchemesSend) {
  struct Heads {
    const char* what;
    int64_t kv_heads;
    bool are_values_in_keys;
  };
  constexpr int kRanks = 4;
  constexpr int64_t kTokens = 16 * kRanks;
  const dist::Hardware& h200 = dist::hardware_profile("h200");
  for (const Heads& heads : {Heads{"mha", 8, false}, Heads{"gqa", 2, false}, Heads{"mla", 1, true}})
    for (dist::LayoutKind kind : {dist::LayoutKind::contiguous, dist::LayoutKind::zigzag}) {
      Sequence s = make_sequence("", kTokens, kBF16, {.B = 2, .H = 8, .G = heads.kv_heads, .K = 6, .V = 4});
      if (heads.are_values_in_keys) s.c.v = s.c.k.slice(3, 0, 4);
      const Layout layout =
          kind == dist::LayoutKind::zigzag ? Layout::zigzag(kTokens, kRanks) : Layout::contiguous(kTokens, kRanks);
      const HopPlan plan = dist::causal_plan(kind, kTokens, kRanks);
      for (const SchemeRow& row : scheme_rows(kRanks)) {
        SCOPED_TRACE(str(heads.what, ", ", to_string(layout), ", ", row.what));
        std::mutex mutex;
        dist::MessageBytes most;
        dist::SchemeCost cost;
        dist::run_thread_ranks(kRanks, [&](Communicator& inner) {
          CountingCommunicator comm(inner);
          const RankCase mine(s.c, layout, comm.rank());
          const dist::ContextRanks of(comm, row.options);
          const ops::Attention y =
              context_attention(of, row.scheme, mine.q, mine.k, mine.v, mine.here, mine.options, plan);
          const int64_t forward = comm.bytes;
          context_attention_backward(of, row.scheme, mine.dout, mine.dlse, mine.q, mine.k, mine.v, y, mine.here,
                                     mine.options, plan);
          std::lock_guard lock(mutex);
          most.forward = std::max(most.forward, forward);
          most.backward = std::max(most.backward, comm.bytes - forward);
          cost = attention_cost(row.scheme, row.options, {.shape = shape_of(mine, kRanks), .plan = plan}, h200);
        });
        EXPECT_EQ(cost.forward_sent, static_cast<double>(most.forward));
        EXPECT_EQ(cost.backward_sent, static_cast<double>(most.backward));
      }
    }
}

TEST(MessageBytes, AreNoneOnOneRankWhichHasTheBitsOfOneCall) {
  const Sequence s = make_sequence("", 24, kBF16, {.B = 2, .H = 4, .G = 2, .K = 4, .V = 4});
  const ops::Attention want = s.c.forward();
  const ops::AttentionGrads want_grads = s.c.backward(want);
  const auto self = dist::make_self_communicator();
  for (Scheme scheme : dist::all_schemes()) {
    SCOPED_TRACE(str(scheme));
    CountingCommunicator comm(*self);
    const dist::ContextRanks ranks(comm, {.group = 1, .node = 1});
    const HopPlan plan = HopPlan::every_hop(1);
    const ops::Attention y = context_attention(ranks, scheme, s.c.q, s.c.k, s.c.v, s.c.queries, s.c.options, plan);
    const ops::AttentionGrads grads = context_attention_backward(ranks, scheme, s.c.dout, s.c.dlse, s.c.q, s.c.k, s.c.v,
                                                                 y, s.c.queries, s.c.options, plan);
    expect_same_bits(y.out, want.out, "out"), expect_same_bits(y.lse, want.lse, "lse");
    expect_same_bits(grads.dq, want_grads.dq, "dq"), expect_same_bits(grads.dk, want_grads.dk, "dk");
    expect_same_bits(grads.dv, want_grads.dv, "dv");
    EXPECT_EQ(comm.bytes, 0);
    EXPECT_EQ(comm.exchanges + comm.collectives, 0);
  }
}

// V_kv = 2 n G K b, of which a ring moves P - 1, and a double ring as much in sum but only nodes - 1 between nodes.
TEST(MessageBytes, AreTheFormulasOfTheSchemes) {
  const dist::ContextShape shape{
      .ranks = 8, .tokens = 1024, .heads = 32, .kv_heads = 8, .key_width = 128, .value_width = 128};
  const int64_t keys = 2 * 1024 * 8 * 128 * 2, places = 4 * 1024, sums = 2 * keys;
  const dist::MessageBytes ring = message_bytes(Scheme::ring, shape);
  EXPECT_EQ(ring.forward, 7 * (keys + places));
  EXPECT_EQ(ring.backward, 7 * (keys + places + sums));
  EXPECT_EQ(message_bytes(Scheme::bidirectional_ring, shape).forward, ring.forward);
  EXPECT_EQ(message_bytes(Scheme::all_gather, shape).backward, ring.backward);
  const dist::MessageBytes twice = message_bytes(Scheme::double_ring, shape, {.node = 4});
  EXPECT_EQ(twice.forward, ring.forward);
  EXPECT_EQ(twice.forward_between_nodes, keys + places);
  EXPECT_EQ(message_bytes(Scheme::ring, shape, {.node = 4}).forward_between_nodes, 7 * (keys + places));
  const int64_t heads = 1024 * 128 * 2;  // of one head of a rank's tokens
  EXPECT_EQ(message_bytes(Scheme::ulysses, shape).forward,
            7 * (heads * (2 * 32 + 2 * 8) / 8 + places + 1024 * 4 * 32 / 8));
}

TEST(MessageBytes, QueriesTravelInBackwardOnlyWhereTheyAreFewerBytes) {
  for (int64_t kv_heads : {32, 16, 8, 4}) {
    const dist::ContextShape shape{
        .ranks = 4, .tokens = 1024, .heads = 32, .kv_heads = kv_heads, .key_width = 128, .value_width = 128};
    auto backward = [&](Travels travels) { return message_bytes(Scheme::ring, shape, {.backward = travels}).backward; };
    EXPECT_EQ(backward(Travels::automatic), backward(kv_heads == 32 ? Travels::queries : Travels::keys));
    EXPECT_EQ(backward(Travels::queries) < backward(Travels::keys), kv_heads == 32);
  }
}

TEST(ChooseScheme, FollowsHeadsNodesDocumentsAndMemory) {
  using dist::LayoutKind;
  struct Row {
    const char* what;
    int ranks, per_node;
    int64_t kv_heads, tokens;
    bool has_documents, is_windowed, has_recurrence;
    Scheme scheme;
    LayoutKind layout;
    int group, node;
    const char* reason;
  };
  const Row rows[] = {
      {"alone", 1, 8, 8, 4096, false, false, false, Scheme::ring, LayoutKind::contiguous, 0, 0, "one rank"},
      {"heads divide", 8, 8, 8, 4096, false, false, false, Scheme::ulysses, LayoutKind::contiguous, 0, 0,
       "8 key heads"},
      {"heads do not divide", 3, 8, 8, 4096, false, false, false, Scheme::ring, LayoutKind::zigzag, 0, 0,
       "3 ranks do not divide 8 key heads"},
      {"long", 8, 8, 8, 1 << 20, false, false, false, Scheme::ring, LayoutKind::zigzag, 0, 0, "buffers of ulysses"},
      {"windows", 16, 16, 8, 4096, false, true, false, Scheme::ring, LayoutKind::contiguous, 0, 0, "has a window"},
      {"documents", 16, 8, 8, 4096, true, false, false, Scheme::all_gather, LayoutKind::balanced, 0, 0,
       "packed documents"},
      {"documents, recurrence", 16, 8, 8, 4096, true, false, true, Scheme::all_gather, LayoutKind::zigzag, 0, 0,
       "packed documents"},
      {"long documents", 64, 8, 8, 1 << 18, true, false, false, Scheme::usp, LayoutKind::balanced, 8, 0,
       "among 8 ranks"},
      {"nodes", 64, 8, 8, 16384, false, false, false, Scheme::usp, LayoutKind::zigzag, 8, 0, "64 ranks on nodes of 8"},
      {"nodes, few heads", 64, 8, 2, 16384, false, false, false, Scheme::usp, LayoutKind::zigzag, 2, 0, "ring of 32"},
      {"nodes, one head", 64, 8, 1, 16384, false, false, false, Scheme::double_ring, LayoutKind::zigzag, 0, 8,
       "do not divide"},
      {"odd nodes", 12, 8, 5, 16384, false, false, false, Scheme::ring, LayoutKind::zigzag, 0, 0, "12 ranks"},
  };
  for (const Row& row : rows) {
    const dist::SchemeChoice got =
        dist::choose_scheme({.ranks = row.ranks,
                             .tokens = row.tokens,
                             .heads = row.kv_heads * 4,
                             .kv_heads = row.kv_heads,
                             .key_width = 128,
                             .value_width = 128,
                             .has_documents = row.has_documents},
                            {.ranks_per_node = row.per_node, .device_bytes = 80e9},
                            {.is_windowed = row.is_windowed, .has_recurrence = row.has_recurrence});
    EXPECT_EQ(got.scheme, row.scheme) << row.what << ": " << got.reason;
    EXPECT_EQ(got.layout, row.layout) << row.what;
    EXPECT_EQ(got.options.group, row.group) << row.what;
    EXPECT_EQ(got.options.node, row.node) << row.what;
    EXPECT_NE(got.reason.find(row.reason), std::string::npos) << got.reason;
  }
}

TEST(ChooseScheme, DefaultOptionsFitEveryNumberOfRanksThatTheSchemeTakes) {
  for (Scheme scheme : dist::all_schemes())
    for (int ranks = 1; ranks <= 12; ++ranks)
      for (int64_t heads : {1, 6, 8})
        for (int per_node : {0, 1, 4}) {
          const SchemeOptions options = dist::default_options(scheme, ranks, heads, per_node);
          const std::string problem = dist::scheme_problem(scheme, ranks, heads, options);
          EXPECT_EQ(problem.empty(), scheme != Scheme::ulysses || heads % ranks == 0) << problem;
        }
  EXPECT_EQ(dist::default_options(Scheme::usp, 8, 6).group, 2);
  EXPECT_EQ(dist::default_options(Scheme::usp, 8, 8).group, 4);
  EXPECT_EQ(dist::default_options(Scheme::double_ring, 6, 1).node, 3);
}

// A group of 3 of 6 ranks on nodes of 4 would have ranks of two nodes.
TEST(ChooseScheme, DefaultGroupsAreWithinNodes) {
  auto group = [](int ranks, int64_t heads, int per_node) {
    return dist::default_options(Scheme::usp, ranks, heads, per_node).group;
  };
  auto node = [](int ranks, int per_node) {
    return dist::default_options(Scheme::double_ring, ranks, 1, per_node).node;
  };
  EXPECT_EQ(node(64, 0), 32);
  EXPECT_EQ(node(64, 8), 8);
  EXPECT_EQ(node(6, 4), 2);
  EXPECT_EQ(node(12, 8), 4);
  EXPECT_EQ(node(8, 1), 1);
  EXPECT_EQ(group(64, 32, 8), 8);
  EXPECT_EQ(group(64, 4, 8), 4);
  EXPECT_EQ(group(6, 6, 4), 2);
  for (int per_node : {0, 8, 16}) {  // one node
    EXPECT_EQ(group(8, 8, per_node), 4);
    EXPECT_EQ(node(8, per_node), 4);
  }
}

TEST(ChooseScheme, BalancedLayoutsHaveTwoBlocksOfEveryRank) {
  using dist::LayoutKind;
  struct Row {
    int64_t tokens, block;  // of a rank
    bool has_documents, is_windowed, has_recurrence;
    LayoutKind layout;
    const char* reason;
  };
  const Row rows[] = {
      {128, 64, true, false, false, LayoutKind::balanced, ""},
      {127, 64, true, false, false, LayoutKind::zigzag,
       "documents in layout zigzag and not balanced: 127 tokens of a rank are fewer than two blocks of 64"},
      {16, 64, true, true, false, LayoutKind::contiguous, "documents in layout contiguous and not balanced: 16 tokens"},
      {16, 8, true, false, false, LayoutKind::balanced, ""},
      {15, 8, true, false, false, LayoutKind::zigzag, "15 tokens of a rank are fewer than two blocks of 8"},
      {16, 64, true, false, true, LayoutKind::zigzag, ""},
      {16, 64, false, false, false, LayoutKind::zigzag, ""},
  };
  for (const Row& row : rows) {
    const dist::ContextModel model{
        .is_windowed = row.is_windowed, .has_recurrence = row.has_recurrence, .block = row.block};
    // All gather, usp, a double ring and a ring.
    for (const auto& [ranks, kv_heads, device_bytes] :
         {std::tuple(3, 8, 80e9), std::tuple(16, 8, 1e3), std::tuple(16, 1, 1e3), std::tuple(3, 8, 1e3)}) {
      const dist::SchemeChoice got = dist::choose_scheme({.ranks = ranks,
                                                          .tokens = row.tokens,
                                                          .heads = kv_heads,
                                                          .kv_heads = kv_heads,
                                                          .key_width = 8,
                                                          .value_width = 8,
                                                          .has_documents = row.has_documents},
                                                         {.ranks_per_node = 8, .device_bytes = device_bytes}, model);
      EXPECT_EQ(got.layout, row.layout) << got.reason;
      EXPECT_EQ(got.layout_reason.empty(), *row.reason == 0) << got.layout_reason;
      EXPECT_NE(got.layout_reason.find(row.reason), std::string::npos) << got.layout_reason;
    }
  }
}

// Every rank has the queries, and keys as they come: in uneven pieces, some of them empty.
TEST(ContextDecode, EqualsOneCallOnEveryRankToTheSameBits) {
  const std::vector<int64_t> pieces[] = {
      {0, 40}, {0, 7, 40}, {0, 7, 7, 40}, {0, 0, 11, 12, 40}, {0, 3, 9, 9, 20, 31, 40, 40}};
  for (auto normaliser : {ops::Normaliser::softmax, ops::Normaliser::sum, ops::Normaliser::signed_softmax})
    for (DType dtype : {kF64, kF32})
      for (auto merge : {dist::DecodeMerge::all_gather, dist::DecodeMerge::tree})
        for (const std::vector<int64_t>& cuts : pieces) {
          AttentionCase c({2, 3, 40, 4, 2, 8, 5}, dtype, Order::offset, Order::shuffled);
          c.queries.positions = Tensor::from({40, 41, 42, 20, 41, 60}, {2, 3});
          c.options.normaliser = normaliser;
          c.options.mask.window = 30;
          const ops::Attention want = c.forward();
          std::mutex mutex;
          std::vector<ops::Attention> all;
          dist::run_thread_ranks(static_cast<int>(cuts.size()) - 1, [&](Communicator& comm) {
            const auto r = static_cast<size_t>(comm.rank());
            const ops::Attention y =
                dist::context_decode(comm, c.q, c.k.slice(1, cuts[r], cuts[r + 1]), c.v.slice(1, cuts[r], cuts[r + 1]),
                                     c.queries, part_of(c.keys, cuts[r], cuts[r + 1]), c.options, merge);
            std::lock_guard lock(mutex);
            all.push_back(y);
          });
          const double tolerance = dtype == kF64 ? 1e-13 : 2e-6;
          for (const ops::Attention& y : all) {
            expect_near(y.out, reference::numbers(want.out), tolerance, "out");
            expect_near(y.lse, reference::numbers(want.lse), tolerance, "lse");
            expect_same_bits(y.out, all.front().out, "out"), expect_same_bits(y.lse, all.front().lse, "lse");
          }
        }
}

TEST(ContextErrors, SayWhatDoesNotFit) {
  Sequence s = make_sequence("", 24, kF32, {.B = 1, .H = 4, .G = 2, .K = 4, .V = 4});
  auto call = [&](int ranks, Scheme scheme, const SchemeOptions& options, const HopPlan& plan,
                  ops::AttentionBackend backend = ops::AttentionBackend::automatic) {
    AttentionCase c = s.c;
    c.options.backend = backend;
    return [=] {
      dist::run_thread_ranks(ranks, [&](Communicator& comm) {
        const RankCase mine(c, Layout::contiguous(24, ranks), comm.rank());
        context_attention({comm, options}, scheme, mine.q, mine.k, mine.v, mine.here, mine.options, plan);
      });
    };
  };
  EXPECT_EQ(
      error_of(call(2, Scheme::ring, {}, HopPlan::every_hop(3)), {"a plan of 3 ranks for 2", "of this communicator"}),
      "");
  EXPECT_EQ(error_of(call(3, Scheme::ulysses, {}, HopPlan::every_hop(3)),
                     {"ulysses: 4 query heads for 3 ranks", "divides the query heads", "ring or all_gather"}),
            "");
  EXPECT_EQ(error_of(call(4, Scheme::usp, {}, HopPlan::every_hop(4)),
                     {"usp: 4 ranks in groups of 0", "SchemeOptions::group"}),
            "");
  EXPECT_EQ(error_of(call(3, Scheme::usp, {.group = 3}, HopPlan::every_hop(3)),
                     {"usp: 4 query heads for groups of 3 ranks", "SchemeOptions::group"}),
            "");
  EXPECT_EQ(error_of(call(4, Scheme::usp, {.group = 3}, HopPlan::every_hop(4)), {"usp: 4 ranks in groups of 3"}), "");
  EXPECT_EQ(error_of(call(4, Scheme::double_ring, {.node = 3}, HopPlan::every_hop(4)),
                     {"double_ring: 4 ranks in nodes of 3", "SchemeOptions::node"}),
            "");
  EXPECT_EQ(error_of(call(2, Scheme::all_gather, {.heads_at_once = -1}, HopPlan::every_hop(2)), {"-1 heads at once"}),
            "");
  EXPECT_EQ(error_of(call(2, Scheme::ring, {}, HopPlan::every_hop(2), ops::AttentionBackend::cudnn),
                     {"attend_block: cuDNN's kernels take all keys at once", "backend weft"}),
            "");
  EXPECT_EQ(error_of(call(2, Scheme::ring, {}, HopPlan::every_hop(2), ops::AttentionBackend::wgmma),
                     {"attend_block: the backend wgmma is for GPUs"}),
            "");
}

}  // namespace
}  // namespace weft::test
