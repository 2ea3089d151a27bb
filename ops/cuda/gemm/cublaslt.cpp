// Row-major c [m, n] = a b is column-major c' [n, m] = b' a' on the same memory: the operands are swapped, the transposes
// stay as they are, and the bias of n numbers goes along the rows of c', as the epilogue wants it.
#include "ops/cuda/gemm/cublaslt.h"

#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <memory>
#include <source_location>
#include <type_traits>
#include <unordered_map>

#include "src/core/cuda/problems.h"
#include "src/core/cuda/runtime.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"

namespace weft::cuda {

namespace {

using ops::Gemm;
using ops::GemmOperand;

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
// What the widest load and the bulk copies of Hopper need. More would only tell tensors apart by where they lie.
constexpr uintptr_t kAlignment = 16;

void check_cublas(cublasStatus_t status, const Gemm& g,
                  std::source_location location = std::source_location::current()) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  fail(str("matmul: cuBLASLt says ", cublasLtGetStatusString(status), " (", static_cast<int>(status), ") for ",
           g.num_products(), " x [", g.m, ", ", g.k, "] times [", g.k, ", ", g.n, "] ", g.in, " to ", g.out,
           g.bias ? " with bias" : "", ", leading sizes ", g.a.ld, ", ", g.b.ld, ", ", g.ldc),
       status == CUBLAS_STATUS_ALLOC_FAILED ? "use a smaller batch or sequence, or train.recompute"
                                            : "please report this",
       location);
}

template <auto destroy>
struct Destroy {
  template <class T>
  void operator()(T* handle) const {
    destroy(handle);
  }
};
template <class Handle, auto destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy<destroy>>;

using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Operation = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

int64_t num_batches(const Gemm& g) { return g.num_batch_dims == 0 ? 1 : g.batch[0]; }

// The largest power of two up to kAlignment that divides the address of every product of a batch.
uint32_t alignment_of(const void* p, int64_t step_bytes = 0) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(step_bytes) | kAlignment;
  return static_cast<uint32_t>(bits & (~bits + 1));
}
// Of a, b and c.
std::array<uint32_t, 3> alignments(const Gemm& g) {
  const bool is_batch = num_batches(g) > 1;
  auto bytes = [&](int64_t step, DType dtype) { return is_batch ? step * static_cast<int64_t>(size_of(dtype)) : 0; };
  return {alignment_of(g.a.data, bytes(g.a_step[0], g.in)), alignment_of(g.b.data, bytes(g.b_step[0], g.in)),
          alignment_of(g.c, bytes(g.c_step[0], g.out))};
}

// What the choice of an algorithm depends on, as numbers.
struct Key {
  std::array<int64_t, 15> numbers;

  Key(const Gemm& g, const Epilogue& epilogue) {
    bool is_batch = num_batches(g) > 1;
    const auto [a, b, c] = alignments(g);
    int64_t flags = static_cast<int64_t>(g.in) | static_cast<int64_t>(g.out) << 8 | int64_t{g.a.is_transposed} << 16 |
                    int64_t{g.b.is_transposed} << 17 | int64_t{g.bias != nullptr} << 18 | int64_t{epilogue.kind} << 19;
    numbers = {g.m,
               g.n,
               g.k,
               g.a.ld,
               g.b.ld,
               g.ldc,
               num_batches(g),
               is_batch ? g.a_step[0] : 0,
               is_batch ? g.b_step[0] : 0,
               is_batch ? g.c_step[0] : 0,
               flags,
               a,
               b,
               c,
               epilogue.ld};
  }
  friend bool operator==(const Key&, const Key&) = default;
};

struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0;
    for (int64_t number : key.numbers) {
      hash = (hash ^ static_cast<uint64_t>(number)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

cudaDataType_t type_of(DType dtype) { return dtype == kF64 ? CUDA_R_64F : dtype == kBF16 ? CUDA_R_16BF : CUDA_R_32F; }

// A stored matrix as cuBLASLt sees it: `rows` numbers beside each other, `cols` of those `ld` apart.
Layout layout(const Gemm& g, DType dtype, int64_t rows, int64_t cols, int64_t ld, int64_t step) {
  cublasLtMatrixLayout_t made = nullptr;
  check_cublas(
      cublasLtMatrixLayoutCreate(&made, type_of(dtype), static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), ld),
      g);
  Layout result(made);
  if (auto count = static_cast<int32_t>(num_batches(g)); count > 1) {
    check_cublas(cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)), g);
    check_cublas(
        cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof(step)), g);
  }
  return result;
}

