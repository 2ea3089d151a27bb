// Mixers against plain attention: whole steps of models with as many parameters (`weft bench train --mixer NAME|all`), and mixers alone
// where they should save work (`weft bench heads`).
#include <algorithm>
#include <cmath>
#include <variant>

#include "tools/bench/bench.h"
#include "tools/bench/training_step.h"
#include "weft/core/error.h"

namespace weft::bench {

namespace {

constexpr StepShape kShape{"L8 d512 h8 T1024 V8192 B1", 8, 512, 8, 1024, 8192, 1};
constexpr StepShape kQuickShape{"L2 d256 h4 T512 V1024 B1", 2, 256, 4, 512, 1024, 1};

// What the table keeps small for tests, at the size of the benchmark. Variants of one option are compared with plain attention, not with
// grouped heads; gqa and mqa are what they are.
void resize(SoftmaxOptions& o, const MixerRow& row, const StepShape& s) {
  const int64_t each = o.kv_heads > 0 ? o.heads / o.kv_heads : 1;
  o.components = o.components * s.heads / o.heads;
  o.head_mixture.active = o.head_mixture.active * s.heads / o.heads;
  o.head_mixture.shared = o.head_mixture.shared * s.heads / o.heads;
  o.heads = s.heads;
  o.kv_heads = row.name == "gqa" || row.name == "mqa" ? std::max<int64_t>(s.heads / each, 1) : 0;
  if (o.window > 0) o.window = s.tokens / 4;
}
template <class Options>
void resize(Options& o, const MixerRow&, const StepShape& s) {
  if constexpr (requires { o.heads; }) o.heads = o.heads > 0 ? s.heads : 0;
  if constexpr (requires { o.kv_heads; }) o.kv_heads = 0;
  if constexpr (requires { o.key_heads; }) o.key_heads = o.head_dim = 0;
  if constexpr (requires { o.slots; }) o.slots = Options().slots;
  if constexpr (requires { o.state_dim; }) o.state_dim = Options().state_dim;
  if constexpr (requires { o.gate_rank; }) o.gate_rank = Options().gate_rank;
  if constexpr (requires { o.kernel; })
    if (o.kernel > 0 && Options().kernel > 0)
      o.kernel = Options().kernel;  // where it is off by default, the row has the paper's
  if constexpr (requires { o.feature_map; })
    o.heads = o.feature_map == FeatureMap::taylor2 ? s.dim / 16 : s.heads;  // FAST's width
  if constexpr (std::is_same_v<Options, HymbaOptions>) o.state = 0, o.meta = o.meta > 0 ? 128 : 0;
  if constexpr (std::is_same_v<Options, RatOptions>) o.groups = 0, o.chunk = Options().chunk;
  if constexpr (requires { o.softmax_heads; }) {
    o.head_dim = o.value_dim = o.softmax_heads = 0;
    o.chunk = Options().chunk;
  }
  if constexpr (std::is_same_v<Options, FluxOptions>)
    o.hidden = Options().hidden, o.prompt = std::max<int64_t>(s.tokens / 8, 1);
  if constexpr (std::is_same_v<Options, HySparseOptions>) o.block = Options().block, o.blocks = Options().blocks;
  if constexpr (requires { o.window; }) o.window = o.window > 0 ? s.tokens / 4 : 0;
  if constexpr (std::is_same_v<Options, MirasOptions>) o.chunk = Options().chunk;
  if constexpr (std::is_same_v<Options, TlinformerOptions>) o.depth = Options().depth, o.rows = o.window, o.hidden = 0;
  if constexpr (requires { o.relational_heads; }) o.heads = o.relational_heads = s.heads / 2;
  if constexpr (requires { o.relations; }) o.relations = 0;
  if constexpr (requires { o.experts; }) o.experts = 2 * s.heads, o.active = s.heads;
  if constexpr (requires { o.query_rank; }) o.experts = s.heads, o.active = 2, o.query_rank = 16;
}

// A row of the library: its options as above. A program's own row: its maker sizes itself by the model that it is given.
MixerMaker at_size(const MixerRow& row, const StepShape& s, bool is_own) {
  if (is_own) return row;
  return std::visit(
      [&](auto options) {
        resize(options, row, s);
        return MixerMaker(options);
      },
      options_of(row));
}

LanguageModelOptions options_with(const StepShape& s, const MixerMaker& mixer) {
  LanguageModelOptions o = gpt2_options(s, PositionKind::rotary);
  o.mixers = {mixer};
  o.ffn.hidden = 4 * s.dim;
  for (int64_t i = 0; i < s.tokens; ++i) o.fixed_text.push_back(static_cast<int32_t>(i % s.vocab));
  return o;
}

int64_t mixer_params(const LanguageModelOptions& o) { return o.mixers[0](mixer_args(o, 0), Rng(1))->num_params(); }

// The mixer's parameters more or less than plain attention's are taken from, or given to, the feed-forward network.
LanguageModelOptions of_equal_size(const StepShape& s, const MixerMaker& mixer) {
  LanguageModelOptions o = options_with(s, mixer), plain = options_with(s, SoftmaxOptions{.heads = s.heads});
  double more = static_cast<double>(mixer_params(o) - mixer_params(plain)) / static_cast<double>(2 * s.dim);
  o.ffn.hidden = std::max<int64_t>(o.ffn.hidden - static_cast<int64_t>(more + 0.5), 1);
  return o;
}

// Whole steps of a model beside one with plain attention.
Row step_row(const std::string& name, const LanguageModelOptions& options, const StepShape& shape, int rounds) {
  TrainingStep plain(options_with(shape, SoftmaxOptions{.heads = shape.heads}), shape.batch, kF32);
  TrainingStep step(options, shape.batch, kF32);
  step.run();
  Allocator& memory = allocator(default_device());
  int64_t before = memory.stats().current_bytes;
  memory.reset_peak();
  step.run();
  double peak = static_cast<double>(memory.stats().peak_bytes - before);
  const std::function<void()> both[] = {[&] { plain.run(); }, [&] { step.run(); }};
  std::vector<double> median = ratios_in_turn(both, rounds);
  Row out = time_row("step " + name, shape.text, kF32, 1e3 * median[0] * median[1], "ms", 1e3 * median[0]);
  out.ratio = 1 / median[1];
  out.extra = {{"time of plain attention's", str(std::round(median[1] * 1000) / 1000)},
               {"parameters", str(step.num_params())},
               {"of its", str(std::round(1000.0 * static_cast<double>(step.num_params()) /
                                         static_cast<double>(plain.num_params())) /
                              1000)},
               {"step MiB", rounded(peak / 1048576)}};
  return out;
}

Row mixer_row_of(const MixerRow& row, bool is_own, const StepShape& shape, int rounds) {
  return step_row(row.name, of_equal_size(shape, at_size(row, shape, is_own)), shape, rounds);
}

// One mixer alone, forward and backward.
class MixerRun {
 public:
  MixerRun(const MixerMaker& make, int64_t dim, int64_t tokens, int64_t layer = 1)
      : mixer_(make({.dim = dim, .context = tokens, .layer = layer, .layers = 4}, Rng(1))),
        x_(variable(normal_init({1, tokens, dim}, Rng(2), 1))),
        dy_(normal_init({1, tokens, dim}, Rng(3), 1)) {}
  void run() {
    Tokens tokens(plain_tokens(1, x_.size(1)), {.is_training = true});
    backward(sum_all(mixer_->forward(x_, tokens) * Var(dy_)));
    mixer_->clear_grads();
    x_.set_grad({});
  }

