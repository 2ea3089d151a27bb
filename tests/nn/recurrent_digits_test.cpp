// Digits that recurrent mixers keep: features of far negative keys, writes of gates near 1, exponentials of large logits.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/nn/mixers.h"

namespace weft {
namespace {

using test::error_of;
using test::random_normal;

constexpr int64_t kDim = 8, kTokens = 12;

std::vector<double> numbers(const Var& x) { return cast(x, kF64).value().to_vector<double>(); }

// The parameter's numbers become f(row, column, what they are).
void change(Mixer& mixer, const std::string& name, const std::function<double(int64_t, int64_t, double)>& f) {
  for (const NamedParam& p : mixer.params()) {
    if (p.name != name) continue;
    const Shape shape = p.param->value().shape();
    const int64_t columns = shape.back();
    std::vector<double> all = numbers(*p.param);
    for (int64_t i = 0; i < static_cast<int64_t>(all.size()); ++i) {
      double& x = all[static_cast<size_t>(i)];
      x = f(i / columns, i % columns, x);
    }
    p.param->set_value(Tensor::from(std::span<const double>(all), shape));
    return;
  }
  ADD_FAILURE() << name;
}

// Normal numbers, but a channel 0 of ones: what a projection takes from it is as a bias.
Tensor inputs() {
  Tensor x = random_normal({1, kTokens, kDim}, "x", kF32);
  for (int64_t t = 0; t < kTokens; ++t) x.mutable_data<float>()[t * kDim] = 1;
  return x;
}

std::vector<double> run(Mixer& mixer, const Tensor& x, DType dtype) {
  NoGrad no_grad;
  mixer.set_compute(dtype);
  Tokens tokens(plain_tokens(1, kTokens));
  return numbers(mixer.forward(cast(Var(x), dtype), tokens));
}

void expect_digits(const std::vector<double>& got, const std::vector<double>& want, double share,
                   const std::string& what) {
  double largest = 0;
  for (double x : want) largest = std::max(largest, std::abs(x));
  ASSERT_GT(largest, 0) << what;
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], share * largest) << what << ", number " << i;
}

// elu(x) + 1 = e^x of keys about -5 is less than the spacing of bf16 numbers at 1.
TEST(RecurrentDigits, FeaturesOfFarNegativeKeysAreNotRounded) {
  struct Row {
    const char* name;
    MixerMaker make;
    double allowed;
  };
  const Row rows[] = {
      {"linear attention", LinearAttentionOptions{.heads = 1}, 0.03},
      {"linear window", ReplacementOptions{.kind = ReplacementKind::linear, .heads = 1, .window = kTokens}, 0.02}};
  Var noise = random_normal({1, kTokens, kDim}, "x", kF32);
  const Tensor x = cast(cast(sin(noise) + 5.0, kBF16), kF32).value();
  for (const Row& row : rows) {
    auto made = [&] {
      auto mixer = row.make({.dim = kDim, .context = 16, .rotary = std::nullopt}, Rng(3));
      for (const char* name : {"q.weight", "k.weight"})
        change(*mixer, name, [](int64_t r, int64_t c, double) { return r == c ? -1 : 0; });
      change(*mixer, "out.weight", [](int64_t r, int64_t c, double) { return r == c ? 1 : 0; });
      // Differences of channels: numbers about 0.
      change(*mixer, "v.weight", [](int64_t r, int64_t c, double) {
        return r == c ? 1 : c == (r + 1) % kDim ? -1 : 0;
      });
      return mixer;
    };
    const std::vector<double> got = run(*made(), x, kBF16), want = run(*made(), x, kF64);
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], row.allowed) << row.name << ", number " << i;
  }
}

