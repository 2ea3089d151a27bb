// The code of docs/cpp.md that no program of tools/examples/ holds; and every block of that page stands in a file that is compiled.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <sstream>

#include "tests/io/temp_folder.h"
#include "tests/training/support.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

const data::SampleSource my_samples = test::rows_from;

TEST(CppPage, TrainsEvaluatesAndGoesOn) {
  test::TempFolder run;
  const std::string folder = run / "checkpoints";
  LanguageModel model(test::tiny_options(), Rng(1));
  TrainingOptions options{.groups = {{.match = "layers.*.weight", .num_dims = 2, .algorithm = MuonOptions{}},
                                     {.algorithm = AdamWOptions{.lr = 3e-3}}},
                          .schedule = {.kind = ScheduleKind::cosine, .warmup = 2},
                          .steps = 6,
                          .clip_norm = 1,
                          .compute = kBF16,
                          .micro_batch = 4,
                          .guard = {.is_on = true}};
  Training training(model, options);
  training.load(folder);
  data::Prefetcher ahead(my_samples, /*rows=*/16, training.num_samples());
  while (training.num_steps() < options.steps) {
    StepResult result = training.step(ahead.next());
    if (training.num_steps() % 3 == 0) training.save(folder);
    if (result.was_skipped) break;
  }
  Evaluation held_out = training.evaluate(my_samples(1000, 8));
  EXPECT_EQ(io::list_checkpoints(folder), (std::vector<int64_t>{3, 6}));
  EXPECT_GT(held_out.num_targets, 0);
}

