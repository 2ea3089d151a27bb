#include "ops/cuda/cudnn/graph.h"

#include <dlfcn.h>

#include <algorithm>
#include <source_location>

#include "weft/core/error.h"

namespace weft::cuda::cudnn {

namespace {

// Masks of -inf are exact from 9.10 on, and key counts that are no multiple of 128 are right in the backward from 9.16 on.
constexpr size_t kOldestVersion = 91600;

struct Library {
  decltype(&cudnnGetVersion) get_version = nullptr;
  decltype(&cudnnGetErrorString) error_string = nullptr;
  decltype(&cudnnGetLastErrorString) last_error_string = nullptr;
  decltype(&cudnnCreate) create = nullptr;
  decltype(&cudnnDestroy) destroy = nullptr;
  decltype(&cudnnSetStream) set_stream = nullptr;
  decltype(&cudnnBackendCreateDescriptor) create_descriptor = nullptr;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor = nullptr;
  decltype(&cudnnBackendSetAttribute) set_attribute = nullptr;
  decltype(&cudnnBackendGetAttribute) get_attribute = nullptr;
  decltype(&cudnnBackendFinalize) finalize = nullptr;
  decltype(&cudnnBackendExecute) execute = nullptr;
  std::string problem;
};

std::string version_text(size_t version) { return str(version / 10000, ".", version / 100 % 100, ".", version % 100); }

Library open_library() {
  Library lib;
  void* handle = nullptr;
  for (const char* name : {"libcudnn.so.9", "/usr/local/cuda/lib64/libcudnn.so.9", "libcudnn_graph.so.9",
                           "/usr/local/cuda/lib64/libcudnn_graph.so.9"}) {
    handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle) break;
    if (lib.problem.empty()) lib.problem = str("cuDNN 9 is not there: ", dlerror());
  }
  if (!handle) return lib;
  lib.problem.clear();
  auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    if (!function && lib.problem.empty()) lib.problem = str("cuDNN has no function ", name);
  };
  find(lib.get_version, "cudnnGetVersion");
  find(lib.error_string, "cudnnGetErrorString");
  find(lib.last_error_string, "cudnnGetLastErrorString");
  find(lib.create, "cudnnCreate");
  find(lib.destroy, "cudnnDestroy");
  find(lib.set_stream, "cudnnSetStream");
  find(lib.create_descriptor, "cudnnBackendCreateDescriptor");
  find(lib.destroy_descriptor, "cudnnBackendDestroyDescriptor");
  find(lib.set_attribute, "cudnnBackendSetAttribute");
  find(lib.get_attribute, "cudnnBackendGetAttribute");
  find(lib.finalize, "cudnnBackendFinalize");
  find(lib.execute, "cudnnBackendExecute");
  if (lib.problem.empty() && lib.get_version() < kOldestVersion)
    lib.problem = str("cuDNN is ", version_text(lib.get_version()), ", attention needs ", version_text(kOldestVersion),
                      " or newer");
  return lib;
}

const Library& library() {
  static const Library& lib = *new Library(open_library());  // never closed: threads may end after static objects
  return lib;
}

std::string reason(cudnnStatus_t status, std::string_view what) {
  std::array<char, 512> text{};
  library().last_error_string(text.data(), text.size());
  return str("cuDNN: ", what, ": ", library().error_string(status), text[0] ? ": " : "", text.data());
}

void check(cudnnStatus_t status, std::string_view what,
           std::source_location location = std::source_location::current()) {
  if (status != CUDNN_STATUS_SUCCESS) [[unlikely]]
    fail(reason(status, what), "use the built-in attention kernels", location);
}

Descriptor made(cudnnBackendDescriptorType_t type, const auto& fill) {
  Descriptor d(type);
  fill(d);
  d.finalize();
  return d;
}

// Engines in the order of the heuristic.
std::vector<Descriptor> engine_configs(const Descriptor& operations, const Descriptor* device) {
  Descriptor heuristic = made(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, [&](Descriptor& d) {
    d.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations);
    if (device) d.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, *device);
    d.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
  });
  int64_t count = heuristic.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, nullptr);
  std::vector<Descriptor> configs;
  std::vector<cudnnBackendDescriptor_t> handles;
  for (int64_t i = 0; i < count; ++i) {
    configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    handles.push_back(configs.back().get());
  }
  count = heuristic.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, handles.data());
  while (static_cast<int64_t>(configs.size()) > count) configs.pop_back();
  return configs;
}

