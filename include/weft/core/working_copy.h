// A bf16 copy of an f32 tensor, the master, that knows of which writing of the master it is. Whoever writes both says so with note(); whoever
// reads the copy asks is_of() first. So a copy that nobody rewrote is found out instead of read. Copies of this handle share all of it.
#pragma once

#include <atomic>
#include <memory>

#include "weft/core/tensor.h"

namespace weft {

class WorkingCopy {
 public:
  WorkingCopy() = default;    // there is none
  WorkingCopy(Tensor tensor)  // NOLINT: of no writing yet
      : tensor_(std::move(tensor)), version_(std::make_shared<std::atomic<uint64_t>>(kNone)) {}

  bool defined() const { return tensor_.defined(); }
  const Tensor& tensor() const { return tensor_; }
  bool is_of(const Tensor& master) const { return version_->load(std::memory_order_acquire) == master.version(); }
  void note(const Tensor& master) { version_->store(master.version(), std::memory_order_release); }  // it was rewritten
  void doubt() {
    version_->store(kNone, std::memory_order_release);
  }  // the master may be written by whoever holds its memory

 private:
  static constexpr uint64_t kNone = ~uint64_t{0};
  Tensor tensor_;
  std::shared_ptr<std::atomic<uint64_t>> version_;
};

}  // namespace weft
