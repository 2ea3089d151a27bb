// Properties of mixers that no comparison with a reference shows.
#include "weft/nn/mixers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "src/nn/mixers/pair_scores/pair_scores.h"
#include "tests/reference/mixers/compositions.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/models/language_model.h"

namespace weft {
namespace {

using test::error_of;
using test::random_normal;

MixerArgs plain_args(int64_t dim, int64_t context = 16) {
  MixerArgs args{.dim = dim, .context = context, .layer = 1, .layers = 2, .std = 0.4, .out_std = 0.4};
  args.rotary.reset();
  return args;
}

std::vector<double> numbers(const Tensor& x) { return cast(Var(x), kF64).value().to_vector<double>(); }

Tensor forward(Mixer& mixer, const Tensor& x) {
  Tokens tokens(plain_tokens(x.size(0), x.size(1)));
  return mixer.forward(x, tokens).value();
}

// E(xi) = xi.xi / 2 - log(sum_j exp(beta xi.k_j)) / beta does not grow over an update of the last token, which sees all keys.
TEST(Hopfield, UpdatesDescendTheEnergy) {
  const int64_t T = 12, K = 8;
  Tensor k = random_normal({1, T, 1, K}, "k", kF64), q = random_normal({1, T, 1, K}, "q", kF64);
  for (double beta : {0.3, 1.0, 4.0}) {
    Tokens tokens(plain_tokens(1, T));
    Var state = q;
    double before = HUGE_VAL;
    auto keys = numbers(k);
    for (int step = 0; step < 6; ++step) {
      auto xi = numbers(slice(state, 1, T - 1, T).value());
      double square = 0, sum = 0;
      for (double c : xi) square += c * c;
      for (int64_t j = 0; j < T; ++j) {
        double dot = 0;
        for (int64_t c = 0; c < K; ++c) dot += xi[static_cast<size_t>(c)] * keys[static_cast<size_t>(j * K + c)];
        sum += std::exp(beta * dot);
      }
      double energy = square / 2 - std::log(sum) / beta;
      EXPECT_LE(energy, before + 1e-12) << "beta " << beta << ", step " << step;
      before = energy;
      state = tokens.attend(state, k, k, {.scale = beta})[0];
    }
  }
}

// The first update alone: a layer of no steps is plain attention with a learned scale that starts at 1 / sqrt(K).
TEST(Hopfield, OfNoStepsIsPlainAttention) {
  auto a = HopfieldOptions{.heads = 2, .steps = 0}(plain_args(16), Rng(1));
  auto b = SoftmaxOptions{.heads = 2}(plain_args(16), Rng(1));
  Tensor x = random_normal({2, 9, 16}, "x");
  auto y = numbers(forward(*a, x)), z = numbers(forward(*b, x));
  for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], z[i], 1e-6);
}

// At the start all kernels and mixings are identities: plain attention with a norm per head.
TEST(MultiToken, StartsAsAttentionWithANorm) {
  auto a = MultiTokenOptions{.heads = 2, .has_weight_conv = true, .mixes_scores = true, .has_gate = false}(
      plain_args(16), Rng(1));
  auto b = SoftmaxOptions{.heads = 2, .has_head_norm = true}(plain_args(16), Rng(1));
  Tensor x = random_normal({2, 9, 16}, "x");
  auto y = numbers(forward(*a, x)), z = numbers(forward(*b, x));
  for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], z[i], 1e-5);
}

// Norms stand behind the projections and before the outer call, not between inner ones.
TEST(Nexus, NormsStandBehindProjectionsAndBeforeTheOuterCall) {
  for (int64_t order : {1, 2, 3, 4})
    for (bool has_values : {false, true}) {
      NexusOptions o{.heads = 2, .order = order, .has_values_of_layer = has_values, .has_qk_norm = true};
      MixerArgs args = plain_args(16);
      args.rotary.emplace();
      auto mixer = o(args, Rng(1));
      reference::Parameters parameters;
      for (const NamedParam& p : mixer->params()) {
        p.param->set_value(add(p.param->value(), random_normal(p.param->value().shape(), p.name) * 0.3).value());
        parameters[p.name] = cast(Var(p.param->value()), kF64).value();
      }
      mixer->set_compute(kF64);
      Tensor x = random_normal({2, 9, 16}, "x", kF64);
      auto y = numbers(forward(*mixer, x));
      auto z = reference::ComposedMixer(args, parameters, x, plain_tokens(2, 9)).run(o);
      for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], z[i], 1e-11) << order << has_values;
    }
}