Layout operand_layout(const Gemm& g, const GemmOperand& x, int64_t rows, int64_t cols, int64_t step) {
  return x.is_transposed ? layout(g, g.in, rows, cols, x.ld, step) : layout(g, g.in, cols, rows, x.ld, step);
}

// Descriptors and the algorithm of one key; only pointers change from call to call.
struct Prepared {
  Operation operation;
  Layout a, b, c;
  cublasLtMatmulAlgo_t algorithm{};
  size_t workspace_bytes = 0;
  bool exists = false;

  Prepared(const Gemm& g, const Epilogue& epilogue, cublasLtHandle_t handle) {
    bool is_f64 = g.in == kF64;
    cublasLtMatmulDesc_t made = nullptr;
    check_cublas(cublasLtMatmulDescCreate(&made, is_f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                          is_f64 ? CUDA_R_64F : CUDA_R_32F),
                 g);
    operation.reset(made);
    set(g, CUBLASLT_MATMUL_DESC_TRANSA, int32_t{g.b.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N});
    set(g, CUBLASLT_MATMUL_DESC_TRANSB, int32_t{g.a.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N});
    set(g, CUBLASLT_MATMUL_DESC_EPILOGUE, kind_of(g, epilogue));
    // The search reads the alignment off pointers: all of these are taken for ones of 16 bytes.
    set_pointers(g, g.bias ? kAny : nullptr, epilogue.at ? Epilogue{epilogue.kind, kAny, epilogue.ld} : epilogue);
    is_optional_ = g.bias || epilogue.kind != Epilogue::none;
    a = operand_layout(g, g.a, g.m, g.k, g.a_step[0]);
    b = operand_layout(g, g.b, g.k, g.n, g.b_step[0]);
    c = layout(g, g.out, g.n, g.m, g.ldc, g.c_step[0]);
    choose(g, handle);
  }

  // A bias and sums of rows have one place in the descriptor.
  void set_pointers(const Gemm& g, const void* bias, const Epilogue& epilogue) {
    const bool is_sum = epilogue.kind == Epilogue::row_sums;
    if (bias || is_sum) set(g, CUBLASLT_MATMUL_DESC_BIAS_POINTER, is_sum ? epilogue.at : bias);
    if (is_sum || epilogue.kind == Epilogue::none) return;
    set(g, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, epilogue.at);
    set(g, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, epilogue.ld);
  }

 private:
  inline static void* const kAny = reinterpret_cast<void*>(kAlignment);

  // c' has the rows of c as columns: its bias lies along them, and a is the second operand, whose sums are BGRADB.
  static uint32_t kind_of(const Gemm& g, const Epilogue& epilogue) {
    switch (epilogue.kind) {
      case Epilogue::none: return g.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
      case Epilogue::gelu: return g.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
      case Epilogue::gelu_backward: return CUBLASLT_EPILOGUE_DGELU;
      case Epilogue::row_sums: return CUBLASLT_EPILOGUE_BGRADB;
    }
    return CUBLASLT_EPILOGUE_DEFAULT;
  }