// A gate f of 1 - 1e-6 writes a share of 1e-6, of which a difference from 1 in f32 has one digit.
TEST(RecurrentDigits, WritesOfGatesNearOneAreNotRounded) {
  constexpr int64_t kLayers = 24;
  struct Row {
    const char* name;
    MixerMaker make;
    int64_t layer;
  };
  const Row rows[] = {{"hgrn, its first layer", HgrnOptions{.heads = 0}, 0},
                      {"hgrn, a bound near 1", HgrnOptions{.heads = 0}, kLayers - 1},
                      {"hgrn2, its first layer", HgrnOptions{.heads = 2}, 0},
                      {"hgrn2, a bound near 1", HgrnOptions{.heads = 2}, kLayers - 1},
                      {"gsa", GatedSlotsOptions{.heads = 2, .slots = 3}, 0}};
  for (const Row& row : rows) {
    auto made = [&] {
      auto mixer = row.make(
          {.dim = kDim, .context = 16, .layer = row.layer, .layers = kLayers, .std = 0.3, .out_std = 0.3}, Rng(3));
      const bool is_bounded = row.layer > 0;
      if (is_bounded)
        change(*mixer, "bounds", [](int64_t, int64_t i, double) {
          return i < kDim ? -12 + 0.1 * static_cast<double>(i) : 0.05 * std::sin(static_cast<double>(i));
        });
      else
        change(*mixer, "decay.weight",
               [](int64_t r, int64_t c, double x) { return c == 0 ? 12 + 0.3 * static_cast<double>(r % 5) : x; });
      return mixer;
    };
    expect_digits(run(*made(), inputs(), kF32), run(*made(), inputs(), kF64), 1e-4, row.name);
  }
}

std::unique_ptr<Mixer> slots_of(SlotKind kind, double bias_of_keys) {
  const bool has_slots = kind == SlotKind::agent || kind == SlotKind::flare;
  auto mixer = AdditiveSlotsOptions{.kind = kind, .heads = 2, .slots = has_slots ? 3 : 0}(
      {.dim = kDim, .context = 16, .std = 0.3, .out_std = 0.3}, Rng(3));
  if (has_slots) change(*mixer, "agents", [](int64_t, int64_t c, double x) { return c == 0 ? 1 : x; });
  change(*mixer, "k.weight", [&](int64_t r, int64_t c, double x) {
    const bool is_first_of_head = r % (kDim / 2) == 0;
    return c == 0 && (!has_slots || is_first_of_head) ? x + bias_of_keys : x;
  });
  return mixer;
}

// A softmax over positions does not see what is added to all of a slot's logits: as far as sums of exponentials reach, and behind it
// nothing is cut off in silence.
TEST(RecurrentDigits, LogitsOfSlotsAreExactOrRefused) {
  for (SlotKind kind : {SlotKind::lightnet, SlotKind::efficient}) {
    const std::vector<double> want = run(*slots_of(kind, 0), inputs(), kF64);
    for (double bias : {-590.0, 590.0})
      expect_digits(run(*slots_of(kind, bias), inputs(), kF64), want, 1e-10, str(bias));
  }
  for (SlotKind kind : {SlotKind::lightnet, SlotKind::efficient, SlotKind::agent, SlotKind::flare})
    for (double bias : {-3000.0, -1000.0, 1000.0, 3000.0}) {
      if (kind == SlotKind::agent && std::abs(bias) < 2000) continue;  // its logits are divided by sqrt(4)
      EXPECT_EQ(error_of([&] { run(*slots_of(kind, bias), inputs(), kF32); },
                         {"additive_slots: a logit of a slot of size ", "sizes up to 600", "learning rate"}),
                "");
    }
  auto rala = RalaOptions{.heads = 2}({.dim = kDim, .context = 16, .std = 0.3}, Rng(3));
  for (const char* name : {"q.weight", "k.weight"})
    change(*rala, name, [](int64_t, int64_t, double x) { return 100 * x; });
  EXPECT_EQ(error_of([&] { run(*rala, inputs(), kF32); }, {"rala: a score", " of size ", "sizes up to 600"}), "");
}

}  // namespace
}  // namespace weft
