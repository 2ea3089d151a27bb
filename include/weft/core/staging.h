// Copies tensors between the CPU and a GPU through pinned memory, so that the CPU does not wait for the device. A copy to ordinary memory
// always waits for all earlier work of the device, and a copy from ordinary memory may wait.
//   Upload upload(default_device());
//   Tensor ids = upload(batch.tokens);     // batch.tokens may be changed at once
#pragma once

#include <cstddef>
#include <deque>
#include <memory>

#include "weft/core/device.h"
#include "weft/core/tensor.h"

namespace weft {

// Copies to a device. A buffer is used again when the copy out of it has ended. There are as many buffers as there are copies at the same
// time.
class Upload {
 public:
  explicit Upload(Device to);
  ~Upload();
  Upload(const Upload&) = delete;
  Upload& operator=(const Upload&) = delete;

  Tensor operator()(const Tensor& x);  // of row-major x on the CPU; x itself if that is the device or x is undefined
  size_t num_buffers() const { return buffers_.size(); }

 private:
  struct Buffer;
  Device device_;
  std::deque<std::unique_ptr<Buffer>> buffers_;  // in the order in which their copies began
};

// Copies from a device, one tensor at a time: start() asks for it, finish() returns it.
class Download {
 public:
  Download();
  ~Download();
  Download(const Download&) = delete;
  Download& operator=(const Download&) = delete;

  void start(const Tensor& x);  // row-major, as it is after the work so far
  Tensor finish();              // on the CPU; waits unless this thread has waited for the device since start()

 private:
  struct Buffer;
  Tensor x_;
  std::unique_ptr<Buffer> buffer_;
};

}  // namespace weft
