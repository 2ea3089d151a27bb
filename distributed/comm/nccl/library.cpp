// NCCL itself: opened when it is first wanted, so that a program starts where it is not.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>

#include <cstring>

#include "distributed/comm/flight_record.h"
#include "distributed/comm/nccl/api.h"
#include "src/core/cuda/runtime.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {

struct Functions {
  decltype(&ncclGetUniqueId) get_id = nullptr;
  decltype(&ncclCommInitRankConfig) init = nullptr;
  decltype(&ncclCommSplit) split = nullptr;
  decltype(&ncclCommUserRank) user_rank = nullptr;
  decltype(&ncclCommCount) count = nullptr;
  decltype(&ncclCommGetAsyncError) async_error = nullptr;
  decltype(&ncclCommFinalize) finalize = nullptr;
  decltype(&ncclCommDestroy) destroy = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) receive = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclReduceScatter) reduce_scatter = nullptr;
  decltype(&ncclGetErrorString) error_text = nullptr;
};

Functions open_functions() {
  void* handle = nullptr;
  for (const char* name : {"libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2"})
    if (!handle) handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  WEFT_CHECK(handle, str("NCCL is not there: ", dlerror()), "install NCCL 2.18 or newer, or start the ranks by mpirun");
  Functions f;
  auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    WEFT_CHECK(function, str("NCCL has no function ", name), "install NCCL 2.18 or newer");
  };
  find(f.get_id, "ncclGetUniqueId");
  find(f.init, "ncclCommInitRankConfig");
  find(f.split, "ncclCommSplit");
  find(f.user_rank, "ncclCommUserRank");
  find(f.count, "ncclCommCount");
  find(f.async_error, "ncclCommGetAsyncError");
  find(f.finalize, "ncclCommFinalize");
  find(f.destroy, "ncclCommDestroy");
  find(f.abort, "ncclCommAbort");
  find(f.group_start, "ncclGroupStart");
  find(f.group_end, "ncclGroupEnd");
  find(f.send, "ncclSend");
  find(f.receive, "ncclRecv");
  find(f.broadcast, "ncclBroadcast");
  find(f.all_gather, "ncclAllGather");
  find(f.all_reduce, "ncclAllReduce");
  find(f.reduce_scatter, "ncclReduceScatter");
  find(f.error_text, "ncclGetErrorString");
  return f;
}

ncclDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::float32: return ncclFloat32;
    case DType::bfloat16: return ncclBfloat16;
    case DType::float64: return ncclFloat64;
    case DType::int64: return ncclInt64;
    case DType::int32: return ncclInt32;
    case DType::uint8:
    case DType::boolean: return ncclUint8;
  }
  return ncclUint8;
}

ncclRedOp_t reduction_of(Reduce reduce) {
  return reduce == Reduce::sum ? ncclSum : reduce == Reduce::max ? ncclMax : ncclMin;
}

