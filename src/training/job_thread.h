// A thread that does jobs one after the other, in the order in which they were given, each as a part of the rank that gave it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace weft {

class JobThread {
 public:
  JobThread() = default;
  ~JobThread();  // waits for the job under way, drops the others
  JobThread(const JobThread&) = delete;
  JobThread& operator=(const JobThread&) = delete;

  void add(std::function<void()> job);  // the first one starts the thread
  void wait();                          // for all; throws what a job threw, after which no other was done
  bool is_idle() const;
  int64_t num_done() const;  // so far

 private:
  void run();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;  // the first is under way
  std::exception_ptr problem_;
  int64_t num_done_ = 0;
  bool is_over_ = false;
  std::thread thread_;
};

}  // namespace weft
