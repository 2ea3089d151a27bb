// The only door to cuDNN: small operation graphs through the C backend API. The library is opened when it is first wanted, so
// that programs start without it. A graph is built once per shape, prepared once, and run with new pointers.
#pragma once

#include <cudnn_backend.h>

#include <array>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "weft/core/device.h"

namespace weft::cuda::cudnn {

// "" if the library is there and new enough, else why it is not used.
const std::string& problem();
std::string version();  // of the loaded library: "9.19.0"

// One object of the backend API: attributes, then finalize(). Every refusal is an Error with cuDNN's own words.
class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type);

  cudnnBackendDescriptor_t get() const { return handle_.get(); }
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, const void* values);
  template <class T>
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    set(name, type, 1, &value);
  }
  void set(cudnnBackendAttributeName_t name, const Descriptor& value);
  int64_t get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t most, void* values) const;
  void finalize();
  bool try_finalize(std::string& why_not);

 private:
  struct Destroy {
    void operator()(void* handle) const;
  };
  std::unique_ptr<void, Destroy> handle_;
};

using Dims = std::array<int64_t, 4>;

Dims packed(const Dims& sizes);           // row-major strides
Dims last_two_swapped(const Dims& dims);  // of sizes and strides: the transpose

using Id = int64_t;  // of a tensor in a graph, from 1

// Operations in the order of their use. Every tensor has four dimensions; results without a given `out` are virtual: they
// exist inside the fused kernel only. Sizes of 1 broadcast.
class Graph {
 public:
  Id memory(const Dims& sizes, const Dims& strides, cudnnDataType_t type);
  Id scalar(float value);

  // What a virtual result is, where it is not f32 of the shape of the first operand.
  struct Result {
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    std::optional<Dims> sizes = {}, strides = {};
    Id out = 0;
  };
  Id matmul(Id a, Id b, const Result& result);
  Id pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Id> operands, const Result& result);
  Id pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Id> operands) { return pointwise(mode, operands, {}); }
  Id index(Id like, int64_t dim);  // i32: each element's own index along `dim`
  Id reduce(cudnnReduceTensorOp_t op, Id x, const Result& result);
  Id reshape(Id x, const Result& result);  // the same elements under other sizes and strides

  const Dims& sizes(Id id) const { return tensors_[static_cast<size_t>(id - 1)].sizes; }
  const Dims& strides(Id id) const { return tensors_[static_cast<size_t>(id - 1)].strides; }
  std::span<const Descriptor> operations() const { return operations_; }

 private:
  friend class Executable;
  struct Node {
    Dims sizes, strides;
    Descriptor descriptor;
    bool is_scalar = false;
    float value = 0;
  };
  Id add(const Dims& sizes, const Dims& strides, cudnnDataType_t type, bool is_virtual, bool is_scalar, float value);
  Id result_of(Id like, const Result& result);
  const Descriptor& descriptor(Id id) const { return tensors_[static_cast<size_t>(id - 1)].descriptor; }
  Id pointwise(Descriptor mode, std::initializer_list<Id> operands, const Result& result);

  std::vector<Node> tensors_;
  std::vector<Descriptor> parts_;  // of the operations
  std::vector<Descriptor> operations_;
};

// A GPU that need not be here: cuDNN's own description of one, as JSON. Executables for it can be made, not run.
Descriptor described_device(std::string_view json);

// What an executable is made for: the GPU of a handle, or a described one.
struct Target {
  cudnnHandle_t handle = nullptr;
  const Descriptor* device = nullptr;
};

// A graph with the engine that cuDNN's heuristic puts first, the same for the same graph. Engines that cuDNN calls
// nondeterministic or that want more workspace than `most_workspace_bytes` are passed over.
class Executable {
 public:
  Executable(Graph graph, Target target, int64_t most_workspace_bytes);  // Error if no engine takes it

  int64_t workspace_bytes() const { return workspace_bytes_; }
  // Pointers to all tensors in memory. Work goes to the handle's stream.
  void run(cudnnHandle_t handle, std::span<const std::pair<Id, const void*>> memory, void* workspace) const;

 private:
  Graph graph_;
  Descriptor operations_;
  std::optional<Descriptor> executable_;
  int64_t workspace_bytes_ = 0;
};

class Handle {
 public:
  Handle();
  ~Handle();
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  cudnnHandle_t get() const { return handle_; }
  void use_stream(cudaStream_t stream);

 private:
  cudnnHandle_t handle_ = nullptr;
};

}  // namespace weft::cuda::cudnn
