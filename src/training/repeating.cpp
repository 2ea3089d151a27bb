#include "src/training/repeating.h"

#include <exception>

#include "src/core/thread_settings.h"

namespace weft {

Repeating::Repeating(std::chrono::duration<double> every, std::function<void()> f)
    : thread_([this, every, f = std::move(f), settings = ThreadSettings()] {
        settings.apply();
        std::unique_lock lock(mutex_);
        while (!changed_.wait_for(lock, every, [&] { return is_over_; })) {
          lock.unlock();
          try {
            f();
          } catch (const std::exception&) { return; }  // the rank's next call meets the same
          lock.lock();
        }
      }) {}

Repeating::~Repeating() {
  {
    std::lock_guard lock(mutex_);
    is_over_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

}  // namespace weft
