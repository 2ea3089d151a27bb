#include "src/training/job_thread.h"

#include "src/core/thread_settings.h"
#include "weft/core/parallel.h"

namespace weft {

JobThread::~JobThread() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    is_over_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void JobThread::add(std::function<void()> job) {
  std::lock_guard lock(mutex_);
  if (problem_) return;
  jobs_.push_back([settings = ThreadSettings(), job = std::move(job)] {
    settings.apply();
    job();
  });
  changed_.notify_all();
  if (thread_.joinable()) return;
  thread_ = std::thread([this] {
    set_num_threads(1);  // the cores are at work on what goes on meanwhile
    run();
  });
}

void JobThread::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return jobs_.empty(); });
  if (problem_) std::rethrow_exception(problem_);
}

bool JobThread::is_idle() const {
  std::lock_guard lock(mutex_);
  return jobs_.empty();
}

int64_t JobThread::num_done() const {
  std::lock_guard lock(mutex_);
  return num_done_;
}

void JobThread::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return is_over_ || !jobs_.empty(); });
    if (is_over_) return;
    std::function<void()> job = std::move(jobs_.front());
    std::exception_ptr problem;
    lock.unlock();
    try {
      job();
    } catch (...) { problem = std::current_exception(); }
    job = {};  // what it holds is free when the others hear of it
    lock.lock();
    if (problem) {
      problem_ = problem;
      jobs_.clear();
    } else {
      jobs_.pop_front();
      ++num_done_;
    }
    changed_.notify_all();
  }
}

}  // namespace weft