// f32 against f64 on one input: the largest distance over size of the output and of all gradients, and the median relative error of the
// gradient of keys' weight.
struct Distance {
  double worst = 0, median = 0;
};
Distance distance_to_f64(const MixerMaker& make, const MixerArgs& args, const Tensor& x) {
  size_t keys = 0;
  auto run = [&](DType dtype) {
    auto mixer = make(args, Rng(1));
    mixer->set_compute(dtype);
    Var in = variable(cast(Var(x), dtype).value());
    Tokens tokens(plain_tokens(x.size(0), x.size(1)), {.is_training = true});
    Var y = mixer->forward(in, tokens);
    backward(sum_all(y * cast(Var(random_normal(y.shape(), "dy")), dtype)));
    std::vector<std::vector<double>> all{numbers(y.value()), numbers(in.grad())};
    for (const NamedParam& p : mixer->params()) {
      if (p.name == "k.weight") keys = all.size();
      all.push_back(numbers(p.param->grad()));
    }
    return all;
  };
  auto f32 = run(kF32), f64 = run(kF64);
  Distance distance;
  std::vector<double> errors;
  for (size_t i = 0; i < f64.size(); ++i) {
    double off = 0, size = 0;
    for (size_t j = 0; j < f64[i].size(); ++j) {
      off += (f32[i][j] - f64[i][j]) * (f32[i][j] - f64[i][j]);
      size += f64[i][j] * f64[i][j];
      if (i == keys) errors.push_back(std::abs(f32[i][j] / f64[i][j] - 1));
    }
    distance.worst = std::max(distance.worst, std::sqrt(off / size));
  }
  std::sort(errors.begin(), errors.end());
  distance.median = errors[errors.size() / 2];
  return distance;
}

// Scores whose mean is large against their spread: tokens that share a vector, or all do but the first.
TEST(Nap, KeepsItsAccuracyWhereTokensAreAlike) {
  const int64_t T = 128, D = 128;
  MixerArgs args{.dim = D, .context = T, .layer = 1, .layers = 2, .std = 0.05, .out_std = 0.05};
  // Rows whose few scores are nearly the same have gradients as large as they are close: they make the worst.
  for (auto [share, worst] : {std::pair{1.0, 1e-5}, {3.0, 1e-4}, {10.0, 5e-3}})
    for (bool is_first_apart : {false, true})
      for (int64_t window : {0, 16})
        for (bool has_rotation : {true, false}) {
          Tensor x = random_normal({2, T, D}, "x"), mean = random_normal({D}, "mean");
          for (int64_t i = 0; i < x.num_elements(); ++i)
            if (!is_first_apart || i / D % T > 0)
              x.mutable_data<float>()[i] += static_cast<float>(share) * mean.data<float>()[i % D];
          MixerArgs a = args;
          if (!has_rotation) a.rotary.reset();
          NapOptions o{.heads = 4, .window = window};
          Distance distance = distance_to_f64(o, a, x);
          EXPECT_LT(distance.worst, worst) << share << is_first_apart << window << has_rotation;
          EXPECT_LT(distance.median, 3e-5) << share << is_first_apart << window << has_rotation;
        }
}

