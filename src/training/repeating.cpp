#include "src/training/repeating.h"

#include <exception>

#include "weft/core/device.h"
#include "weft/core/scope.h"

namespace weft {

Repeating::Repeating(std::chrono::duration<double> every, std::function<void()> f)
    : thread_([this, every, f = std::move(f), label = rank_label(), device = default_device()] {
        set_rank_label(label);
        set_default_device(device);
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
