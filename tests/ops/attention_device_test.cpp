// The attention core on GPUs: the fuzzed problems of the CPU's tests, and every variant at every width of heads, against the
// reference, whole and in pieces; repeatability; what is empty, huge or NaN. The same for the kernels that only Hopper has.
#include "tests/ops/attention_case.h"
#include "tests/support/errors.h"
#include "weft/core/stream.h"
#include "weft/ops/attention_core.h"

namespace weft {
namespace {

using namespace test;

TEST(AttentionOnDevices, FuzzedProblemsEqualTheReference) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  fuzz_attention(24, [](const FuzzedAttention& f) {
    expect_equals_reference(f.c, f.tolerance, f.what, Device::cuda());
    expect_pieces_equal_whole(f.c.on(Device::cuda()), f.cuts, f.tolerance, f.what);
  });
}

struct Widths {
  int64_t keys, values;
};

// Gates of a half, far from the start of a sequence: a pair has the bias distance * log 0.5, its parts are near 45000.
void use_log_gates(AttentionCase& c) {
  auto sums = [&](const Tensor& of, const Tensor& positions, double sign) {
    Tensor bias = Tensor::empty({of.size(0), of.size(1), c.q.size(2)}, kF64, Device::cpu());
    const int64_t heads = c.q.size(2);
    for (int64_t i = 0; i < bias.num_elements(); ++i)
      bias.mutable_data<double>()[i] = sign * std::log(0.5) * (65000 + positions.data<int32_t>()[i / heads]);
    return bias;
  };
  c.options.score.query_bias = sums(c.q, c.queries.positions, 1);
  c.options.score.key_bias = sums(c.k, c.keys.positions, -1);
}

struct Variant {
  const char* name;
  void (*apply)(AttentionCase&);
  Order queries = Order::offset, keys = Order::sorted;
};

const std::vector<Variant>& variants() {
  using enum ops::ScoreActivation;
  static const std::vector<Variant> rows = {
      {"causal", [](AttentionCase&) {}},
      {"not causal", [](AttentionCase& c) { c.options.mask.is_causal = false; }, Order::sorted},
      {"window and prefix", [](AttentionCase& c) { c.options.mask.window = 60, c.options.mask.prefix = 20; }},
      {"documents and window", [](AttentionCase& c) { c.options.mask.window = 70, c.use_documents(30); }},
      {"softcap", [](AttentionCase& c) { c.options.score.softcap = 2; }},
      {"alibi", [](AttentionCase& c) { c.options.score.alibi_slopes = alibi_slopes(c.q.size(2)); }},
      {"softcap and alibi",
       [](AttentionCase& c) {
         c.options.score.softcap = 2;
         c.options.score.alibi_slopes = alibi_slopes(c.q.size(2));
       }},
      {"dropout",
       [](AttentionCase& c) {
         c.options.dropout = 0.25;
         c.options.dropout_rng = Rng(5)["attention"];
         c.options.first_row = 9, c.options.first_head = 5;
       }},
      {"sum of sigmoids",
       [](AttentionCase& c) {
         c.options.normaliser = ops::Normaliser::sum;
         c.options.score.activation = sigmoid;
         c.options.score.shift = -1.25;
       }},
      {"sum of expansions, softcap",
       [](AttentionCase& c) {
         c.options.normaliser = ops::Normaliser::sum;
         c.options.score.activation = taylor2;
         c.options.score.softcap = 2;
       }},
      {"signed softmax", [](AttentionCase& c) { c.options.normaliser = ops::Normaliser::signed_softmax; }},
      {"biases, softcap", [](AttentionCase& c) { c.options.score.softcap = 2, c.use_biases(true); }},
      {"biases, signed softmax, documents",
       [](AttentionCase& c) {
         c.options.normaliser = ops::Normaliser::signed_softmax;
         c.use_documents(30), c.use_biases(false);
       }},
      {"biases, sum of sigmoids",
       [](AttentionCase& c) {
         c.options.normaliser = ops::Normaliser::sum;
         c.options.score.activation = sigmoid;
         c.use_biases(true, c.q.dtype() == kF64 ? kF64 : kF32);  // their gradients have their dtype
       }},
      {"biases that are huge where their sums are not", use_log_gates},
      {"unaligned rows", [](AttentionCase& c) { c.gap = 3; }, Order::sorted},
      {"shuffled positions", [](AttentionCase& c) { c.options.mask.window = 90; }, Order::shuffled, Order::shuffled},
  };
  return rows;
}

// Whether every row of heads can be moved 16 bytes at a time.
bool has_aligned_rows(const AttentionCase& c) {
  const auto bytes = static_cast<int64_t>(size_of(c.q.dtype()));
  return c.gap == 0 && c.q.size(3) * bytes % 16 == 0 && c.v.size(3) * bytes % 16 == 0;
}

struct Sweep {
  DType dtype = kBF16;
  std::vector<Widths> widths;
  int64_t queries = 130, keys = 140;  // beyond tiles of 64 and of 128 tokens
  size_t turn = 0;                    // which third of the variants also goes in pieces
  ops::AttentionBackend backend = ops::AttentionBackend::weft;
  bool only_aligned = false;   // for a backend that takes no others
  size_t step = 1, first = 0;  // of the variants
};

// Every variant once, at one of the widths in turn.
void expect_every_variant(const Sweep& sweep) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  const std::array<AttentionSizes, 3> sizes = {
      {{.B = 1, .H = 2, .G = 1}, {.B = 1, .H = 1, .G = 1}, {.B = 2, .H = 1, .G = 1}}};
  for (size_t i = sweep.first; i < variants().size(); i += sweep.step) {
    const Variant& variant = variants()[i];
    AttentionSizes s = sizes[i % sizes.size()];
    s.T = sweep.queries, s.S = sweep.keys;
    s.K = sweep.widths[i % sweep.widths.size()].keys, s.V = sweep.widths[i % sweep.widths.size()].values;
    AttentionCase c(s, sweep.dtype, variant.queries, variant.keys);
    variant.apply(c);
    if (sweep.only_aligned && !has_aligned_rows(c)) continue;
    if (sweep.backend == ops::AttentionBackend::wgmma && c.options.score.query_bias.defined())
      continue;  // refused by name
    c.options.backend = sweep.backend;
    const std::string what = str(variant.name, " ", sweep.dtype, " ", s);
    const double tolerance = sweep.dtype == kF64 ? 1e-10 : sweep.dtype == kF32 ? 1e-5 : 0x1p-6;
    expect_equals_reference(c, tolerance, what, Device::cuda());
    if (i % 3 == sweep.turn) expect_pieces_equal_whole(c.on(Device::cuda()), {0, 67, s.S}, tolerance, what);
  }
}