// A large value is felt as long as it is in the window, and no longer.
TEST(Affine, WindowForgetsWhatLeftIt) {
  const int64_t T = 24, W = 5, first = 2;
  SoftmaxOptions o{.heads = 2, .window = W, .affine = {.is_on = true, .initial_mean = 0.5}};
  for (auto [make, factor] : {std::pair{MixerMaker(o), 1e6f}, {NapOptions{.heads = 2, .window = W}, 1e2f}}) {
    auto mixer = make(plain_args(16, T), Rng(1));
    Tensor x = random_normal({1, T, 16}, "x"), large = random_normal({1, T, 16}, "x");
    for (int64_t i = 0; i < first * 16; ++i) large.mutable_data<float>()[i] *= factor;
    auto y = numbers(forward(*mixer, x)), z = numbers(forward(*mixer, large));
    for (size_t i = static_cast<size_t>((first + W) * 16); i < y.size(); ++i)
      EXPECT_NEAR(y[i], z[i], 1e-4) << factor << " " << i;
  }
}

// Where a row begins is nothing to a mixer, except where its header says so: also in decoding.
TEST(Mixers, RowsMayBeginAtAnyPosition) {
  const int64_t T = 11, late = 37;
  for (const MixerRow& row : mixer_table()) {
    // Learned keys, which are not rotated, and the query is.
    const bool has_key_sink = row.name.starts_with("sink_key") || row.name == "hymba_meta";
    const bool has_chunks = row.name.starts_with("rat") || row.name == "tlinformer" || row.name == "moneta" ||
                            row.name == "yaad" || row.name == "memora";
    if (row.name == "super" || row.name == "selective" || row.name == "random_embedding" || row.name == "fixed_text" ||
        row.name == "neural" || has_chunks || row.name == "nats_l" || row.name == "hysparse" || row.name == "flux" ||
        row.name == "linear_window" || has_key_sink)
      continue;  // these read the position itself; chunks and blocks are cut by it, and features are made of rotated queries
    MixerArgs args{.dim = 16, .context = 16, .layer = 1, .layers = 4, .std = 0.4, .out_std = 0.4};
    auto mixer = row.make(args, Rng(7));
    mixer->set_compute(kF64);
    Tensor x = random_normal({2, T, 16}, "x", kF64);
    auto run = [&](const Tensor& some, const TokenData& data, std::shared_ptr<Cache> cache = nullptr) {
      NoGrad no_grad;
      Tokens tokens(data, {.cache = std::move(cache)});
      tokens.share("embedding", Var(some) * 0.5);
      Var y = mixer->forward(some, tokens);
      tokens.finish_decode_step();
      return y;
    };
    auto expected = numbers(run(x, plain_tokens(2, T)).value());
    TokenData apart = plain_tokens(2, T, late);  // without the word that they stand one after the other
    apart.are_consecutive = false;
    TokenData packed = plain_tokens(2, T, late);
    packed.documents = Tensor::zeros({2, T}, kI32);
    packed.document_positions = packed.positions;
    std::vector<Var> parts;
    auto cache = make_cache(2, T);
    for (int64_t begin = 0, count = 4; begin < T; begin += count, count = 1)
      parts.push_back(run(x.slice(1, begin, begin + count), plain_tokens(2, count, late + begin), cache));
    for (const Tensor& y : {run(x, plain_tokens(2, T, late)).value(), run(x, apart).value(), run(x, packed).value(),
                            concatenate(parts, 1).value()}) {
      auto got = numbers(y);
      ASSERT_EQ(got.size(), expected.size());
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 2e-5) << row.name;
    }
  }
}

// A document that begins late stands behind one that does not: its distances are none of the other's.
TEST(Pairs, DocumentsMayBeginAtAnyPosition) {
  for (MixerMaker make : {MixerMaker(RelativeBiasOptions{.heads = 2}), MixerMaker(RcmhaOptions{.heads = 2}),
                          MixerMaker(TapaOptions{.heads = 2})}) {
    auto mixer = make(plain_args(16), Rng(1));
    Tensor x = random_normal({1, 9, 16}, "x");
    TokenData data = plain_tokens(1, 9);
    data.documents = Tensor::from<int32_t>({0, 0, 0, 0, 1, 1, 1, 1, 1}, {1, 9});
    data.document_positions = Tensor::from<int32_t>({0, 1, 2, 3, 60, 61, 62, 63, 64}, {1, 9});
    Tokens tokens(data);
    auto y = numbers(mixer->forward(x, tokens).value()), z = numbers(forward(*mixer, x.slice(1, 4, 9)));
    for (size_t i = 0; i < z.size(); ++i) EXPECT_NEAR(y[i + 4 * 16], z[i], 1e-5) << i;
  }
}

