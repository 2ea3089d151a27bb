// The start and the end of MPI wait for all ranks inside MPI, without an end if one of them does not come, and nothing can call a thread back from
// there. While this object exists, a thread of its own counts the time, and after the time-out ends the process with a message.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace weft::dist {

class MpiGuard {
 public:
  MpiGuard(const char* what, double timeout_s);  // "the start of MPI"
  ~MpiGuard();
  MpiGuard(const MpiGuard&) = delete;
  MpiGuard& operator=(const MpiGuard&) = delete;

  void enter(const char* call) { call_ = call; }  // of MPI, which the message names

 private:
  void run(double timeout_s, int rank);

  const char* what_;
  std::atomic<const char*> call_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_over_ = false;
  std::thread thread_;
};

}  // namespace weft::dist
