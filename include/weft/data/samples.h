// Samples of one's own: a function that makes a batch of them, and a thread that calls it ahead of the training.
//   Prefetcher ahead([&](int64_t first, int64_t rows) { return my_batch(first, rows); }, /*rows=*/16);
//   for (int64_t step = 0; step < steps; ++step) training.step(ahead.next());
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "weft/data/loader.h"

namespace weft::data {

// Samples first_sample .. first_sample + count. Of a Batch only `tokens` and `targets` are needed, i32 [count, T] on the CPU; without
// `positions` they are 0 .. T-1, without `documents` a row is one. A pure function of its arguments lets a training resume.
using SampleSource = std::function<Batch(int64_t first_sample, int64_t count)>;

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
