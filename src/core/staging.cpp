#include "weft/core/staging.h"

#include <cstring>
#include <utility>

#include "weft/core/error.h"
#include "weft/core/stream.h"
#ifdef WEFT_WITH_CUDA
#include "src/core/cuda/runtime.h"
#endif

namespace weft {

namespace {

// Pinned memory with a copy out of it or into it, until `copied`.
struct Staged {
  Staged(size_t bytes, Device on) : device(on), memory(bytes), copied(on) {}
  ~Staged() {
    try {
      wait();
    } catch (const Error&) {  // the device is gone, and nothing writes here any more; somebody else has the Error
    }
  }
  void wait() {
    if (!copied.is_reached()) copied.synchronize();
  }
  Tensor view(const Shape& shape, DType dtype) { return Tensor::borrow(memory.data(), shape, dtype, nullptr); }

  Device device;
  PinnedBuffer memory;
  Event copied;
};

}  // namespace

struct Upload::Buffer : Staged {
  using Staged::Staged;
};

Upload::Upload(Device to) : device_(to) {}
Upload::~Upload() = default;

Tensor Upload::operator()(const Tensor& x) {
  if (!x.defined() || x.device() == device_) return x;
  WEFT_CHECK(!x.is_cuda() && x.is_contiguous(), str("Upload: ", x, " to ", device_), "give a row-major CPU tensor");
  Tensor there = Tensor::empty(x.shape(), x.dtype(), device_);
  std::unique_ptr<Buffer> buffer;
  if (!buffers_.empty() && buffers_.front()->copied.is_reached()) {
    buffer = std::move(buffers_.front());
    buffers_.pop_front();
  }
  if (!buffer || buffer->memory.bytes() < x.num_bytes()) buffer = std::make_unique<Buffer>(x.num_bytes(), device_);
  std::memcpy(buffer->memory.data(), x.raw(), x.num_bytes());
  there.set_bytes(buffer->view(x.shape(), x.dtype()));
  buffer->copied.record();
  buffers_.push_back(std::move(buffer));
  return there;
}

struct Download::Buffer : Staged {
  using Staged::Staged;
};

Download::Download() = default;
Download::~Download() = default;

void Download::start(const Tensor& x) {
  WEFT_CHECK(x.defined() && x.is_contiguous(), str("Download: ", x), "give a row-major tensor");
  x_ = x;
#ifdef WEFT_WITH_CUDA
  if (!x.is_cuda()) return;
  if (!buffer_ || buffer_->device != x.device() || buffer_->memory.bytes() < x.num_bytes())
    buffer_ = std::make_unique<Buffer>(x.num_bytes(), x.device());
  cuda::copy_bytes_later(buffer_->memory.data(), x.raw(), x.num_bytes(), x.device());
  buffer_->copied.record();
#endif
}

Tensor Download::finish() {
  WEFT_CHECK(x_.defined(), "Download: finish() without start()", "start() it first");
  Tensor x = std::exchange(x_, Tensor());
  if (!x.is_cuda()) return x;
  buffer_->wait();
  Tensor here = Tensor::empty(x.shape(), x.dtype(), Device::cpu());
  here.set_bytes(buffer_->view(x.shape(), x.dtype()));
  return here;
}

}  // namespace weft