TEST(CppPage, MakesAHybrid) {
  LanguageModelOptions hybrid{
      .vocab = 256,
      .dim = 64,
      .layers = 8,
      .context = 128,
      .mixers = {DeltaOptions{.decay = DeltaDecay::head, .heads = 2}, SoftmaxOptions{.heads = 2}},
      .pattern = {0, 0, 0, 1},
      .ffn = {.hidden = 128}};
  LanguageModel model(hybrid, Rng(1));
  const std::vector<NamedParam> params = model.params();
  const auto layers_with = [&](const std::string& part) {
    std::vector<int> layers;
    for (int l = 0; l < 8; ++l)
      if (std::ranges::any_of(
              params, [&](const NamedParam& p) { return p.name.starts_with(str("layers.", l, ".mixer.") + part); }))
        layers.push_back(l);
    return layers;
  };
  EXPECT_EQ(layers_with("q"), (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(layers_with("strength"), (std::vector<int>{0, 1, 2, 4, 5, 6})) << "strengths of the delta rule";
  Training training(model, {.groups = {{.algorithm = AdamWOptions{.lr = 3e-3}}}});
  double first = training.step(my_samples(0, 8)).loss, last = first;
  for (int step = 0; step < 10; ++step) last = training.step(my_samples(0, 8)).loss;
  EXPECT_LT(last, first);
  hybrid.mixers = {HymbaOptions{.heads = 2}}, hybrid.pattern = {};
  EXPECT_GT(LanguageModel(hybrid, Rng(1)).num_matmul_params(), 0);
}

TEST(CppPage, MovesFreezesAndKeepsAModel) {
  test::TempFolder run;
  const std::string path = run / "model.safetensors";
  LanguageModel model(test::tiny_options(), Rng(1)), fresh(test::tiny_options(), Rng(2));
  const Device device = Device::cpu();
  set_default_device(device);
  model.to(device);
  model.set_frozen("embedding.*");
  save_model(model, path);
  load_model(fresh, path);
  EXPECT_EQ(test::weights_of(model), test::weights_of(fresh));
  EXPECT_EQ(optimizer_params(model).size() + 1, model.params().size());
}

// A model of numbers instead of tokens.
struct Regression : Module {
  Linear layer{3, 1, Rng(1)};
  Regression() { name_parts({{"layer", layer}}); }
};

TEST(CppPage, TrainsOnLossesOfItsOwn) {
  Tensor x = Tensor::from<float>({1, 0, 2, 0, 1, 1, 3, 1, 0, 1, 1, 1}, {4, 3}),
         y = Tensor::from<float>({5, 4, 5, 6}, {4, 1});
  Regression model;
  Training training(model, {}, {.groups = {{.algorithm = SgdOptions{.lr = 0.05}}}});
  auto loss_of = [&](const MicroBatch& m) {
    return mse_loss(model.layer(x.slice(0, 2 * m.index, 2 * m.index + 2)), y.slice(0, 2 * m.index, 2 * m.index + 2),
                    Reduction::sum);
  };
  double first = training.step(2, loss_of).loss, last = first;
  for (int step = 0; step < 50; ++step) last = training.step(2, loss_of).loss;
  EXPECT_LT(last, first / 10);
}

class SignOptimizer final : public AnyOptimizer {
 public:
  explicit SignOptimizer(std::vector<OptimizerParam> params) : params_(std::move(params)) {}
  void step(std::span<const Tensor> grads, double lr_factor, double /*grad_factor*/) override {
    for (size_t i = 0; i < params_.size(); ++i)
      if (grads[i].defined()) ops::add_(params_[i].value, sign(grads[i]), -0.01 * lr_factor);
    ++num_steps_;
  }
  int64_t num_steps() const override { return num_steps_; }
  std::vector<std::pair<std::string, Tensor>> state() const override { return {}; }
  void load_state(std::span<const std::pair<std::string, Tensor>>, int64_t num_steps) override {
    num_steps_ = num_steps;
  }

 private:
  static Tensor sign(const Tensor& x) { return ops::where(greater(x, 0), Tensor::full(x.shape(), 1), -1.0); }
  std::vector<OptimizerParam> params_;
  int64_t num_steps_ = 0;
};

TEST(CppPage, TakesAnOptimiserOfItsOwn) {
  LanguageModel model(test::tiny_options(), Rng(1));
  auto make = [](std::vector<OptimizerParam> params) { return std::make_unique<SignOptimizer>(std::move(params)); };
  Training training(model, {.optimizer = make, .lr_factor = [](int64_t step) { return step < 100 ? 1 : 0.1; }});
  double first = training.step(my_samples(0, 8)).loss, last = first;
  for (int step = 0; step < 10; ++step) last = training.step(my_samples(0, 8)).loss;
  EXPECT_LT(last, first);
}

TEST(CppPage, TrainsOnSeveralRanks) {
  test::TempFolder run;
  const std::string folder = run / "checkpoints";
  const LanguageModelOptions model_options = test::tiny_options();
  auto is_stopped = [] { return false; };
  dist::run_thread_ranks(4, [&](dist::Communicator& comm) {
    LanguageModel model(model_options, Rng(1));
    Training training(model, {.micro_batch = 2, .ranks = {.comm = &comm, .zero = 1}});
    training.load(folder);
    while (training.num_steps() < 6 && !on_any_rank(&comm, is_stopped()))
      training.step(my_samples, training.num_samples(), 16);
    training.save(folder);
  });
  EXPECT_EQ(io::list_checkpoints(folder), (std::vector<int64_t>{6}));
}

// Two ranks that hold the same rows: what an exchange between them would give.
class TwoEqualRanks final : public RankSums {
 public:
  void sum_counts(std::span<int64_t> counts) override {
    for (int64_t& count : counts) count *= 2;
  }
  void sum_gradient(size_t, Tensor& grad) override { ops::scale_(grad, 2); }
  void finish_gradients() override {}
  void sum_values(Tensor& values) override { ops::scale_(values, 2); }
};

TEST(CppPage, SharesItsStepsWithOtherRanks) {
  LanguageModel model(test::tiny_options(), Rng(1)), alone(test::tiny_options(), Rng(1));
  TwoEqualRanks ranks;
  Training shared(model, {.ranks = {.sums = &ranks}}), single(alone, {});
  EXPECT_EQ(shared.step(my_samples(0, 8)).loss, single.step(my_samples(0, 8)).loss);
}

// Without comments and white space, so that lines may be broken elsewhere.
std::string bare(const std::string& code) {
  std::istringstream lines(code);
  std::string text;
  for (std::string line; std::getline(lines, line);)
    for (char c : line.substr(0, line.find("//")))
      if (!std::isspace(static_cast<unsigned char>(c))) text += c;
  return text;
}

TEST(Docs, CodeOfTheCppPageIsCompiled) {
  const std::string root = WEFT_ROOT;
  std::vector<std::string> sources;
  for (const char* folder : {"/tools/examples", "/tests"})
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root + folder))
      if (entry.path().extension() == ".cpp") sources.push_back(bare(io::read_file(entry.path())));
  const std::string page = io::read_file(root + "/docs/cpp.md"), fence = "```cpp\n";
  int num_blocks = 0;
  for (size_t at = page.find(fence); at != std::string::npos; at = page.find(fence, at + 1)) {
    const size_t begin = at + fence.size(), end = page.find("```", begin);
    const std::string block = page.substr(begin, end - begin), code = bare(block);
    ++num_blocks;
    EXPECT_TRUE(std::any_of(sources.begin(), sources.end(),
                            [&](const std::string& s) { return s.find(code) != std::string::npos; }))
        << "no source under tools/examples or tests holds\n"
        << block;
  }
  EXPECT_GE(num_blocks, 8);
  // What is indented would be code too, and nothing would compile it.
  std::istringstream lines(page);
  bool is_fenced = false;
  for (std::string line, before; std::getline(lines, line); before = line) {
    if (line.starts_with("```")) is_fenced = !is_fenced;
    EXPECT_FALSE(!is_fenced && before.empty() && line.starts_with("    ")) << "a block that is indented:\n" << line;
  }
  for (const auto& header : std::filesystem::directory_iterator(root + "/include/weft/nn/mixers"))
    EXPECT_NE(page.find(header.path().filename().string()), std::string::npos) << "the page does not name " << header;
}

}  // namespace
}  // namespace weft
