// Trainings that several ranks share: each computes rows of its own, and what belongs to the step as a whole is summed over all of them. Every
// rank calls the same functions in the same order, whatever its rows hold.
//   dist::run_thread_ranks(4, [&](dist::Communicator& comm) {
//     LanguageModel model(options, Rng(1));                     // the same weights on each
//     Training training(model, {.ranks = {.comm = &comm, .zero = 1}});
//     training.step(samples, training.num_samples(), 64);       // 16 rows of its own
//   });
#pragma once

#include <cstdint>
#include <span>

#include "weft/comm/communicator.h"

namespace weft {

// What is summed, by whatever means.
class RankSums {
 public:
  virtual ~RankSums() = default;
  // Counts of a step (targets, bytes) in place, before its first forward: losses are divided by the sums.
  virtual void sum_counts(std::span<int64_t> counts) = 0;
  // The gradient of the step of trained parameter number `param`, final on this rank, in place and in its own memory. It is called while
  // backward goes on, in the order in which gradients become final; it may return before the sum is there.
  virtual void sum_gradient(size_t param, Tensor& grad) = 0;
  // After the last backward: returns when all those sums are there, or work on their device that comes later will find them.
  virtual void finish_gradients() = 0;
  // Sums of losses and of running statistics, f64, in place, on whatever device they are.
  virtual void sum_values(Tensor& values) = 0;
};

struct RanksOptions {
  dist::Communicator* comm =
      nullptr;  // all ranks of the training, with the same model and options on each; null: one rank
  // ZeRO (Rajbhandari et al., 1910.02054). 1: a rank keeps the optimiser's state of its part of the weights, updates that part and gets the
  // others'. 2: and of the sums of gradients only that part. Parameters are cut anywhere, but for matrices of Muon and all parameters of an
  // optimiser of your own, which stay whole.
  int zero = 0;
  int64_t bucket_bytes = int64_t{16} << 20;  // gradients are summed in pieces of at least this size
  // On the CPU by a thread of its own, on a GPU in NCCL's stream; of a communicator split off `comm`.
  bool overlaps_backward = true;
  int ranks_per_row = 1;     // neighbours that are given different tokens of the same rows
  RankSums* sums = nullptr;  // or, in place of `comm`, sums of your own
};

// Whether it is so on any of the ranks: for stop signals and time limits, on which all have to agree. Every rank calls it.
bool on_any_rank(dist::Communicator* comm, bool is_so);

}  // namespace weft