 private:
  std::unique_ptr<Mixer> mixer_;
  Var x_;
  Tensor dy_;
};

}  // namespace

std::vector<Row> run_mixers(const BenchOptions& options) {
  const StepShape& shape = options.quick ? kQuickShape : kShape;
  const bool is_all = options.mixer == "all";
  const int rounds = !is_all ? options.quick ? 3 : 7 : options.quick ? 9 : 3;
  std::vector<Row> rows;
  for (const MixerRow& row : options.mixers)
    if (is_all || row.name == options.mixer) rows.push_back(mixer_row_of(row, true, shape, rounds));
  for (const auto& [name, put_into] : options.parts) {
    if (!is_all && name != options.mixer) continue;
    LanguageModelOptions with_part = options_with(shape, SoftmaxOptions{.heads = shape.heads});
    put_into(with_part);
    rows.push_back(step_row(name, with_part, shape, rounds));
  }
  if (!is_all && !rows.empty()) return rows;
  if (!is_all) return {mixer_row_of(mixer_row(options.mixer), false, shape, rounds)};
  for (const MixerRow& row : mixer_table()) rows.push_back(mixer_row_of(row, false, shape, rounds));
  return rows;
}

// The goal: at most a quarter more on the step that takes them.
std::vector<Row> run_diagnostics(const BenchOptions& options) {
  const StepShape& shape = options.quick ? kQuickShape : kShape;
  SoftmaxOptions gated{.heads = shape.heads, .gates = {{}}, .affine = {.is_on = true}}, mixture{.heads = shape.heads},
      sigmoid{.heads = shape.heads};
  mixture.head_mixture = {.active = shape.heads / 2, .shared = shape.heads / 4};
  sigmoid.weights.kind = WeightKind::sigmoid;
  const std::pair<const char*, SoftmaxOptions> cases[] = {{"plain", {.heads = shape.heads}},
                                                          {"gate and affine", gated},
                                                          {"mixture of heads", mixture},
                                                          {"sigmoid", sigmoid}};
  std::vector<Row> rows;
  for (const auto& [name, mixer] : cases) {
    TrainingStep step(options_with(shape, mixer), shape.batch, kF32);
    const std::function<void()> both[] = {[&] { step.run(); }, [&] { step.run(true); }};
    std::vector<double> median = ratios_in_turn(both, options.quick ? 3 : 7);
    Row row = time_row(name, shape.text, kF32, 1e3 * median[0] * median[1], "ms", 1.25e3 * median[0]);
    row.extra = {{"of a step without", str(std::round(median[1] * 1000) / 1000)}};
    rows.push_back(row);
  }
  return rows;
}

std::vector<Row> run_heads(const BenchOptions& options) {
  const int64_t T = options.quick ? 1024 : 4096, D = 512, H = 16;
  auto moh = [&](int64_t shared, int64_t active) {
    SoftmaxOptions o{.heads = H};
    o.head_mixture = {.active = active, .shared = shared};
    return MixerMaker(o);
  };
  struct Case {
    const char* name;
    MixerMaker make;
    double goal;  // share of the time of all heads on all tokens
  };
  const Case cases[] = {{"all heads", SoftmaxOptions{.heads = H}, 1},
                        {"mixture of heads, 100 %", moh(6, 10), 1.08},
                        {"mixture of heads, 75 %", moh(5, 7), 1},
                        {"mixture of heads, 50 %", moh(4, 4), 0.75},
                        {"window of 256", SoftmaxOptions{.heads = H, .window = 256}, 1}};
  std::vector<std::unique_ptr<MixerRun>> runs;
  std::vector<std::function<void()>> functions;
  for (const Case& c : cases) {
    runs.push_back(std::make_unique<MixerRun>(c.make, D, T));
    functions.push_back([run = runs.back().get()] { run->run(); });
  }
  std::vector<double> median = ratios_in_turn(functions, options.quick ? 5 : 9);
  std::vector<Row> rows;
  for (size_t i = 0; i < std::size(cases); ++i) {
    double share = i == 0 ? 1 : median[i];
    Row row = time_row(cases[i].name, str("B1 T", T, " d", D, " h", H), kF32, 1e3 * median[0] * share, "ms",
                       1e3 * median[0] * cases[i].goal);
    row.extra = {{"of all heads' time", str(std::round(share * 1000) / 1000)}};
    rows.push_back(row);
  }
  return rows;
}

}  // namespace weft::bench