// Tiles of queries meet: more tokens than one tile, with a window and grouped keys.
TEST(Pairs, TilesOfALongRowAreOneAttention) {
  const int64_t T = 300;
  Var q = random_normal({2, T, 4, 8}, "q", kF64), k = random_normal({2, T, 2, 8}, "k", kF64);
  Var v = random_normal({2, T, 2, 6}, "v", kF64);
  for (int64_t window : {0, 37}) {
    Tokens tokens(plain_tokens(2, T));
    auto score = [](const PairTile& tile) {
      return pair_products(tile.queries[0], tile.keys[0]) * (1 / std::sqrt(8.0));
    };
    Var a = attend_pairs(tokens, {&q, 1}, {&k, 1}, v, 4, score, window);
    Var b = tokens.attend(q, k, v, {.mask = {.window = window}})[0];
    auto y = numbers(a.value()), z = numbers(b.value());
    ASSERT_EQ(y.size(), z.size());
    for (size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(y[i], z[i], 1e-12);
  }
}

TEST(Pairs, RefuseWhatCannotFit) {
  Var x = Tensor::zeros({1, 4}, kF32);
  EXPECT_EQ(error_of([&] { check_materialised("multi_token", x, 8, 1e15); },
                     {"multi_token: a row of tokens this long needs", "GiB", "use shorter sequences"}),
            "");
  check_materialised("multi_token", x, 8, 1e6);
  auto mixer = SimplifiedOptions{SimplifiedKind::super, 2}(plain_args(16, 8), Rng(1));
  EXPECT_EQ(error_of(
                [&] {
                  forward(*mixer, random_normal({1, 9, 16}, "x"));
                },
                {"super attention: a token at position 8, its triangle has 8", "the model's context"}),
            "");
  const std::vector<int32_t> late{6, 7, 8, 9};
  Tokens tokens(TokenData{.positions = Tensor::from(std::span<const int32_t>(late), {1, 4})});
  EXPECT_EQ(error_of(
                [&] {
                  mixer->forward(random_normal({1, 4, 16}, "x"), tokens);
                },
                {"super attention: a token at position 8, its triangle has 8", "the model's context"}),
            "");
}

// Everything that visits MixerOptions knows every row: config texts, benchmarks, references.
TEST(Mixers, EveryRowIsMadeOfListedOptions) {
  for (const MixerRow& row : mixer_table()) EXPECT_NO_THROW(options_of(row)) << row.name;
  MixerRow own{.name = "own", .make = [](const MixerArgs&, Rng) -> std::unique_ptr<Mixer> { return nullptr; }};
  EXPECT_EQ(error_of([&] { options_of(own); }, {"mixer own: its maker is none of MixerOptions", "weft/nn/mixers.h"}),
            "");
}

TEST(Mixers, AModelRefusesOneThatForgotToNameAParam) {
  struct Forgetful final : Mixer {
    Param scale{Tensor::full({3}, 1)};
    Var forward(const Var& x, Tokens&) override { return x; }
    double flops_per_token(double) const override { return 0; }
  };
  LanguageModelOptions options{.vocab = 8, .dim = 16, .layers = 2, .context = 8};
  options.mixers = {SoftmaxOptions{.heads = 2}, [](const MixerArgs&, Rng) { return std::make_unique<Forgetful>(); }};
  EXPECT_EQ(error_of([&] { LanguageModel(options, Rng(1)); }, {"mixer of layer 1: its Param [3] f32", "name_parts()"}),
            "");
}

// What cannot be made says what and what to do.
TEST(Mixers, RefuseImpossibleSizes) {
  struct Row {
    MixerMaker make;
    std::vector<std::string_view> parts;
  };
  const Row rows[] = {
      {MlaOptions{.heads = 3}, {"mla: dim 16 is not a multiple of heads 3"}},
      {MlaOptions{.heads = 2, .rope_dim = 3}, {"mla: rope_dim 3", "even"}},
      {NexusOptions{.heads = 4, .kv_heads = 3}, {"nexus: heads 4 is not a multiple of kv_heads 3"}},
      {NexusOptions{.heads = 4, .kv_heads = 2, .has_values_of_layer = true},
       {"nexus: inner calls on the layer's values"}},
      {NexusOptions{.heads = 2, .order = 0}, {"nexus: order 0"}},
      {HopfieldOptions{.heads = 2, .steps = -1}, {"hopfield: steps -1"}},
      {DifferentialOptions{.heads = 16}, {"differential: head_dim 1 has no halves", "a multiple of 2"}},
      {DualOptions{.heads = 2, .relational_heads = 3}, {"dual: 2 sensory and 3 relational heads for dim 16"}},
      {TapaOptions{.heads = 2, .amplitude_share = 1}, {"tapa: amplitude_share 1 of 8 channels"}},
      {NeuralOptions{.heads = 2, .hidden = 3}, {"neural: hidden 3", "even"}},
      {MultiTokenOptions{.heads = 2, .key_kernel = 4}, {"multi_token: kernels of 6 queries and 4 keys", "odd"}},
      {MultiTokenOptions{.heads = 4, .group = 3}, {"multi_token: groups of 3 of 4 heads"}},
      {RelativeBiasOptions{.heads = 2, .buckets = 3}, {"relative_bias: 3 buckets"}},
      {GlaOptions{.heads = 3}, {"gla: 3 heads, gate_rank 16 for dim 16", "multiple of 2 heads"}},
      {GlaOptions{.heads = 2, .kernel = -1}, {"gla: kernel -1", "0 (no convolution)"}},
      {GlaOptions{.heads = 2, .clamp_min = 0}, {"gla: clamp_min 0", "below 0"}},
      {GlaOptions{.heads = 2, .clamp_min = -2e4}, {"gla: clamp_min -20000"}},
      {GlaOptions{.heads = 2, .clamp_min = NAN}, {"gla: clamp_min nan"}},
      {LinearAttentionOptions{.heads = 2, .kernel = -1}, {"linear_attention: kernel -1"}},
      {RetnetOptions{.heads = 2, .kernel = -1}, {"retnet: kernel -1"}},
      {LightningOptions{.heads = 2, .kernel = -1}, {"lightning: kernel -1"}},
      {HgrnOptions{.heads = 0, .kernel = -1}, {"hgrn: kernel -1"}},
      {GatedSlotsOptions{.heads = 2, .kernel = -1}, {"gated_slots: kernel -1"}},
      {GatedSlotsOptions{.heads = 4, .kv_heads = 3}, {"gated_slots: heads 4 is not a multiple of kv_heads 3"}},
      {GatedSlotsOptions{.heads = 4, .kv_heads = -1}, {"gated_slots: heads 4", "divisors"}},
      {AdditiveSlotsOptions{.heads = 2, .kernel = -1}, {"additive_slots: kernel -1"}},
      {AdditiveSlotsOptions{.kind = SlotKind::efficient, .heads = 2, .kernel = 4},
       {"additive_slots: kernel 4 of a kind without", "lightnet"}},
      {DeltaOptions{.heads = 4, .key_heads = 3}, {"delta: heads 4, key_heads 3", "divisors"}},
      {DeltaOptions{.decay = DeltaDecay::head, .heads = 5}, {"delta: keys of 5 heads for dim 16", "head_dim"}},
      {DeltaOptions{.heads = 2, .kernel = -1}, {"delta: kernel -1"}},
      {DeltaOptions{.heads = 2, .has_safe_gate = true},
       {"delta: a safe gate without a decay per channel", "leave safe_gate out"}},
      {SoftmaxOptions{.heads = 2, .gates = {{.activation = GateActivation::identity}}},
       {"softmax: gate on out multiplies by the bare projection", "an additive gate"}},
      {DeltaOptions{.heads = 2, .norm_eps = 0}, {"delta: norm_eps 0"}},
      {SoftmaxOptions{.heads = 2, .has_bias = true, .has_input_bias = true},
       {"softmax: biases on all projections and on those of the input"}},
      {LinearAttentionOptions{.heads = 3}, {"linear attention: dim 16 is not a multiple of heads 3"}},
      {RetnetOptions{.heads = 3}, {"retnet: 3 heads for a width of 16"}},
      {LightningOptions{.heads = 0}, {"lightning: 0 heads for a width of 16"}},
      {Mamba2Options{.heads = 4, .groups = 3}, {"mamba2: heads 4, groups 3"}},
      {HgrnOptions{.heads = 3}, {"hgrn: 3 heads for a width of 16"}},
      {GatedSlotsOptions{.heads = 2, .slots = 0}, {"gated_slots: slots 0"}},
      {AdditiveSlotsOptions{.heads = 2, .slots = -1}, {"additive_slots: slots -1"}},
      {AdditiveSlotsOptions{.heads = 2, .slots = 4}, {"additive_slots: slots 4", "leave slots out"}},
      {AdditiveSlotsOptions{.kind = SlotKind::efficient, .heads = 2, .slots = 4}, {"additive_slots: slots 4"}},
      {AdditiveSlotsOptions{.kind = SlotKind::efficient, .heads = 2, .gate_rank = 4},
       {"additive_slots: gate_rank 4", "lightnet"}},
      {AdditiveSlotsOptions{.kind = SlotKind::agent, .heads = 2, .gate_rank = 4}, {"additive_slots: gate_rank 4"}},
      {LinearAttentionOptions{.heads = 2, .head_dim = -2}, {"linear attention: head_dim -2", "or more"}},
      {DeltaOptions{.heads = 2, .head_dim = -2}, {"delta: head_dim -2, value_dim 0", "or more"}},
      {DeltaOptions{.heads = 2, .value_dim = -2}, {"delta: head_dim 0, value_dim -2"}},
      {RalaOptions{.heads = 2, .kernel = 0}, {"rala: kernel 0"}},
      {LocalLinearOptions{.heads = 1, .head_dim = 1025}, {"local_linear: head_dim 1025", "at most 1024"}},
      {MirasOptions{.heads = 3}, {"miras: 3 heads for a width of 16"}},
      {MirasOptions{.heads = 2, .chunk = 0}, {"miras: chunk 0, kernel 4"}},
      {TlinformerOptions{.heads = 2, .depth = 1}, {"tlinformer: depth 1, window 256, rows 256"}},
      {TlinformerOptions{.heads = 2, .rows = 0}, {"tlinformer: depth 4, window 256, rows 0"}},
      {PoolingOptions{.heads = 3}, {"pooling: 3 heads for a width of 16"}},
      {MoaOptions{.experts = 2, .active = 3}, {"moa: 3 active of 2 experts"}},
      {UmoeOptions{.experts = 2, .active = 0}, {"umoe: 0 active of 2 experts"}},
      {SoftmaxOptions{.heads = 4, .head_mixture = {.active = 3, .shared = 2}},
       {"softmax: head mixture of 2 shared and 3 chosen of 4 heads", "at most all heads"}},
      {SoftmaxOptions{.heads = 4, .head_mixture = {.shared = 2}}, {"at least one is chosen"}},
      {SoftmaxOptions{.heads = 4, .dropout = 0.1, .head_mixture = {.active = 2, .path = HeadPath::grouped}},
       {"softmax: a grouped head mixture with dropout", "dense or automatic"}},
  };
  for (const Row& row : rows) {
    EXPECT_EQ(error_of([&] { row.make(plain_args(16), Rng(1)); }, std::span(row.parts)), "") << row.parts[0];
    // A config has no names of C++ members.
    try {
      row.make(plain_args(16), Rng(1));
    } catch (const Error& error) {
      for (const char* member : {" has_", " is_", " reads_", " keeps_", " divides_"})
        EXPECT_EQ(std::string(error.what()).find(member), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace weft
