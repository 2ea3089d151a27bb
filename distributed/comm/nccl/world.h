// All NCCL communicators of a rank, and the watchdog over them: NCCL's kernels spin forever when a peer dies, so that a thread of its own
// looks at them and ends them.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "distributed/comm/nccl/api.h"

namespace weft::dist {

class NcclWorld {
 public:
  NcclWorld(std::unique_ptr<NcclApi> api, double timeout_s, double look_s);
  ~NcclWorld();  // aborts what was not closed
  NcclWorld(const NcclWorld&) = delete;
  NcclWorld& operator=(const NcclWorld&) = delete;

  NcclApi& api() { return *api_; }
  // Makes a communicator by `make` and waits until it stands.
  void* open(const std::string& what, const std::function<int(void** comm)>& make);
  void close(void* comm) noexcept;
  // The calls of one operation, in one group, on the stream. The result is the point behind them; drop() it with done().
  void* issue(void* comm, const std::string& what, const std::function<void()>& calls);
  void done(void* mark) noexcept;  // nobody will ask for it again
  void wait_until(void* mark);     // the CPU waits for the stream; Error if the watchdog ends it
  void check(int code, const std::string& what);

  void stop(const std::string& why) noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  struct Issued {
    void* mark;
    std::string what;
    Clock::time_point when;
    bool is_done = false;  // done() was called
  };
  void require_running() const;                                // these under mutex_
  void settle(void* comm, int code, const std::string& what);  // until a call that is in progress has ended
  void stop_locked(const std::string& why) noexcept;
  void drop_reached();
  void watch();

  std::unique_ptr<NcclApi> api_;
  const double timeout_s_, look_s_;
  std::recursive_mutex mutex_;
  std::condition_variable_any changed_;
  std::vector<void*> comms_;
  std::deque<Issued> issued_;  // oldest first
  std::optional<std::string> stopped_;
  std::string last_done_ = "nothing";
  bool is_ending_ = false;
  std::thread watchdog_;
};

}  // namespace weft::dist
