// Trainings over data x context ranks, in float64: orders in which rings and sums of gradients could wait for each other, and checkpoints that
// go on under another mesh and layout.
#include <gtest/gtest.h>

#include "tests/io/temp_folder.h"
#include "tests/training/ranks_support.h"
#include "weft/data/spread.h"
#include "weft/nn/context_group.h"
#include "weft/nn/mixers.h"

namespace weft {
namespace {

using namespace test;

constexpr double kExact = 1e-10;
constexpr int64_t kTokens = 32;  // of a row

struct Mesh {
  int data = 1, context = 1;
  dist::LayoutKind layout = dist::LayoutKind::zigzag;
  int zero = 0;
  dist::Scheme scheme = dist::Scheme::ring;
  int ranks() const { return data * context; }
};
std::string to_string(const Mesh& m) {
  return str(m.data, " data x ", m.context, " context, ", dist::to_string(m.layout), ", zero ", m.zero);
}

data::Batch rows(int64_t first, int64_t count) {
  data::Batch batch;
  for (Tensor* x : {&batch.tokens, &batch.targets, &batch.positions, &batch.documents, &batch.document_positions})
    *x = Tensor::zeros({count, kTokens}, kI32, Device::cpu());
  for (int64_t i = 0; i < count * kTokens; ++i) {
    const int64_t row = first + i / kTokens, t = i % kTokens;
    auto id = [&](int64_t place) { return static_cast<int32_t>((row * row * 3 + place * place * 5 + place) % kVocab); };
    batch.tokens.mutable_data<int32_t>()[i] = id(t);
    batch.targets.mutable_data<int32_t>()[i] = (row + t) % 5 == 0 ? -1 : id(t + 1);
    for (Tensor* x : {&batch.positions, &batch.document_positions})
      x->mutable_data<int32_t>()[i] = static_cast<int32_t>(t);
  }
  return batch;
}

// f(training, samples) on every rank of the mesh, with a model of its own. Returns the weights of the first rank.
using Samples = data::SampleSource;
std::vector<Numbers> on_mesh(const Mesh& mesh, const std::function<std::unique_ptr<LanguageModel>()>& make,
                             TrainingOptions options, const std::function<void(Training&, const Samples&)>& f) {
  std::vector<Numbers> weights;
  dist::run_thread_ranks(
      mesh.ranks(),
      [&](dist::Communicator& world) {
        const auto context = world.split(world.rank() / mesh.context, world.rank(), "context");
        const ContextGroup group{.tokens = context.get(), .batch = &world, .scheme = mesh.scheme};
        TrainingOptions mine = options;
        mine.micro_batch /= mesh.data;
        mine.ranks.comm = &world;
        mine.ranks.zero = mesh.zero;
        mine.ranks.ranks_per_row = mesh.context;
        if (mesh.context > 1) mine.context = &group;
        auto samples = [&](int64_t first, int64_t count) {
          const data::Batch all = rows(first, count);
          if (mesh.context == 1) return all;
          const data::SpreadOptions how{
              .layout = mesh.layout, .ranks = mesh.context, .block = 4, .keeps_documents_apart = false};
          return data::spread(all, how, context->rank());
        };
        const auto model = make();
        Training training(*model, mine);
        f(training, samples);
        if (world.rank() > 0) return;
        for (const NamedParam& p : model->params()) weights.push_back(numbers_of(p.param->value()));
      },
      {.timeout_s = 60});
  return weights;
}

void expect_same(const std::vector<Numbers>& got, const std::vector<Numbers>& want) {
  expect_close(got, want, std::vector<std::string>(want.size(), "a weight"), kExact);
}

// Which expert a token chooses is another thing on every rank: so is what backward reaches there, and when.
TEST(MeshRanks, SumsBetweenRingsThatWaitForThemEqualOneRankWithExperts) {
  size_t count = 0;
  for (const MixerRow& row : mixer_table()) {
    if (!row.name.starts_with("moa") && !row.name.starts_with("umoe") && !row.name.starts_with("moh")) continue;
    if (!row.lacks.order.empty()) continue;
    auto make = [&] {
      return std::make_unique<LanguageModel>(
          LanguageModelOptions{
              .vocab = kVocab, .dim = 32, .layers = 2, .context = kTokens, .mixers = {row.make}, .ffn = {.hidden = 24}},
          Rng(1));
    };
    auto train = [&](const Mesh& mesh) {
      TrainingOptions options{
          .groups = {{.algorithm = SgdOptions{.lr = 0.1, .momentum = 0}}}, .compute = kF64, .micro_batch = 4};
      options.ranks = {.bucket_bytes = 1, .overlaps_backward = false};
      return on_mesh(mesh, make, options, [](Training& training, const Samples& samples) {
        for (int step = 0; step < 2; ++step) training.step(samples, training.num_samples(), 4);
      });
    };
    SCOPED_TRACE(row.name);
    const std::vector<Numbers> want = train({});
    const Mesh meshes[] = {{.context = 2}, {.data = 2, .context = 2, .layout = dist::LayoutKind::striped, .zero = 2}};
    for (const Mesh& mesh : meshes) {
      SCOPED_TRACE(to_string(mesh));
      expect_same(train(mesh), want);
    }
    ++count;
  }
  EXPECT_GE(count, 6u);
}

TEST(MeshRanks, MixersAloneEqualOneRank) {
  const ResidualMaker streams[] = {StandardResidualOptions{}, RoutedResidualOptions{}};
  for (const ResidualMaker& stream : streams) {
    auto make = [&] {
      return std::make_unique<LanguageModel>(
          LanguageModelOptions{.vocab = kVocab,
                               .dim = 32,
                               .layers = 3,
                               .context = kTokens,
                               .mixers = {SoftmaxOptions{.heads = 4}, DeltaOptions{.heads = 2}},
                               .has_ffn = false,
                               .residual = stream},
          Rng(1));
    };
    auto train = [&](const Mesh& mesh) {
      const TrainingOptions options{
          .groups = {{.algorithm = AdamWOptions{.lr = 3e-3}}}, .compute = kF64, .micro_batch = 4};
      return on_mesh(mesh, make, options, [](Training& training, const Samples& samples) {
        for (int step = 0; step < 3; ++step) training.step(samples, training.num_samples(), 4);
      });
    };
    const std::vector<Numbers> want = train({});
    for (const Mesh& mesh :
         {Mesh{.data = 2}, Mesh{.context = 2}, Mesh{.data = 2, .zero = 2}, Mesh{.data = 2, .context = 2, .zero = 1}}) {
      SCOPED_TRACE(to_string(mesh));
      expect_same(train(mesh), want);
    }
  }
}

// Rank 0 of a row uses `first`, the other one `second`. What a rank does not use is final before backward begins, so that its sum could come
// before the ring of `lower` on one rank and behind it on the other.
struct Uneven : Module {
  Embedding embedding{kVocab, 8, Rng(1)};
  Linear first{8, 8, Rng(2)}, lower{8, 8, Rng(3)}, second{8, 8, Rng(4)}, upper{8, 8, Rng(5)}, head{8, kVocab, Rng(6)};
  Uneven() {
    name_parts({{"embedding", embedding},
                {"first", first},
                {"lower", lower},
                {"second", second},
                {"upper", upper},
                {"head", head}});
  }
  TokenLoss loss(int rank) {
    return [this, rank](const Tensor& ids, const Tensor& targets, Tokens& tokens, double factor) {
      auto attend = [&](const Var& x) {
        const Var heads = reshape(x, {x.size(0), x.size(1), 1, 8});
        return reshape(tokens.attend(heads, heads, heads)[0], x.shape());
      };
      const Var x = attend((rank ? second : first)(embedding(ids)));
      const Var y = attend(upper(lower(x)));
      const Var losses = cross_entropy(reshape(head(y), {-1, kVocab}), targets.reshape({-1}));
      return LanguageModelLoss{sum_all(losses) * factor, ops::cast(losses.value(), kF32).reshape(targets.shape())};
    };
  }
};

TEST(MeshRanks, AParameterThatOneRankOfARowDoesNotUseHoldsUpNoRing) {
  auto train = [](const RanksOptions& ranks) {
    std::vector<std::vector<Numbers>> weights(2);
    dist::run_thread_ranks(
        2,
        [&](dist::Communicator& world) {
          const ContextGroup group{.tokens = &world};
          Uneven model;
          TrainingOptions options{.groups = {{.algorithm = SgdOptions{.lr = 0.1, .momentum = 0}}}, .compute = kF64};
          options.ranks = ranks;
          options.ranks.comm = &world;
          options.ranks.ranks_per_row = 2;
          options.context = &group;
          Training training(model, model.loss(world.rank()), options);
          auto samples = [&](int64_t first, int64_t count) {
            return data::spread(rows(first, count), {.ranks = 2, .keeps_documents_apart = false}, world.rank());
          };
          for (int step = 0; step < 2; ++step) training.step(samples, training.num_samples(), 2);
          for (const NamedParam& p : model.params())
            weights[static_cast<size_t>(world.rank())].push_back(numbers_of(p.param->value()));
        },
        {.timeout_s = 20});
    EXPECT_EQ(weights[1], weights[0]);
    return weights[0];
  };
  const std::vector<Numbers> want = train({.bucket_bytes = 1 << 24});
  for (int zero : {0, 2})
    for (bool overlaps : {true, false})
      expect_same(train({.zero = zero, .bucket_bytes = 1, .overlaps_backward = overlaps}), want);
}

// Saved after three steps of six.
TEST(MeshRanks, ACheckpointGoesOnUnderAnotherMeshAndLayoutToTheLastDigits) {
  TempFolder folder;
  LanguageModelOptions model = expert_options();
  model.context = kTokens;
  auto make = [&] { return std::make_unique<LanguageModel>(model, Rng(1)); };
  auto train = [&](const Mesh& mesh, bool resumes) {
    TrainingOptions options = f64_options();
    options.clip_norm = 0.5;
    options.micro_batch = 4;
    return on_mesh(mesh, make, options, [&](Training& training, const Samples& samples) {
      if (resumes) {
        EXPECT_TRUE(training.load(folder.path()));
        EXPECT_EQ(training.num_steps(), 3);
        EXPECT_EQ(training.num_samples(), 24);
        EXPECT_EQ(training.state().num_tokens, 24 * kTokens);
      }
      while (training.num_steps() < 6) {
        training.step(samples, training.num_samples(), 8);
        if (!resumes && training.num_steps() == 3) training.save(folder.path());
      }
    });
  };
  const std::vector<Numbers> want = train({.context = 2, .zero = 1}, false);
  const Mesh meshes[] = {{},
                         {.context = 2, .zero = 1},
                         {.context = 4, .layout = dist::LayoutKind::balanced, .zero = 2},
                         {.data = 2, .context = 2, .layout = dist::LayoutKind::contiguous, .zero = 2}};
  for (const Mesh& mesh : meshes) {
    SCOPED_TRACE(to_string(mesh));
    const std::vector<Numbers> got = train(mesh, true);
    if (mesh.context == 2 && mesh.data == 1) { EXPECT_EQ(got, want) << "to the bit on the same mesh"; }
    expect_same(got, want);
  }
}

}  // namespace
}  // namespace weft
