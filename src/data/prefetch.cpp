// One thread makes batches, one takes them; between them a queue of at most `depth`.
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "src/core/thread_settings.h"
#include "weft/core/error.h"
#include "weft/data/samples.h"

namespace weft::data {

struct Prefetcher::State {
  SampleSource source;
  int64_t rows, next_sample;
  size_t depth;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Batch> ready;
  std::exception_ptr problem;  // behind the batches that are ready
  bool is_over = false;
  std::thread thread;

  void run();
};

void Prefetcher::State::run() {
  for (;;) {
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return is_over || ready.size() < depth; });
      if (is_over) return;
    }
    Batch batch;
    std::exception_ptr thrown;
    try {
      batch = source(next_sample, rows);
    } catch (...) { thrown = std::current_exception(); }
    std::lock_guard lock(mutex);
    problem = thrown;
    if (!thrown) ready.push_back(std::move(batch));
    next_sample += rows;
    changed.notify_all();
    if (thrown) return;
  }
}

Prefetcher::Prefetcher(SampleSource source, int64_t rows, int64_t first, int depth) : state_(new State) {
  WEFT_CHECK(source && rows > 0 && first >= 0 && depth > 0,
             str("Prefetcher: ", rows, " rows from sample ", first, ", ", depth, " batches ahead, ",
                 source ? "a source" : "no source"),
             "give a source, rows and depth above 0, and a first sample of 0 or more");
  state_->source = std::move(source);
  state_->rows = rows;
  state_->next_sample = first;
  state_->depth = static_cast<size_t>(depth);
  state_->thread = std::thread([state = state_.get(), settings = ThreadSettings()] {
    settings.apply();
    state->run();
  });
}

Prefetcher::~Prefetcher() {
  {
    std::lock_guard lock(state_->mutex);
    state_->is_over = true;
  }
  state_->changed.notify_all();
  state_->thread.join();
}

Batch Prefetcher::next() {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [&] { return !state_->ready.empty() || state_->problem; });
  if (state_->ready.empty()) std::rethrow_exception(state_->problem);
  Batch batch = std::move(state_->ready.front());
  state_->ready.pop_front();
  state_->changed.notify_all();
  return batch;
}

}  // namespace weft::data