class Nccl final : public NcclApi {
 public:
  explicit Nccl(int device) : f_(open_functions()), device_(device) {
    cuda::stream(device_);  // makes the device current
    cuda::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "NCCL's stream");
  }
  ~Nccl() override { cudaStreamDestroy(stream_); }

  int get_id(Id* id) override {
    static_assert(sizeof(ncclUniqueId) == sizeof(Id));
    return f_.get_id(reinterpret_cast<ncclUniqueId*>(id));
  }
  int init(void** comm, int size, const Id& id, int rank) override {
    ncclUniqueId given;
    std::memcpy(&given, &id, sizeof given);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    cuda::stream(device_);
    return f_.init(reinterpret_cast<ncclComm_t*>(comm), size, given, rank, &config);
  }
  int split(void* comm, int color, int key, void** part) override {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    return f_.split(of(comm), color, key, reinterpret_cast<ncclComm_t*>(part), &config);
  }
  int rank_of(void* comm, int* rank, int* size) override {
    const ncclResult_t code = f_.user_rank(of(comm), rank);
    return code == ncclSuccess ? f_.count(of(comm), size) : code;
  }
  int async_error(void* comm, int* state) override {
    ncclResult_t result = ncclSuccess;
    const ncclResult_t code = f_.async_error(of(comm), &result);
    *state = result;
    return code;
  }
  int finalize(void* comm) override { return f_.finalize(of(comm)); }
  int destroy(void* comm) override { return f_.destroy(of(comm)); }
  int abort(void* comm) override { return f_.abort(of(comm)); }
  int group_start() override { return f_.group_start(); }
  int group_end() override { return f_.group_end(); }
  int send(const void* from, int64_t bytes, int peer, void* comm) override {
    return f_.send(from, static_cast<size_t>(bytes), ncclUint8, peer, of(comm), stream_);
  }
  int receive(void* to, int64_t bytes, int peer, void* comm) override {
    return f_.receive(to, static_cast<size_t>(bytes), ncclUint8, peer, of(comm), stream_);
  }
  int broadcast(const void* from, void* to, int64_t bytes, int root, void* comm) override {
    return f_.broadcast(from, to, static_cast<size_t>(bytes), ncclUint8, root, of(comm), stream_);
  }
  int all_gather(const void* from, void* to, int64_t bytes, void* comm) override {
    return f_.all_gather(from, to, static_cast<size_t>(bytes), ncclUint8, of(comm), stream_);
  }
  int all_reduce(const void* from, void* to, int64_t count, DType dtype, Reduce reduce, void* comm) override {
    return f_.all_reduce(from, to, static_cast<size_t>(count), type_of(dtype), reduction_of(reduce), of(comm), stream_);
  }
  int reduce_scatter(const void* from, void* to, int64_t part, DType dtype, Reduce reduce, void* comm) override {
    return f_.reduce_scatter(from, to, static_cast<size_t>(part), type_of(dtype), reduction_of(reduce), of(comm),
                             stream_);
  }
  std::string error_text(int code) override { return f_.error_text(static_cast<ncclResult_t>(code)); }

  std::string gpu() override {
    cudaDeviceProp properties{};
    cuda::check(cudaGetDeviceProperties(&properties, device_), "the name of the GPU");
    std::string name = host_name() + " ";
    for (char byte : properties.uuid.bytes)
      for (int nibble : {(byte >> 4) & 15, byte & 15}) name += "0123456789abcdef"[nibble];
    return name;
  }

  void follow_thread() override {
    cudaEvent_t event = new_event();
    cuda::check(cudaEventRecord(event, cuda::stream(device_)), "NCCL's stream follows the thread's");
    cuda::check(cudaStreamWaitEvent(stream_, event, 0), "NCCL's stream follows the thread's");
    cudaEventDestroy(event);  // once it is reached
  }
  void* mark() override {
    cudaEvent_t event = new_event();
    cuda::check(cudaEventRecord(event, stream_), "NCCL's event");
    return event;
  }
  void thread_waits(void* mark) override {
    cuda::check(cudaStreamWaitEvent(cuda::stream(device_), static_cast<cudaEvent_t>(mark), 0), "the wait for NCCL");
  }
  bool is_reached(void* mark) override { return cudaEventQuery(static_cast<cudaEvent_t>(mark)) != cudaErrorNotReady; }
  void drop(void* mark) noexcept override { cudaEventDestroy(static_cast<cudaEvent_t>(mark)); }

 private:
  static ncclComm_t of(void* comm) { return static_cast<ncclComm_t>(comm); }
  cudaEvent_t new_event() {
    cudaEvent_t event = nullptr;
    cuda::stream(device_);
    cuda::check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "NCCL's event");
    return event;
  }

  const Functions f_;
  const int device_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace

std::unique_ptr<NcclApi> open_nccl(int device) { return std::make_unique<Nccl>(device); }

}  // namespace weft::dist