TEST(AttentionOnDevices, EveryVariantUpTo64WideEqualsTheReference) {
  expect_every_variant({.widths = {{64, 64}, {64, 57}, {33, 48}}, .turn = 0});
}

TEST(AttentionOnDevices, EveryVariantUpTo128WideEqualsTheReference) {
  expect_every_variant({.widths = {{65, 65}, {72, 72}, {96, 80}, {100, 100}, {128, 128}}, .turn = 1});
}

TEST(AttentionOnDevices, EveryVariantUpTo256WideEqualsTheReference) {
  expect_every_variant({.widths = {{136, 136}, {192, 128}, {250, 250}, {256, 256}}, .queries = 100, .turn = 2});
}

TEST(AttentionOnDevices, EveryVariantOfAlignedRowsEqualsTheReferenceByWgmma) {
  if (num_cuda_devices() > 0 && cuda_device_info(0).major != 9) GTEST_SKIP() << "no GPU of compute capability 9.0";
  for (const std::vector<Widths>& widths :
       {std::vector<Widths>{{64, 64}, {32, 64}, {64, 40}}, {{128, 128}, {72, 72}, {96, 80}}})
    expect_every_variant({.widths = widths, .turn = 0, .backend = ops::AttentionBackend::wgmma, .only_aligned = true});
}

