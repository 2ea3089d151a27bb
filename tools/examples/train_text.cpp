// Trains a small language model on the bytes of a text file and lets it write:  train_text FILE [STEPS]
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "weft/weft.h"

int main(int argc, char** argv) try {
  if (argc < 2) return std::fprintf(stderr, "usage: train_text FILE [STEPS]\n"), 2;
  std::ifstream file(argv[1], std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  const int64_t steps = argc > 2 ? std::atoll(argv[2]) : 200, context = 128, batch = 16;

  auto tokenizer = weft::data::make_byte_tokenizer();
  auto [train, held_out] = weft::data::split_tail(weft::data::Dataset(tokenizer->encode(text)), 0.1);
  weft::data::RowOptions rows{.context = context, .vocab = tokenizer->vocab_size()};
  weft::data::Loader loader({{train, 1.0}}, rows, /*seed=*/1);

  weft::LanguageModel model({.vocab = 256,
                             .dim = 128,
                             .layers = 4,
                             .context = context,
                             .mixers = {weft::SoftmaxOptions{.heads = 4, .qk_norm = weft::QkNorm::rms}}},
                            weft::Rng(1));
  std::vector<weft::OptimizerParam> params;
  for (const auto& p : model.params()) params.push_back({p.name, p.param->value()});
  weft::Optimizer optimizer({{.match = "layers.*.weight", .num_dims = 2, .algorithm = weft::MuonOptions{}},
                             {.algorithm = weft::AdamWOptions{.lr = 3e-3, .weight_decay = 0.01}}},
                            params);
  weft::ScheduleOptions schedule{.kind = weft::ScheduleKind::cosine, .warmup = 10, .floor = 0.1};

  for (int64_t step = 0; step < steps; ++step) {
    weft::data::Batch b = loader.batch(step * batch, batch);
    weft::Tokens tokens({b.positions}, {.is_training = true});
    weft::Var loss = model.loss(b.tokens, b.targets, tokens, 1.0 / (batch * context)).loss;
    weft::backward(loss);
    std::vector<weft::Tensor> grads;
    for (const auto& p : model.params()) grads.push_back(p.param->grad());
    optimizer.step(grads, weft::schedule_factor(schedule, step, steps),
                   weft::clip_factor(weft::global_norm(grads), 1.0));
    model.clear_grads();
    if (step % 20 == 0 || step + 1 == steps)
      std::printf("step %lld  loss %.4f\n", static_cast<long long>(step), loss.value().item());
  }
  std::vector<int32_t> prompt = tokenizer->encode("The "),
                       ids = weft::sample(model, prompt, {.tokens = 100, .temperature = 0.8});
  std::printf("The %s\n", weft::data::show_utf8(tokenizer->decode(ids)).c_str());
} catch (const weft::Error& error) { return std::fprintf(stderr, "error: %s\n", error.what()), 1; }
