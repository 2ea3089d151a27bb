// A mixer of your own from the first line to a sample: softmax attention in which every token says, for each head, how much attention it wants,
// whoever asks. The number is a bias of its key.
//   key_bias check --mixer loud       the conformance suite on it, and every other command of `weft`
//   key_bias FILE                     trains it in bf16 on the bytes of a text, saves and loads it, and lets both models write
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "weft/weft.h"
using namespace weft;

namespace {

// softmax(q_i . k_j / sqrt(K) + u . x_j) v, with u per head.
class Loud final : public ProjectedMixer {
 public:
  Loud(const MixerArgs& args, int64_t heads, Rng rng)
      : ProjectedMixer("loud", {.heads = heads}, args, rng), loudness_(args.dim, heads, rng["loudness"]) {
    name_parts({{"loudness", loudness_}});
  }
  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Var q = rotated(queries(x_BTD), args_, tokens), k = rotated(keys(x_BTD), args_, tokens);
    auto [y, lse] = tokens.attend(q, k, values(x_BTD), {}, {}, {.key = loudness_(x_BTD)});
    return written(y, tokens);
  }
  double flops_per_token(double keys) const override { return 12 * static_cast<double>(s_.heads * s_.head_dim) * keys; }

 private:
  Linear loudness_;
};

// The same in plain float64 loops.
std::vector<double> plain_loops(const MixerArgs& args, const reference::Parameters& p, const Tensor& x_BTD,
                                const TokenData& data) {
  namespace ref = reference;
  const ref::Sequence s(x_BTD, data);
  const auto H = static_cast<int64_t>(args.numbers.at("heads")), K = s.D / H;
  ref::Numbers x = ref::values(x_BTD), loudness = ref::linear(x, s.D, p, "loudness");
  ref::Numbers q = ref::linear(x, s.D, p, "q"), k = ref::linear(x, s.D, p, "k"), v = ref::linear(x, s.D, p, "v");
  ref::rotate(q, s, H, K);
  ref::rotate(k, s, H, K);
  ref::Numbers y = ref::mix(s, H, H, K, v, [&](int64_t b, int64_t i, int64_t h) {
    ref::Numbers scores = ref::scores(s, H, H, K, q, k, 1 / std::sqrt(static_cast<double>(K)), 0, b, i, h);
    for (int64_t j = 0; j < s.T; ++j)
      scores[static_cast<size_t>(j)] += loudness[static_cast<size_t>((b * s.T + j) * H + h)];
    return ref::softmax(scores);
  });
  return ref::linear(y, H * K, p, "out");
}

void train(const std::string& path, const MixerRow& loud) {
  auto tokenizer = data::make_byte_tokenizer();
  auto [text, held_out] = data::split_tail(data::Dataset(tokenizer->encode(io::read_file(path))), 0.1);
  const data::RowOptions rows{.context = 64, .vocab = 256};
  data::Loader loader({{text, 1.0}}, rows, /*seed=*/1);
  const LanguageModelOptions options{.vocab = 256, .dim = 64, .layers = 2, .context = 64, .mixers = {loud}};

  LanguageModel model(options, Rng(1));
  Training training(model, {.groups = {{.algorithm = AdamWOptions{.lr = 3e-3}}}, .clip_norm = 1, .compute = kBF16});
  data::Prefetcher ahead([&](int64_t first, int64_t count) { return loader.batch(first, count); }, /*rows=*/8);
  for (int step = 0; step < 30; ++step) {
    const StepResult result = training.step(ahead.next());
    if (step % 10 == 0) std::printf("step %d  loss %.3f\n", step, result.loss);
  }
  std::printf("%s\n", training.evaluate(data::ValidationWindows(held_out, rows).batch(0, 2)).text().c_str());

  save_model(model, "loud.safetensors");
  LanguageModel loaded(options, Rng(2));
  load_model(loaded, "loud.safetensors");
  loaded.set_compute(kBF16);  // as in training; f32 otherwise
  for (auto [name, writer] : {std::pair("trained", &model), {"loaded", &loaded}}) {
    auto ids = sample(*writer, tokenizer->encode("The "), {.tokens = 20, .temperature = 0.8});
    std::printf("%s: The %s\n", name, data::show_utf8(tokenizer->decode(ids)).c_str());
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const MixerRow loud{
      .name = "loud",
      .make = [](const MixerArgs& args,
                 Rng rng) { return std::make_unique<Loud>(args, static_cast<int64_t>(args.numbers.at("heads")), rng); },
      .equation = "softmax(s + u . x_j) v",
      .numbers = {{"heads", 4}}};
  if (argc != 2 || !std::filesystem::exists(argv[1]))
    return cli::main(argc, argv, {.mixers = {loud}, .references = {{"loud", plain_loops}}});
  train(argv[1], loud);
} catch (const Error& error) { return std::fprintf(stderr, "error: %s\n", error.what()), 1; }
