// Something that is done from time to time beside what this thread does.
//   const Repeating signs(every, [&] { tell(still_busy); });
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace weft {

// Calls f on a thread of its own, as a part of this one's rank, `every` so long, until it ends or f throws.
class Repeating {
 public:
  Repeating(std::chrono::duration<double> every, std::function<void()> f);
  ~Repeating();
  Repeating(const Repeating&) = delete;
  Repeating& operator=(const Repeating&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_over_ = false;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace weft
