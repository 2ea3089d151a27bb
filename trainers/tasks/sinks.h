// Two tasks that attention solves with or without a sink, after which the sink is measured.
//   Bigram-Backcopy (Guo et al., Active-Dormant Attention Heads, 2410.13835): text of a bigram, but behind a trigger token the token before
//   it comes again. A head that only copies behind triggers has nothing to do elsewhere.
//   Trigger-conditional mean (Ran-Milo, 2603.11487): the mean of all earlier tokens at a trigger, zero elsewhere.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "weft/nn/mixer.h"

namespace weft::tasks {

struct Options {
  int64_t steps = 0;  // 0: the task's own
  int64_t tokens = 0, batch = 0, layers = 1;
  double lr = 0;
  uint64_t seed = 1;
  bool is_piecewise = false;  // regression: the map of a row is piecewise linear
};

// Named figures in the order of the table's columns.
using Figures = std::vector<std::pair<std::string, double>>;

// Variants of one-head softmax attention that the claims are about: softmax, relu, sigmoid, off_by_one, sink_logit, key_bias, gate.
struct Arm {
  std::string name;
  MixerMaker make;
};
std::vector<Arm> arms();

// Bigram statistics: ids by falling frequency; triggers are the most frequent ones.
struct Bigram {
  int64_t ids = 0;
  std::vector<double> first;  // [ids] marginal
  std::vector<double> next;   // [ids, ids] conditional, rows sum to 1
};
Bigram bigram_of_text(const std::string& text);  // of its bytes; Error on less than 4 different ones
Bigram random_bigram(int64_t ids, Rng rng);      // eight successors each, marginal and successors by Zipf's law

constexpr int32_t kTriggers = 3;
// ids [B, T + 1] i32 on the CPU: id `bigram.ids` first, then the task's tokens. A pure function of (rng, first_row + row).
Tensor backcopy_rows(const Bigram& bigram, int64_t first_row, int64_t rows, int64_t tokens, Rng rng);

// Factor of the learning rate in both tasks: 1 over the first half of the steps, then falling to 0.
std::function<double(int64_t step)> falling(int64_t steps);

// Excess of the loss over the oracle's for plain and trigger queries, weights on the first token at plain queries, weights on the token
// before at trigger queries, drain of the first value.
Figures backcopy(const MixerMaker& mixer, const Bigram& bigram, const Options& options);

// x [B, T, width + 3]: width normal numbers, flag of the first token, flag of the trigger, 1; y [B, T, width]; trigger [B, T] of 0 and 1.
struct TriggerBatch {
  Tensor x, y, trigger;
};
TriggerBatch trigger_batch(int64_t first_row, int64_t rows, int64_t tokens, int64_t width, Rng rng);
// Of outputs [B, T, >= width]: mean squared error, triggers and other tokens weighted equally.
Var trigger_loss(const Var& out, const TriggerBatch& batch);

// Loss, that at triggers, and one minus the weights on the first token at other tokens.
Figures trigger(const MixerMaker& mixer, const Options& options);

}  // namespace weft::tasks
