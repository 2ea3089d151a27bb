// ZeRO: ranks that share the updates give the weights of ranks that do not, keep a part of the state each, and save it as one.
#include <algorithm>
#include <set>

#include "src/training/gradient_plan.h"
#include "tests/io/temp_folder.h"
#include "tests/support/errors.h"
#include "tests/training/ranks_support.h"
#include "weft/core/dry_run.h"

namespace weft {
namespace {

using namespace test;

constexpr double kExact = 1e-10;

const std::vector<std::vector<ParamGroup>> kOptimizers = {
    {{.algorithm = AdamWOptions{.lr = 1e-2}}},
    {{.match = "layers.*.weight", .num_dims = 2, .algorithm = MuonOptions{}}, {.algorithm = AdamWOptions{.lr = 1e-2}}},
    {{.match = "layers.*", .algorithm = LionOptions{.lr = 1e-3}}, {.algorithm = SgdOptions{.lr = 0.1}}},
    {{.match = "layers.*", .algorithm = SgdOptions{.lr = 0.1, .momentum = 0}},
     {.algorithm = ScheduleFreeOptions{.lr = 1e-2}}}};

// Every element has one owner; what is cut is equal to one element per bucket, and the costs of whole parameters to one of them.
TEST(Zero, PartsOfBucketsCoverEveryElementOnceAndAreEqual) {
  std::vector<Tensor> params;
  std::vector<double> costs;
  for (int64_t i = 0; i < 23; ++i) {
    params.push_back(Tensor::zeros({i % 5 + 1, i % 7 + 1}, i % 11 == 3 ? kF64 : kF32));
    costs.push_back(i % 3 == 0 ? static_cast<double>(i * i % 17 + 1) : 0);
  }
  for (int ranks : {1, 2, 3, 8, 40})
    for (int64_t bytes : {1, 100, 1 << 20}) {
      std::vector<Bucket> buckets = plan_buckets(params, bytes);
      share_out(buckets, params, costs, ranks);
      std::vector<size_t> order;
      std::vector<std::vector<int>> owners(params.size());
      for (size_t i = 0; i < params.size(); ++i) owners[i].assign(static_cast<size_t>(params[i].num_elements()), -1);
      std::vector<double> loads(static_cast<size_t>(ranks));
      for (const Bucket& bucket : buckets) {
        ASSERT_EQ(bucket.parts.size(), static_cast<size_t>(ranks));
        int64_t total = 0, size = 0;
        for (size_t i : bucket.params) {
          order.push_back(i);
          EXPECT_EQ(params[i].dtype(), params[bucket.params[0]].dtype());
          total += costs[i] > 0 ? 0 : params[i].num_elements();
          if (i != bucket.params.back()) size += static_cast<int64_t>(params[i].num_bytes());
        }
        EXPECT_LT(size, bytes) << "a bucket goes on though it is full";
        for (int r = 0; r < ranks; ++r) {
          int64_t cut = 0;
          for (const Part& part : bucket.parts[static_cast<size_t>(r)]) {
            if (costs[part.param] > 0) loads[static_cast<size_t>(r)] += costs[part.param];
            else cut += part.end - part.begin;
            for (int64_t k = part.begin; k < part.end; ++k) {
              int& owner = owners[part.param][static_cast<size_t>(k)];
              EXPECT_EQ(owner, -1);
              owner = r;
            }
          }
          EXPECT_GE(cut, total / ranks);
          EXPECT_LE(cut, total / ranks + 1);
        }
      }
      EXPECT_TRUE(std::is_sorted(order.rbegin(), order.rend()));
      EXPECT_EQ(order.size(), params.size());
      for (size_t i = 0; i < params.size(); ++i) {
        EXPECT_EQ(std::count(owners[i].begin(), owners[i].end(), -1), 0);
        if (costs[i] > 0) { EXPECT_EQ(std::set<int>(owners[i].begin(), owners[i].end()).size(), 1u); }
      }
      const auto [least, most] = std::minmax_element(loads.begin(), loads.end());
      EXPECT_LE(*most - *least, *std::max_element(costs.begin(), costs.end()));
    }
}

TEST(Zero, GivesTheBitsOfUnsharedUpdates) {
  for (size_t o = 0; o < kOptimizers.size(); ++o)
    for (DType compute : {kF32, kBF16}) {
      SCOPED_TRACE(str("optimiser ", static_cast<int64_t>(o), " ", compute));
      RankRun run{.ranks = 3, .model = tiny_options(), .keeps_gradients = false};
      run.training = {.groups = kOptimizers[o], .compute = compute, .micro_batch = 6};
      const RankResult want = run_ranks(run);
      for (int zero : {1, 2})
        for (int64_t bytes : {1, 3000, 1 << 24}) {
          run.training.ranks = {.zero = zero, .bucket_bytes = bytes};
          const RankResult got = run_ranks(run);
          EXPECT_EQ(got.weights, want.weights) << "zero " << zero << ", buckets of " << bytes;
          for (size_t i = 0; i < want.steps.size(); ++i) {
            EXPECT_EQ(got.steps[i].loss, want.steps[i].loss);
            EXPECT_NEAR(got.steps[i].grad_norm, want.steps[i].grad_norm, 1e-6);
          }
        }
    }
}

// A matrix of Muon may be the only one of its shape on its rank. At 512 rows a product of one takes another kernel than a batch.
TEST(Zero, GivesTheBitsOfUnsharedUpdatesOfLargeMatrices) {
  LanguageModelOptions wide = tiny_options();
  wide.dim = 512, wide.layers = 1, wide.ffn.hidden = 64;
  wide.mixers = {SoftmaxOptions{.heads = 8}};
  RankRun run{.ranks = 2, .steps = 3, .rows = 4, .model = wide, .keeps_gradients = false};
  run.training = {.groups = kOptimizers[1], .micro_batch = 4};
  const RankResult want = run_ranks(run);
  for (int zero : {1, 2}) {
    run.training.ranks = {.zero = zero};
    const RankResult got = run_ranks(run);
    EXPECT_TRUE(got.weights == want.weights) << "zero " << zero;
    for (size_t i = 0; i < want.steps.size(); ++i) EXPECT_EQ(got.steps[i].loss, want.steps[i].loss) << "step " << i;
  }
}

TEST(Zero, EqualsOneRankWithClippingAndExperts) {
  RankRun run{.model = expert_options(), .training = f64_options(), .keeps_gradients = false};
  run.training.clip_norm = 0.25;
  const RankResult want = run_ranks(run);
  for (int zero : {1, 2})
    for (int ranks : {2, 3, 4}) {
      SCOPED_TRACE(str("zero ", zero, ", ", ranks, " ranks"));
      run.ranks = ranks;
      run.training.ranks = {.zero = zero, .bucket_bytes = 2000};
      expect_equal_runs(run_ranks(run), want, kExact);
    }
}

int64_t bytes_of(const std::vector<std::pair<std::string, Tensor>>& state) {
  size_t bytes = 0;
  for (const auto& [name, tensor] : state) bytes += tensor.num_bytes();
  return static_cast<int64_t>(bytes);
}

TEST(Zero, StateOfTheOptimiserIsDividedAmongTheRanks) {
  LanguageModelOptions wide = tiny_options();
  wide.layers = 4;
  for (size_t o : {size_t{0}, size_t{1}})
    for (int zero : {1, 2})
      for (int ranks : {2, 4}) {
        SCOPED_TRACE(str("optimiser ", static_cast<int64_t>(o), ", zero ", zero, ", ", ranks, " ranks"));
        LanguageModel alone(wide, Rng(1));
        const int64_t whole = bytes_of(Training(alone, {.groups = kOptimizers[o]}).optimizer().state());
        std::vector<int64_t> bytes(static_cast<size_t>(ranks));
        dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
          LanguageModel model(wide, Rng(1));
          Training training(model, {.groups = kOptimizers[o], .ranks = {.comm = &comm, .zero = zero}});
          training.step(rows_from, 0, 4);
          bytes[static_cast<size_t>(comm.rank())] = bytes_of(training.optimizer().state());
        });
        int64_t sum = 0;
        for (int64_t each : bytes) {
          sum += each;
          // Matrices stay whole, so that their ranks are equal to one matrix only.
          EXPECT_LE(each, whole / ranks + (o == 0 ? 16 : 16 * 48 * 4)) << "of " << whole;
        }
        EXPECT_EQ(sum, whole);
      }
}

