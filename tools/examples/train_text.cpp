// Trains a small language model on the bytes of a text file and lets it write:  train_text FILE [STEPS] [bf16]
#include <cstdio>
#include <string>

#include "weft/weft.h"
using namespace weft;

int main(int argc, char** argv) try {
  if (argc < 2) return std::fprintf(stderr, "usage: train_text FILE [STEPS] [bf16]\n"), 2;
  const int64_t steps = argc > 2 ? std::stoll(argv[2]) : 200, context = 128, batch = 16;
  const DType compute = argc > 3 && argv[3] == std::string("bf16") ? kBF16 : kF32;
  auto tokenizer = data::make_byte_tokenizer();
  auto [train, held_out] = data::split_tail(data::Dataset(tokenizer->encode(io::read_file(argv[1]))), 0.1);
  const data::RowOptions rows{.context = context, .vocab = tokenizer->vocab_size()};
  data::Loader loader({{train, 1.0}}, rows, /*seed=*/1);
  const SoftmaxOptions mixer{.heads = 4, .qk_norm = QkNorm::rms};
  LanguageModel model({.vocab = 256, .dim = 128, .layers = 4, .context = context, .mixers = {mixer}}, Rng(1));
  ParamGroup matrices{.match = "layers.*.weight", .num_dims = 2, .algorithm = MuonOptions{}};
  ParamGroup rest{.algorithm = AdamWOptions{.lr = 3e-3, .weight_decay = 0.01}};
  const ScheduleOptions cosine{.kind = ScheduleKind::cosine, .warmup = 10, .floor = 0.1};
  TrainingOptions o{.groups = {matrices, rest}, .schedule = cosine, .steps = steps, .clip_norm = 1, .compute = compute};
  Training training(model, o);
  for (int64_t step = 0; step < steps; ++step) {
    const double loss = training.step(loader.batch(step * batch, batch)).loss;
    if (step % 20 == 0 || step + 1 == steps) std::printf("step %d  loss %.4f\n", static_cast<int>(step), loss);
  }
  std::printf("%s\n", training.evaluate(data::ValidationWindows(held_out, rows)).text().c_str());
  auto ids = sample(model, tokenizer->encode("The "), {.tokens = 100, .temperature = 0.8});
  std::printf("The %s\n", data::show_utf8(tokenizer->decode(ids)).c_str());
} catch (const Error& error) { return std::fprintf(stderr, "error: %s\n", error.what()), 1; }
