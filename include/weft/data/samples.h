// Samples of one's own: a function that makes a batch of them, and a thread that calls it ahead of the training.
//   Prefetcher ahead([&](int64_t first, int64_t rows) { return my_batch(first, rows); }, /*rows=*/16);
//   for (int64_t step = 0; step < steps; ++step) training.step(ahead.next());
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "weft/data/loader.h"

namespace weft::data {

// Samples first_sample .. first_sample + count. Of a Batch only `tokens` and `targets` are needed, i32 [count, T] on the CPU; without
// `positions` they are 0 .. T-1, without `documents` a row is one. A pure function of its arguments lets a training resume.
using SampleSource = std::function<Batch(int64_t first_sample, int64_t count)>;

Batch stacked(std::span<const Batch> batches);  // one below the other

// What one of several ranks takes of a step. Samples of a step are numbered over all ranks. Each rank has the same number of them, in
// micro-batches, and micro-batch i of all ranks together is a stretch of samples: that of one rank with larger micro-batches.
//   Prefetcher ahead(samples_of_rank(all, {.rank = r, .ranks = 4}), /*rows of all ranks=*/64, training.num_samples());
struct RankShare {
  int rank = 0, ranks = 1;
  int64_t micro_batch = 0;  // rows of a rank at a time; 0: all that it has of a step

  struct Rows {
    int64_t first, count;
  };
  // The micro-batches of this rank in a step of samples first .. first + rows. Error if `ranks` does not divide `rows`, with numbers that do.
  std::vector<Rows> rows_of(int64_t first, int64_t rows) const;
};
// A source that gives of the samples asked for those of this rank, one micro-batch behind the other: rows / ranks rows.
SampleSource samples_of_rank(SampleSource all, RankShare share);

// Keeps up to `depth` batches of `rows` samples ready, beginning with sample `first`. The source is called on one thread of the prefetcher, one
// call at a time.
class Prefetcher {
 public:
  Prefetcher(SampleSource source, int64_t rows, int64_t first = 0, int depth = 2);
  ~Prefetcher();  // waits for the call of the source that is under way
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  Batch next();  // throws what the source threw in place of that batch, then and ever after

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weft::data