bool is_deterministic(const Descriptor& config) {
  Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t handle = engine.get();
  config.get(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &handle);
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  int64_t count = engine.get(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                             CUDNN_NUMERICAL_NOTE_TYPE_COUNT, notes.data());
  return std::find(notes.begin(), notes.begin() + count, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) ==
         notes.begin() + count;
}

}  // namespace

const std::string& problem() { return library().problem; }

std::string version() { return library().problem.empty() ? version_text(library().get_version()) : "none"; }

Descriptor::Descriptor(cudnnBackendDescriptorType_t type) {
  cudnnBackendDescriptor_t handle = nullptr;
  check(library().create_descriptor(type, &handle), "make a descriptor");
  handle_.reset(handle);
}

void Descriptor::Destroy::operator()(void* handle) const { library().destroy_descriptor(handle); }

void Descriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                     const void* values) {
  cudnnStatus_t status = library().set_attribute(get(), name, type, count, values);
  if (status != CUDNN_STATUS_SUCCESS) [[unlikely]]
    check(status, str("set attribute ", static_cast<int>(name)));
}

void Descriptor::set(cudnnBackendAttributeName_t name, const Descriptor& value) {
  cudnnBackendDescriptor_t handle = value.get();
  set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &handle);
}

int64_t Descriptor::get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t most,
                        void* values) const {
  int64_t count = 0;
  cudnnStatus_t status = library().get_attribute(get(), name, type, most, &count, values);
  if (status != CUDNN_STATUS_SUCCESS) [[unlikely]]
    check(status, str("get attribute ", static_cast<int>(name)));
  return most == 0 ? count : std::min(count, most);
}

void Descriptor::finalize() { check(library().finalize(get()), "finalize"); }

bool Descriptor::try_finalize(std::string& why_not) {
  cudnnStatus_t status = library().finalize(get());
  if (status != CUDNN_STATUS_SUCCESS) why_not = reason(status, "finalize");
  return status == CUDNN_STATUS_SUCCESS;
}

Dims packed(const Dims& sizes) { return {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1}; }

Dims last_two_swapped(const Dims& dims) { return {dims[0], dims[1], dims[3], dims[2]}; }

Id Graph::add(const Dims& sizes, const Dims& strides, cudnnDataType_t type, bool is_virtual, bool is_scalar,
              float value) {
  Id id = static_cast<Id>(tensors_.size()) + 1;
  Descriptor tensor = made(CUDNN_BACKEND_TENSOR_DESCRIPTOR, [&](Descriptor& d) {
    d.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type);
    d.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, sizes.data());
    d.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.data());
    d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id);
    d.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, int64_t{16});
    d.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, is_virtual);
    d.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, is_scalar);
  });
  tensors_.push_back({sizes, strides, std::move(tensor), is_scalar, value});
  return id;
}

Id Graph::memory(const Dims& sizes, const Dims& strides, cudnnDataType_t type) {
  return add(sizes, strides, type, false, false, 0);
}

Id Graph::scalar(float value) { return add({1, 1, 1, 1}, {1, 1, 1, 1}, CUDNN_DATA_FLOAT, false, true, value); }

Id Graph::result_of(Id like, const Result& result) {
  if (result.out) return result.out;
  Dims shape = result.sizes.value_or(sizes(like));
  return add(shape, result.strides.value_or(packed(shape)), result.type, true, false, 0);
}

Id Graph::matmul(Id a, Id b, const Result& result) {
  Id out = result_of(a, result);
  parts_.push_back(made(CUDNN_BACKEND_MATMUL_DESCRIPTOR, [&](Descriptor& d) {
    d.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, result.compute);
  }));
  operations_.push_back(made(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, [&](Descriptor& d) {
    d.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, descriptor(a));
    d.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, descriptor(b));
    d.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, descriptor(out));
    d.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, parts_.back());
  }));
  return out;
}

