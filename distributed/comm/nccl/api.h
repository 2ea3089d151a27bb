// The calls of NCCL, and of the stream on which they run, that the communicator makes. A class of its own, so that a test can stand in for
// the library and see in which order it is called.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "weft/comm/communicator.h"

namespace weft::dist {

class NcclApi {
 public:
  struct Id {
    char bytes[128] = {};
  };
  static constexpr int kSuccess = 0, kInProgress = 7;  // of ncclResult_t

  virtual ~NcclApi() = default;

  // NCCL: the results are its codes. Communicators are non-blocking: a call may return kInProgress.
  virtual int get_id(Id* id) = 0;
  virtual int init(void** comm, int size, const Id& id, int rank) = 0;
  virtual int split(void* comm, int color, int key, void** part) = 0;
  virtual int rank_of(void* comm, int* rank, int* size) = 0;
  virtual int async_error(void* comm, int* state) = 0;
  virtual int finalize(void* comm) = 0;
  virtual int destroy(void* comm) = 0;
  virtual int abort(void* comm) = 0;
  virtual int group_start() = 0;
  virtual int group_end() = 0;
  virtual int send(const void* from, int64_t bytes, int peer, void* comm) = 0;
  virtual int receive(void* to, int64_t bytes, int peer, void* comm) = 0;
  virtual int broadcast(const void* from, void* to, int64_t bytes, int root, void* comm) = 0;
  virtual int all_gather(const void* from, void* to, int64_t bytes, void* comm) = 0;
  virtual int all_reduce(const void* from, void* to, int64_t count, DType dtype, Reduce reduce, void* comm) = 0;
  virtual int reduce_scatter(const void* from, void* to, int64_t part, DType dtype, Reduce reduce, void* comm) = 0;
  virtual std::string error_text(int code) = 0;
  virtual std::string gpu() = 0;  // of this rank, with its host: no other GPU has the name

  // The stream: one beside those of the threads, so that messages travel while kernels run.
  virtual void follow_thread() = 0;           // later calls come after what the calling thread has asked for so far
  virtual void* mark() = 0;                   // a point in the stream
  virtual void thread_waits(void* mark) = 0;  // later work of the calling thread comes after it
  virtual bool is_reached(void* mark) = 0;    // does not wait
  virtual void drop(void* mark) noexcept = 0;
};

// libnccl.so.2, opened when it is first wanted, and a stream of the device. Error if it is not there.
std::unique_ptr<NcclApi> open_nccl(int device);

}  // namespace weft::dist
