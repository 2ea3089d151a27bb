// Tensors between the CPU and a GPU by way of pinned memory, so that the CPU does not wait for the device: a copy to ordinary memory
// waits for all work before it, and one from there may.
//   Upload upload(default_device());
//   Tensor ids = upload(batch.tokens);     // may be written again at once
#pragma once

#include <cstddef>
#include <deque>
#include <memory>

#include "weft/core/device.h"
#include "weft/core/tensor.h"

namespace weft {

// To a device. The buffers take turns: one is filled again when the copy out of it has ended, and there are as many as copies are under
// way at once.
class Upload {
 public:
  explicit Upload(Device to);
  ~Upload();
  Upload(const Upload&) = delete;
  Upload& operator=(const Upload&) = delete;

  Tensor operator()(const Tensor& x);  // row-major, on the CPU; x itself if that is where it goes, or undefined
  size_t num_buffers() const { return buffers_.size(); }

 private:
  struct Buffer;
  Device device_;
  std::deque<std::unique_ptr<Buffer>> buffers_;  // the one whose copy began first in front
};

// From a device, one tensor at a time: asked for in start(), read in finish().
class Download {
 public:
  Download();
  ~Download();
  Download(const Download&) = delete;
  Download& operator=(const Download&) = delete;

  void start(const Tensor& x);  // row-major, as it is after the work so far
  Tensor finish();              // on the CPU; waits only if this thread has not waited for the device since start()

 private:
  struct Buffer;
  Tensor x_;
  std::unique_ptr<Buffer> buffer_;
};

}  // namespace weft