// One code in two dtypes.
TEST(AttentionOnDevices, EveryVariantOfWideHeadsInFloat32Or64EqualsTheReference) {
  expect_every_variant({.dtype = kF32, .widths = {{192, 192}}, .queries = 40, .keys = 70, .step = 2, .first = 0});
  expect_every_variant({.dtype = kF64, .widths = {{192, 192}}, .queries = 40, .keys = 70, .step = 2, .first = 1});
}

TEST(AttentionOnDevices, RepeatsBitForBit) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : {kF32, kBF16}) {
    expect_repeats(AttentionCase({1, 130, 150, 4, 2, 64, 64}, dtype, Order::offset).on(Device::cuda()));
  }
}

TEST(AttentionOnDevices, NoKeysOrNoQueriesAreLegal) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : {kF64, kF32, kBF16}) {
    SCOPED_TRACE(str(dtype));
    AttentionCase c = AttentionCase({2, 5, 0, 2, 1, 8, 8}, dtype).on(Device::cuda());
    ops::Attention y = c.forward();
    for (double x : reference::numbers(y.out)) EXPECT_EQ(x, 0);
    for (double x : reference::numbers(y.lse)) EXPECT_EQ(x, -INFINITY);
    ops::AttentionGrads grads = c.backward(y);
    for (double x : reference::numbers(grads.dq)) EXPECT_EQ(x, 0);
    EXPECT_EQ(grads.dk.num_elements(), 0);
    AttentionCase none = AttentionCase({2, 0, 5, 2, 1, 8, 8}, dtype).on(Device::cuda());
    grads = none.backward(none.forward());
    for (const Tensor& t : {grads.dk, grads.dv})
      for (double x : reference::numbers(t)) EXPECT_EQ(x, 0);
  }
}

TEST(AttentionOnDevices, HugeScoresStayFinite) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : {kF32, kBF16})
    for (double size : {1e2, 1e4, 1e30}) {
      AttentionCase c({1, 110, 110, 1, 1, 8, 8}, dtype);
      c.q = ops::scale(c.q, size);
      c = c.on(Device::cuda());
      ops::Attention y = c.forward();
      ops::AttentionGrads grads = c.backward(y);
      for (const Tensor& t : {y.out, y.lse, grads.dq, grads.dv})
        for (double x : reference::numbers(t)) ASSERT_TRUE(std::isfinite(x)) << str(dtype, " ", size);
    }
}

TEST(AttentionOnDevices, NanInAVisibleKeyReachesTheOutput) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : {kF64, kF32, kBF16}) {
    AttentionCase c({1, 20, 20, 1, 1, 8, 8}, dtype);
    Tensor one = c.k.slice(1, 3, 4).slice(3, 0, 1);
    ops::fill_(one, NAN);
    c = c.on(Device::cuda());
    ops::Attention y = c.forward();
    reference::Numbers lse = reference::numbers(y.lse), out = reference::numbers(y.out);
    for (size_t i = 0; i < 20; ++i) {
      EXPECT_EQ(std::isnan(lse[i]), i >= 3) << str(dtype, " ", i);
      EXPECT_EQ(std::isnan(out[8 * i]), i >= 3) << str(dtype, " ", i);
    }
  }
}

TEST(AttentionOnDevices, HeadsWiderThan256AreRefused) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (auto [k, v] : {std::array<int64_t, 2>{257, 8}, {8, 257}}) {
    AttentionCase c = AttentionCase({1, 3, 3, 2, 1, k, v}, kBF16).on(Device::cuda());
    const std::string widths = str("attend: heads are ", k, " and ", v, " wide");
    EXPECT_EQ("", error_of([&] { c.forward(); }, {std::string_view(widths), "up to 256"}));
  }
}

TEST(AttentionOnDevices, FunctorsOfTheUsersOwnAreRefused) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  AttentionCase c = AttentionCase({1, 9, 9, 2, 1, 8, 8}, kF32).on(Device::cuda());
  EXPECT_EQ("", error_of(
                    [&] {
                      ops::attend_with(ops::Causal{}, ops::PlainScore{}, ops::SoftmaxNormaliser{}, c.q, c.k, c.v,
                                       c.queries, c.keys, c.options);
                    },
                    {"attend_block_with: q is on cuda:0", "Device::cpu()"}));
}

}  // namespace
}  // namespace weft