// A dry run of one rank asks the others for nothing.
TEST(Zero, ADryRunTellsTheMemoryOfARank) {
  auto memory_of = [](dist::Communicator* comm, int zero) {
    DryRun dry;
    LanguageModel model(tiny_options(), Rng(1));
    const int64_t before = dry.memory(Device::cpu()).current_bytes;
    Training training(model, {.micro_batch = 2, .ranks = {.comm = comm, .zero = comm ? zero : 0}});
    const int64_t state = dry.memory(Device::cpu()).current_bytes - before;
    for (int step = 0; step < 2; ++step) training.step(rows_from, 0, 16);
    return state;
  };
  dist::run_thread_ranks(4, [&](dist::Communicator& comm) {
    const int64_t alone = memory_of(nullptr, 0);
    EXPECT_EQ(memory_of(&comm, 0), alone);
    if (comm.rank() > 0) return;
    for (int zero : {1, 2}) {
      EXPECT_GT(memory_of(&comm, zero), alone / 8);
      EXPECT_LE(memory_of(&comm, zero), alone / 4 + 64);
    }
  });
}

// Before the last gradient is final, those of the buckets that were summed are gone.
TEST(Zero, GradientsThatOthersUpdateAreFreedDuringBackward) {
  dist::run_thread_ranks(2, [](dist::Communicator& comm) {
    LanguageModel model(tiny_options(), Rng(1));
    Training training(
        model, {.micro_batch = 2, .ranks = {.comm = &comm, .zero = 2, .bucket_bytes = 1, .overlaps_backward = false}});
    const std::vector<NamedParam> params = model.params();
    size_t num_left = 0;
    params[0].param->var().on_step_grad([&](Tensor&) {  // the embedding is the first parameter and the last gradient
      for (const NamedParam& p : params) num_left += p.param->grad().defined();
    });
    training.step(rows_from, 0, 8);
    EXPECT_EQ(num_left, 1u) << "its own";
  });
}

