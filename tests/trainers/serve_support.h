// A tiny model with random weights that answers as `weft serve` does, in this process.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <thread>
#include <vector>

#include "trainers/serve/api.h"
#include "weft/core/parallel.h"

namespace weft::serve_test {

inline LanguageModelOptions tiny(std::vector<MixerMaker> mixers, int64_t vocab = 256) {
  return {.vocab = vocab,
          .dim = 16,
          .layers = 2,
          .context = 48,
          .mixers = std::move(mixers),
          .ffn = {.hidden = 24},
          .std = 0.3};
}
inline std::vector<MixerMaker> softmax() { return {SoftmaxOptions{.heads = 2}}; }
inline std::vector<MixerMaker> windowed() { return {SoftmaxOptions{.heads = 2, .window = 4}}; }
inline std::vector<MixerMaker> hybrid() {
  return {DeltaOptions{.decay = DeltaDecay::head, .heads = 2}, SoftmaxOptions{.heads = 2, .kv_heads = 1}};
}

inline serve::ServedModel served(const LanguageModel& model) {
  return {.name = "tiny",
          .address = "runs/tiny",
          .step = 7,
          .context = model.options().context,
          .tokenizer = data::make_byte_tokenizer()};
}

// Log probabilities of each id of the row but the first, in float64 from the logits of one plain forward.
inline std::vector<double> plain_logprobs(LanguageModel& model, const std::vector<int32_t>& ids,
                                          std::vector<bool>* are_greedy = nullptr) {
  const auto T = static_cast<int64_t>(ids.size()), V = model.options().vocab;
  Tokens tokens(plain_tokens(1, T));
  const auto logits = model.logits(Tensor::from(std::span<const int32_t>(ids), {1, T}), tokens).to_vector<float>();
  std::vector<double> out;
  for (int64_t t = 1; t < T; ++t) {
    const float* row = &logits[static_cast<size_t>((t - 1) * V)];
    double sum = 0;
    for (int64_t v = 0; v < V; ++v) sum += std::exp(static_cast<double>(row[v]));
    const float own = row[ids[static_cast<size_t>(t)]];
    out.push_back(static_cast<double>(own) - std::log(sum));
    if (are_greedy) are_greedy->push_back(own == *std::max_element(row, row + V));
  }
  return out;
}

// The model's thread.
class Engine {
 public:
  Engine(LanguageModel& model, const serve::ServedModel& served, const serve::BatcherOptions& options = {})
      : batcher(options), thread_([&model, &served, this] {
          set_num_threads(1);
          batcher.work(
              [&](std::span<const serve::GenerationRow> rows) {
                is_computing = true;
                while (is_held && !is_ending) std::this_thread::sleep_for(std::chrono::milliseconds(1));
                batches.push_back(rows.size());
                return serve::generate(model, rows,
                                       {.vocab = served.tokenizer->vocab_size(),
                                        .end_of_text = served.end_of_text,
                                        .should_stop = [this] { return is_ending.load(); }});
              },
              [this] { return is_ending.load(); });
        }) {}
  ~Engine() { end(); }
  void end() {
    is_ending = true;
    if (thread_.joinable()) thread_.join();
  }

  std::atomic<bool> is_held{false}, is_computing{false}, is_ending{false};  // held: batches wait
  std::vector<size_t> batches;  // rows of each; to be read when nothing is computed
  serve::Batcher batcher;

 private:
  std::thread thread_;
};

}  // namespace weft::serve_test