  template <class T>
  void set(const Gemm& g, cublasLtMatmulDescAttributes_t attribute, T value) {
    check_cublas(cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof(value)), g);
  }

  void choose(const Gemm& g, cublasLtHandle_t handle) {
    cublasLtMatmulPreference_t made = nullptr;
    check_cublas(cublasLtMatmulPreferenceCreate(&made), g);
    Preference preference(made);
    auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check_cublas(cublasLtMatmulPreferenceSetAttribute(made, attribute, &value, sizeof(value)), g);
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
    // Parts of a sum over k meet in f32: the other schemes round each part to the dtype of c.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    const auto aligned = alignments(g);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned[1]);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned[0]);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, aligned[2]);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, aligned[2]);

    std::array<cublasLtMatmulHeuristicResult_t, 4> found{};
    int count = 0;
    auto status = cublasLtMatmulAlgoGetHeuristic(handle, operation.get(), b.get(), a.get(), c.get(), c.get(), made,
                                                 static_cast<int>(found.size()), found.data(), &count);
    if (status != CUBLAS_STATUS_SUCCESS) {
      if (!is_optional_) check_cublas(status, g);
      count = 0;
    }
    for (int i = 0; i < count && !exists; ++i) {
      const auto& one = found[static_cast<size_t>(i)];
      if (one.state != CUBLAS_STATUS_SUCCESS || one.workspaceSize > static_cast<size_t>(kWorkspaceBytes)) continue;
      algorithm = one.algo;
      workspace_bytes = one.workspaceSize;
      exists = true;
    }
    if (!exists && !is_optional_) check_cublas(CUBLAS_STATUS_NOT_SUPPORTED, g);
  }

  bool is_optional_ = false;  // the caller has another way
};

// Of one thread on one device: descriptors may not be used by two threads at once, and the workspace belongs to a stream.
class Session {
 public:
  Session(const Gemm& g, Device device) {
    cublasLtHandle_t made = nullptr;
    check_cublas(cublasLtCreate(&made), g);
    handle_.reset(made);
    MemoryTag tag("workspace");
    workspace_ = Tensor::empty({kWorkspaceBytes}, kU8, device);
  }

  bool run(const Gemm& g, const Epilogue& epilogue, cudaStream_t stream) {
    Prepared& prepared = find(g, epilogue);
    if (!prepared.exists) return false;
    prepared.set_pointers(g, g.bias, epilogue);
    const double one = 1;
    const float one_f32 = 1, beta_f32 = static_cast<float>(g.beta);
    bool is_f64 = g.in == kF64;
    const void* alpha = is_f64 ? static_cast<const void*>(&one) : &one_f32;
    const void* beta = is_f64 ? static_cast<const void*>(&g.beta) : &beta_f32;
    note_launch("matmul");
    check_cublas(cublasLtMatmul(handle_.get(), prepared.operation.get(), alpha, g.b.data, prepared.b.get(), g.a.data,
                                prepared.a.get(), beta, g.c, prepared.c.get(), g.c, prepared.c.get(),
                                &prepared.algorithm, workspace_.mutable_raw(), prepared.workspace_bytes, stream),
                 g);
    check_launch("matmul", stream);
    return true;
  }

 private:
  static constexpr size_t kMaxPrepared = 2048;

  Prepared& find(const Gemm& g, const Epilogue& epilogue) {
    Key key(g, epilogue);
    if (auto found = prepared_.find(key); found != prepared_.end()) return found->second;
    if (prepared_.size() >= kMaxPrepared) prepared_.clear();  // a program whose shapes never repeat
    return prepared_.try_emplace(key, g, epilogue, handle_.get()).first->second;
  }

  Owned<cublasLtHandle_t, cublasLtDestroy> handle_;
  Tensor workspace_;
  std::unordered_map<Key, Prepared, KeyHash> prepared_;
};

}  // namespace

bool cublaslt_matmul(const Gemm& g, Device device, const Epilogue& epilogue) {
  WEFT_ASSERT(epilogue.kind == Epilogue::none || (num_batches(g) == 1 && g.beta == 0 && g.in != kF64));
  if (epilogue.ld % 8 != 0 || alignment_of(epilogue.at) != kAlignment) return false;
  WEFT_ASSERT(g.num_batch_dims <= 1 && num_batches(g) <= kMaxBatch);
  WEFT_ASSERT(!g.bias || alignment_of(g.bias) == kAlignment);
  if (is_dry_run()) return true;  // a session's workspace of 32 MiB is not counted
  // First of all: the thread's streams must outlive its sessions, whose workspaces go back to their stream.
  cudaStream_t s = stream(device.index);
  thread_local std::map<int, Session> of_thread;
  auto session = of_thread.find(device.index);
  if (session == of_thread.end()) session = of_thread.try_emplace(device.index, g, device).first;
  return session->second.run(g, epilogue, s);
}

std::string cublaslt_version() {
  size_t version = cublasLtGetVersion();
  return str(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace weft::cuda
