#include "distributed/comm/nccl/world.h"

#include <algorithm>

#include "weft/core/error.h"

namespace weft::dist {

namespace {
double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}
}  // namespace

NcclWorld::NcclWorld(std::unique_ptr<NcclApi> api, double timeout_s, double look_s)
    : api_(std::move(api)), timeout_s_(timeout_s), look_s_(look_s), watchdog_([this] { watch(); }) {}

NcclWorld::~NcclWorld() {
  {
    std::lock_guard lock(mutex_);
    is_ending_ = true;
    changed_.notify_all();
  }
  watchdog_.join();
  for (void* comm : comms_) api_->abort(comm);
  for (const Issued& issued : issued_) api_->drop(issued.mark);
}

void NcclWorld::require_running() const {
  if (stopped_) fail(str("NCCL: stopped, because ", *stopped_), "see the error of the rank that was first");
}

void NcclWorld::check(int code, const std::string& what) {
  if (code == NcclApi::kSuccess || code == NcclApi::kInProgress) return;
  const std::string problem = str("NCCL: ", what, ": ", api_->error_text(code));
  stop(problem);
  fail(problem, "set NCCL_DEBUG=WARN to see what NCCL says of it");
}

void NcclWorld::settle(void* comm, int code, const std::string& what) {
  const auto begin = Clock::now();
  for (check(code, what); code == NcclApi::kInProgress; check(code, what)) {
    const int asked = api_->async_error(comm, &code);
    check(asked, what);
    if (code != NcclApi::kInProgress) continue;
    if (seconds_since(begin) > timeout_s_) {
      const std::string problem = str("NCCL: ", what, " has not begun for ", timeout_s_, " s");
      stop_locked(problem);
      fail(problem,
           "look whether all ranks have come this far; the one with the lowest number in its flight record has not");
    }
    mutex_.unlock();  // the watchdog, and abort() of another thread
    std::this_thread::yield();
    mutex_.lock();
    require_running();
  }
}

void* NcclWorld::open(const std::string& what, const std::function<int(void**)>& make) {
  std::lock_guard lock(mutex_);
  require_running();
  void* comm = nullptr;
  const int code = make(&comm);
  if (comm) comms_.push_back(comm);
  settle(comm, code, what);
  return comm;
}

void NcclWorld::close(void* comm) noexcept {
  std::lock_guard lock(mutex_);
  const auto found = std::find(comms_.begin(), comms_.end(), comm);
  if (found == comms_.end()) return;  // aborted
  try {
    settle(comm, api_->finalize(comm), "the end of a communicator");
    api_->destroy(comm);
    comms_.erase(std::find(comms_.begin(), comms_.end(), comm));
  } catch (const std::exception&) {}  // stopped: all were aborted
}

void* NcclWorld::issue(void* comm, const std::string& what, const std::function<void()>& calls) {
  std::lock_guard lock(mutex_);
  require_running();
  drop_reached();
  api_->follow_thread();
  check(api_->group_start(), what);
  calls();
  settle(comm, api_->group_end(), what);
  issued_.push_back({api_->mark(), what, Clock::now()});
  return issued_.back().mark;
}

void NcclWorld::done(void* mark) noexcept {
  std::lock_guard lock(mutex_);
  for (Issued& issued : issued_)
    if (issued.mark == mark) issued.is_done = true;
}

void NcclWorld::wait_until(void* mark) {
  std::unique_lock lock(mutex_);
  for (require_running(); !api_->is_reached(mark); require_running()) {
    lock.unlock();
    std::this_thread::yield();
    lock.lock();
  }
}

void NcclWorld::drop_reached() {
  while (!issued_.empty() && issued_.front().is_done && api_->is_reached(issued_.front().mark)) {
    last_done_ = issued_.front().what;
    api_->drop(issued_.front().mark);
    issued_.pop_front();
  }
}

void NcclWorld::stop(const std::string& why) noexcept {
  std::lock_guard lock(mutex_);
  stop_locked(why);
}

// The text first: ncclCommAbort may take its time.
void NcclWorld::stop_locked(const std::string& why) noexcept {
  if (stopped_) return;
  stopped_ = why;
  for (void* comm : comms_) api_->abort(comm);
  comms_.clear();
}

void NcclWorld::watch() {
  std::unique_lock lock(mutex_);
  while (!is_ending_) {
    changed_.wait_for(lock, std::chrono::duration<double>(look_s_));
    if (is_ending_ || stopped_) continue;
    for (void* comm : comms_) {
      int code = NcclApi::kSuccess;
      const int asked = api_->async_error(comm, &code);
      if (asked != NcclApi::kSuccess) code = asked;
      if (code == NcclApi::kSuccess || code == NcclApi::kInProgress) continue;
      stop_locked(str("an operation failed: ", api_->error_text(code), "; the last that ended was ", last_done_));
      break;
    }
    if (stopped_) continue;
    const auto oldest =
        std::find_if(issued_.begin(), issued_.end(), [&](const Issued& i) { return !api_->is_reached(i.mark); });
    if (oldest != issued_.end() && seconds_since(oldest->when) > timeout_s_)
      stop_locked(str(oldest->what, " has not ended for ", timeout_s_, " s; the last that ended was ", last_done_));
  }
}

}  // namespace weft::dist
