// cuBLASLt takes matrices by columns. What is stored by rows is the transpose of that, so it computes c^T = b^T a^T.
#include "tools/bench/cublaslt_route.h"

#include <cublasLt.h>

#include <array>
#include <memory>
#include <vector>

#include "src/core/cuda/runtime.h"
#include "tools/bench/bench.h"
#include "weft/core/error.h"

namespace weft::bench {

namespace {

constexpr uint64_t kWorkspaceBytes = uint64_t{64} << 20;
constexpr int kMaxProposals = 8;
constexpr double kTimingSeconds = 0.3;  // for all proposals of a product

template <class T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

class Route {
 public:
  Route(const Tensor& a, const Tensor& b, const Tensor& c, double beta)
      : a_(a), b_(b), c_(c), beta_(static_cast<float>(beta)) {
    cuda::stream_of(c);  // makes the device current, for which the handle is made
    cublasLtHandle_t library = nullptr;
    check(cublasLtCreate(&library));
    library_.reset(library);
    cublasLtMatmulDesc_t product = nullptr;
    check(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    product_.reset(product);
    for (auto [attribute, x] :
         {std::pair(CUBLASLT_MATMUL_DESC_TRANSA, &b_), std::pair(CUBLASLT_MATMUL_DESC_TRANSB, &a_)}) {
      const int32_t operation = is_by_rows(*x) ? CUBLAS_OP_N : CUBLAS_OP_T;
      check(cublasLtMatmulDescSetAttribute(product, attribute, &operation, sizeof operation));
    }
    a_layout_ = layout(a_), b_layout_ = layout(b_), c_layout_ = layout(c_);
    workspace_ = Tensor::empty({static_cast<int64_t>(kWorkspaceBytes)}, kU8, c.device());
  }

  std::vector<cublasLtMatmulAlgo_t> proposals() const {
    cublasLtMatmulPreference_t made = nullptr;
    check(cublasLtMatmulPreferenceCreate(&made));
    Handle<cublasLtMatmulPreferenceOpaque_t> preference(made, [](auto* p) { cublasLtMatmulPreferenceDestroy(p); });
    check(cublasLtMatmulPreferenceSetAttribute(made, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                                               sizeof kWorkspaceBytes));
    std::array<cublasLtMatmulHeuristicResult_t, kMaxProposals> found{};
    int count = 0;
    check(cublasLtMatmulAlgoGetHeuristic(library_.get(), product_.get(), b_layout_.get(), a_layout_.get(),
                                         c_layout_.get(), c_layout_.get(), made, kMaxProposals, found.data(), &count));
    std::vector<cublasLtMatmulAlgo_t> algorithms;
    for (const auto& one : std::span(found).first(static_cast<size_t>(count)))
      if (one.state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(one.algo);
    return algorithms;
  }

  cublasStatus_t run(const cublasLtMatmulAlgo_t& algorithm) {
    const float alpha = 1;
    void* c = c_.mutable_raw();
    return cublasLtMatmul(library_.get(), product_.get(), &alpha, b_.raw(), b_layout_.get(), a_.raw(), a_layout_.get(),
                          &beta_, c, c_layout_.get(), c, c_layout_.get(), &algorithm, workspace_.mutable_raw(),
                          kWorkspaceBytes, cuda::stream_of(c_));
  }

  void check(cublasStatus_t status) const {
    WEFT_CHECK(
        status == CUBLAS_STATUS_SUCCESS,
        str("bench: cuBLASLt says ", cublasLtGetStatusString(status), " for ", a_, " times ", b_, " to ", c_.dtype()),
        "please report this");
  }

 private:
  using Layout = Handle<cublasLtMatrixLayoutOpaque_t>;

  static bool is_by_rows(const Tensor& x) { return x.strides()[1] == 1; }

  // A matrix stored by rows has as many rows here as it has columns.
  Layout layout(const Tensor& x) const {
    const bool by_rows = is_by_rows(x);
    cublasLtMatrixLayout_t made = nullptr;
    check(cublasLtMatrixLayoutCreate(&made, x.dtype() == kBF16 ? CUDA_R_16BF : CUDA_R_32F,
                                     static_cast<uint64_t>(x.size(by_rows ? 1 : 0)),
                                     static_cast<uint64_t>(x.size(by_rows ? 0 : 1)), x.strides()[by_rows ? 0 : 1]));
    return destroyed(made);
  }
  static Layout destroyed(cublasLtMatrixLayout_t x) {
    return {x, [](auto* layout) { cublasLtMatrixLayoutDestroy(layout); }};
  }

  Tensor a_, b_, c_, workspace_;
  float beta_;
  Handle<cublasLtContext> library_{nullptr, [](auto* x) { cublasLtDestroy(x); }};
  Handle<cublasLtMatmulDescOpaque_t> product_{nullptr, [](auto* x) { cublasLtMatmulDescDestroy(x); }};
  Layout a_layout_ = destroyed(nullptr), b_layout_ = destroyed(nullptr), c_layout_ = destroyed(nullptr);
};

}  // namespace

std::function<void()> cublaslt_route(const Tensor& a, const Tensor& b, const Tensor& c, double beta) {
  auto route = std::make_shared<Route>(a, b, c, beta);
  std::vector<std::function<void()>> calls;
  cublasStatus_t last = CUBLAS_STATUS_NOT_SUPPORTED;
  for (const cublasLtMatmulAlgo_t& algorithm : route->proposals())
    if (last = route->run(algorithm); last == CUBLAS_STATUS_SUCCESS)
      calls.emplace_back([route, algorithm] { route->check(route->run(algorithm)); });
  if (calls.empty()) route->check(last);
  std::vector<Timing> times = time_in_turn(calls, kTimingSeconds);
  size_t best = 0;
  for (size_t i = 1; i < times.size(); ++i)
    if (times[i].best_s < times[best].best_s) best = i;
  return calls[best];
}

}  // namespace weft::bench