// Rates by the sign of the gradient; it knows nothing of parts.
class SignOptimizer final : public AnyOptimizer {
 public:
  explicit SignOptimizer(std::vector<OptimizerParam> params) : params_(std::move(params)) {
    for (const OptimizerParam& p : params_) counts_.push_back(Tensor::zeros(p.value.shape()));
  }
  void step(std::span<const Tensor> grads, double lr_factor, double) override {
    ASSERT_EQ(grads.size(), params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      ASSERT_EQ(grads[i].shape(), params_[i].value.shape());
      auto *x = params_[i].value.mutable_data<float>(), *count = counts_[i].mutable_data<float>();
      for (int64_t k = 0; k < grads[i].num_elements(); ++k) {
        const float sign = grads[i].data<float>()[k] > 0 ? 1 : -1;
        x[k] -= static_cast<float>(0.003 * lr_factor) * sign;
        count[k] += sign;
      }
    }
    ++num_steps_;
  }
  int64_t num_steps() const override { return num_steps_; }
  std::vector<std::pair<std::string, Tensor>> state() const override {
    std::vector<std::pair<std::string, Tensor>> all{{"sign", Tensor::from<int64_t>({num_steps_}, {1})}};
    for (size_t i = 0; i < params_.size(); ++i) all.emplace_back(params_[i].name + ".count", counts_[i]);
    return all;
  }
  void load_state(std::span<const std::pair<std::string, Tensor>> state, int64_t num_steps) override {
    ASSERT_EQ(state.size(), params_.size() + 1);
    for (const auto& [name, tensor] : state)
      for (size_t i = 0; i < params_.size(); ++i)
        if (name == params_[i].name + ".count") counts_[i].set_bytes(tensor);
    num_steps_ = num_steps;
  }

 private:
  std::vector<OptimizerParam> params_;
  std::vector<Tensor> counts_;
  int64_t num_steps_ = 0;
};

struct Half {
  std::vector<std::vector<float>> weights;
  std::vector<std::string> names;  // of the optimiser's tensors in the file
};
// Steps `from` .. 6 on `ranks` ranks; loads from the folder if `from` is not 0, and saves after step 3 if it is.
Half train_from(const std::string& folder, int from, int ranks, const TrainingOptions& options) {
  Half half;
  dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
    LanguageModel model(expert_options(), Rng(from ? 9 : 1));
    TrainingOptions mine = options;
    mine.micro_batch = 12 / ranks;
    mine.ranks.comm = &comm;
    Training training(model, mine);
    if (from) {
      EXPECT_TRUE(training.load(folder));
      EXPECT_EQ(training.num_steps(), 3);
      EXPECT_EQ(training.num_samples(), 36);
    }
    while (training.num_steps() < 6) {
      training.step(uneven_rows, training.num_samples(), 12);
      if (!from && training.num_steps() == 3) { EXPECT_EQ(training.save(folder), io::checkpoint_path(folder, 3)); }
    }
    if (comm.rank()) return;
    half.weights = weights_of(model);
    const io::Checkpoint saved = io::load_checkpoint(io::checkpoint_path(folder, 3));
    for (const io::TensorEntry& entry : saved.optimizer.tensors())
      half.names.push_back(str(entry.name, " ", Shape(std::span<const int64_t>(entry.shape))));
    std::sort(half.names.begin(), half.names.end());
  });
  return half;
}

void expect_near_weights(const Half& got, const Half& want, double error) {
  ASSERT_EQ(got.weights.size(), want.weights.size());
  for (size_t i = 0; i < got.weights.size(); ++i)
    for (size_t k = 0; k < got.weights[i].size(); ++k)
      ASSERT_NEAR(static_cast<double>(got.weights[i][k]), static_cast<double>(want.weights[i][k]), error);
}

