// Collects the rows of requests that are there together into batches. Any thread asks; one thread, which has the model, answers.
//   batcher.work(generate, should_stop);                    // the model's thread
//   std::vector<Generation> made = batcher.ask(rows);       // a request's thread: waits
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "trainers/serve/generation.h"

namespace weft::serve {

struct BatcherOptions {
  int64_t max_batch = 16;      // rows of a batch
  double max_wait_s = 0.005;   // how long the first row of a batch waits for others
  int64_t max_waiting = 8192;  // rows; more are refused
};

class Batcher {
 public:
  using Generate = std::function<std::vector<Generation>(std::span<const GenerationRow>)>;
  // Called once, on the model's thread: the rows' results, or the error that ended them. Where it throws, once more with what it threw.
  using Done = std::function<void(std::vector<Generation> made, std::exception_ptr error)>;

  explicit Batcher(const BatcherOptions& options) : options_(options) {}

  // In any number of batches, in the order in which rows came; those that are only scored are batched apart from those that are continued.
  // RequestError if the work has ended or too many rows wait.
  void submit(std::vector<GenerationRow> rows, Done done);
  std::vector<Generation> ask(std::vector<GenerationRow> rows);

  // Until `should_stop`, which is looked at several times a second; then, or where an error leaves it, rows that wait end with RequestError
  // 503. A batch that fails is tried again row by row, so that a row's error meets its own request alone.
  void work(const Generate& generate, const std::function<bool()>& should_stop);
  int64_t waiting() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Ticket {
    std::vector<GenerationRow> rows;
    std::vector<Generation> made;
    size_t open = 0;  // rows without a result
    std::exception_ptr error = {};
    Done done = {};

    ~Ticket();  // nobody waits for a result that cannot come
    void finish(std::vector<Generation> results, std::exception_ptr problem) noexcept;
  };
  struct Place {
    std::shared_ptr<Ticket> ticket;
    size_t row;
    Clock::time_point came;
  };

  std::vector<Place> next_batch(const std::function<bool()>& should_stop);
  void run(const std::vector<Place>& batch, const Generate& generate);
  void run_each(const std::vector<Place>& batch, const Generate& generate);
  void settle(const std::vector<Place>& places, std::vector<Generation> made, std::exception_ptr error);
  void close();

  BatcherOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable came_;
  std::deque<Place> waiting_;
  bool is_closed_ = false;
};

}  // namespace weft::serve