Id Graph::pointwise(Descriptor mode, std::initializer_list<Id> operands, const Result& result) {
  mode.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, result.compute);
  mode.finalize();
  Id out = result_of(*operands.begin(), result);
  operations_.push_back(made(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, [&](Descriptor& d) {
    constexpr cudnnBackendAttributeName_t kOperands[] = {CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
                                                         CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                                                         CUDNN_ATTR_OPERATION_POINTWISE_TDESC};
    d.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, mode);
    size_t i = 0;
    for (Id operand : operands) d.set(kOperands[i++], descriptor(operand));
    d.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, descriptor(out));
  }));
  parts_.push_back(std::move(mode));
  return out;
}

Id Graph::pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Id> operands, const Result& result) {
  Descriptor d(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  d.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode);
  return pointwise(std::move(d), operands, result);
}

Id Graph::index(Id like, int64_t dim) {
  Descriptor d(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  d.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, CUDNN_POINTWISE_GEN_INDEX);
  d.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, dim);
  return pointwise(std::move(d), {like}, {.type = CUDNN_DATA_INT32});
}

Id Graph::reduce(cudnnReduceTensorOp_t op, Id x, const Result& result) {
  Id out = result_of(x, result);
  parts_.push_back(made(CUDNN_BACKEND_REDUCTION_DESCRIPTOR, [&](Descriptor& d) {
    d.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, op);
    d.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, result.compute);
  }));
  operations_.push_back(made(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, [&](Descriptor& d) {
    d.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, descriptor(x));
    d.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, descriptor(out));
    d.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, parts_.back());
  }));
  return out;
}

Id Graph::reshape(Id x, const Result& result) {
  Id out = result_of(x, result);
  operations_.push_back(made(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, [&](Descriptor& d) {
    d.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, descriptor(x));
    d.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, descriptor(out));
  }));
  return out;
}

Descriptor described_device(std::string_view json) {
  return made(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, [&](Descriptor& d) {
    d.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, static_cast<int64_t>(json.size()), json.data());
  });
}

Executable::Executable(Graph graph, Target target, int64_t most_workspace_bytes)
    : graph_(std::move(graph)), operations_(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) {
  std::vector<cudnnBackendDescriptor_t> handles;
  for (const Descriptor& operation : graph_.operations()) handles.push_back(operation.get());
  operations_.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(handles.size()),
                  handles.data());
  if (target.handle) operations_.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, target.handle);
  operations_.finalize();

  std::string why_not = "the heuristic proposes no engine";
  for (Descriptor& config : engine_configs(operations_, target.device)) {
    if (!is_deterministic(config)) {
      why_not = "no engine is deterministic";
      continue;
    }
    Descriptor executable(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    if (target.handle) executable.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, target.handle);
    if (target.device) executable.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, *target.device);
    executable.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    if (!executable.try_finalize(why_not)) continue;
    executable.get(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &workspace_bytes_);
    if (workspace_bytes_ > most_workspace_bytes) {
      why_not = str("it wants ", workspace_bytes_, " bytes of workspace, more than ", most_workspace_bytes);
      continue;
    }
    executable_.emplace(std::move(executable));
    return;
  }
  fail(str("cuDNN has no engine: ", why_not), "use the built-in attention kernels");
}

void Executable::run(cudnnHandle_t handle, std::span<const std::pair<Id, const void*>> memory, void* workspace) const {
  std::vector<Id> ids;
  std::vector<const void*> pointers;
  for (const auto& [id, pointer] : memory) ids.push_back(id), pointers.push_back(pointer);
  for (size_t i = 0; i < graph_.tensors_.size(); ++i)
    if (const Graph::Node& node = graph_.tensors_[i]; node.is_scalar)
      ids.push_back(static_cast<Id>(i) + 1), pointers.push_back(&node.value);
  auto count = static_cast<int64_t>(ids.size());
  Descriptor pack = made(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, [&](Descriptor& d) {
    d.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids.data());
    d.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointers.data());
    d.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace);
  });
  check(library().execute(handle, executable_->get(), pack.get()), "run an executable");
}

Handle::Handle() { check(library().create(&handle_), "make a handle"); }

Handle::~Handle() {
  if (handle_) library().destroy(handle_);
}

void Handle::use_stream(cudaStream_t stream) { check(library().set_stream(handle_, stream), "set the stream"); }

}  // namespace weft::cuda::cudnn