TEST(Zero, IsSavedAsOneAndGoesOnAnyNumberOfRanks) {
  for (size_t o = 0; o <= kOptimizers.size(); ++o)
    for (int zero : {0, 1, 2}) {
      SCOPED_TRACE(str("optimiser ", static_cast<int64_t>(o), ", zero ", zero));
      TrainingOptions options{.clip_norm = 1, .ranks = {.zero = zero, .bucket_bytes = 2000}};
      if (o < kOptimizers.size()) options.groups = kOptimizers[o];
      else options.optimizer = [](auto params) { return std::make_unique<SignOptimizer>(std::move(params)); };
      TempFolder of_one, of_three;
      TrainingOptions alone = options;
      alone.ranks.zero = 0;
      const Half one = train_from(of_one / "c", 0, 1, alone), three = train_from(of_three / "c", 0, 3, options);
      EXPECT_EQ(three.names, one.names);
      EXPECT_EQ(train_from(of_three / "c", 3, 3, options).weights, three.weights) << "to the bit on as many ranks";
      if (o == 2 || o == kOptimizers.size()) continue;  // signs of gradients near 0 turn with their last bits
      expect_near_weights(train_from(of_three / "c", 3, 1, alone), three, 2e-3);
      expect_near_weights(train_from(of_three / "c", 3, 2, options), three, 2e-3);
      expect_near_weights(train_from(of_one / "c", 3, 4, options), one, 2e-3);
    }
}

TEST(Zero, GoesOnInF64OnAnotherNumberOfRanksToTheLastDigits) {
  TempFolder folder;
  auto weights_after = [&](int ranks, int zero, bool resumes) {
    std::vector<Numbers> weights;
    dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
      LanguageModel model(tiny_options(), Rng(1));
      TrainingOptions options = f64_options();
      options.clip_norm = 0.5;
      options.ranks = {.comm = &comm, .zero = zero};
      Training training(model, options);
      if (resumes) { EXPECT_TRUE(training.load(folder.path())); }
      while (training.num_steps() < 6) {
        training.step(uneven_rows, training.num_samples(), 12);
        if (!resumes && training.num_steps() == 3) training.save(folder.path());
      }
      if (comm.rank()) return;
      for (const NamedParam& p : model.params()) weights.push_back(numbers_of(p.param->value()));
    });
    return weights;
  };
  const std::vector<Numbers> want = weights_after(3, 2, false);
  const std::vector<std::string> names(want.size(), "a weight");
  expect_close(weights_after(1, 0, true), want, names, kExact);
  expect_close(weights_after(2, 1, true), want, names, kExact);
  expect_close(weights_after(4, 2, true), want, names, kExact);
}

TEST(Zero, AveragesAreSeenOnAllRanksAndThePointComesBack) {
  const std::vector<ParamGroup> free = {{.algorithm = ScheduleFreeOptions{.lr = 1e-2}}};
  std::vector<std::vector<float>> want;
  double want_loss = 0;
  for (int zero : {0, 1, 2})
    dist::run_thread_ranks(2, [&](dist::Communicator& comm) {
      LanguageModel model(tiny_options(), Rng(1));
      Training training(model, {.groups = free, .compute = kBF16, .ranks = {.comm = &comm, .zero = zero}});
      for (int step = 0; step < 3; ++step) training.step(rows_from, training.num_samples(), 8);
      const auto points = weights_of(model);
      const double loss = training.evaluate(rows_from(100, 6)).loss();
      EXPECT_EQ(weights_of(model), points);
      {
        AveragedWeights averages(training.optimizer());
        EXPECT_NE(weights_of(model), points);
        EXPECT_TRUE(working_copies_agree(model));
        if (comm.rank() == 0 && zero == 0) want = weights_of(model), want_loss = loss;
        comm.barrier();
        EXPECT_EQ(weights_of(model), want);
      }
      EXPECT_EQ(loss, want_loss);
      EXPECT_EQ(weights_of(model), points);
    });
}

TEST(Zero, AFolderThatCannotBeWrittenIsAnErrorOnAllRanks) {
  std::vector<std::string> problems(3);
  dist::run_thread_ranks(3, [&](dist::Communicator& comm) {
    LanguageModel model(tiny_options(), Rng(1));
    Training training(model, {.ranks = {.comm = &comm, .zero = 1}});
    try {
      training.save("/proc/nowhere");
    } catch (const Error& e) { problems[static_cast<size_t>(comm.rank())] = e.problem(); }
    training.step(rows_from, 0, 3);  // they are still together
  });
  EXPECT_NE(problems[0].find("/proc/nowhere"), std::string::npos) << problems[0];
  EXPECT_EQ(problems[1], problems[0]);
  EXPECT_EQ(problems[2], problems[0]);
}

}  // namespace
}  // namespace weft
