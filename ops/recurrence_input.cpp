#include "ops/recurrence_input.h"

#include <atomic>
#include <cmath>
#include <limits>

#include "ops/cpu/recurrence/kernels.h"
#include "ops/cuda/recurrence/kernels.h"
#include "src/core/cuda_build.h"
#include "src/core/not_finite.h"
#include "weft/core/dry_run.h"
#include "weft/core/parallel.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/recurrence.h"

namespace weft::ops {

using cpu::Mark;

namespace {

// The largest of g, +inf if one is not finite. By blocks, so that no thread waits for another.
double worst_decay(const Tensor& g) {
  Tensor dense = contiguous(g);
  std::atomic<double> worst = -INFINITY;
  with_type<float, double>(g.dtype(), "recur", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* x = dense.data<T>();
    parallel_for(dense.num_elements(), 1 << 15, [&](int64_t begin, int64_t end) {
      T largest = -std::numeric_limits<T>::infinity();
      bool is_finite = true;
      for (int64_t i = begin; i < end; ++i) {
        largest = x[i] > largest ? x[i] : largest;
        is_finite &= std::abs(x[i]) <= std::numeric_limits<T>::max();
      }
      double mine = is_finite ? static_cast<double>(largest) : INFINITY, before = worst.load();
      while (mine > before && !worst.compare_exchange_weak(before, mine)) {}
    });
  });
  return worst.load();
}

}  // namespace

std::string describe_input(const Tensor& t) { return t.defined() ? to_string(t) : "undefined"; }

void check_tensor(std::string_view op, std::string_view name, const Tensor& t, const Shape& shape, DType dtype,
                  const Tensor& like) {
  WEFT_CHECK(t.defined() && t.shape() == shape && t.dtype() == dtype,
             str(op, ": ", name, " is ", describe_input(t), ", must be ", shape, " ", dtype, " for ", like),
             str("pass ", name, " with this shape and dtype"));
  WEFT_CHECK(t.device() == like.device(), str(op, ": ", name, " is ", t, ", the other inputs are on ", like.device()),
             str("move ", name, " to ", like.device()));
}

void check_decay(std::string_view op, const Tensor& log_decay) {
  if (log_decay.is_cuda()) return;  // its kernels give NaN instead: the host would have to wait
  const double worst = worst_decay(log_decay);
  if (!(worst < INFINITY))
    fail_as<NotFinite>(str(op, ": log_decay ", log_decay, " has an element that is not finite"),
                       "floor the gate in log space, such as at -100; documents make the state begin with zeros");
  WEFT_CHECK(worst <= 0, str(op, ": log_decay ", log_decay, " has an element ", worst, ", above 0"),
             "give the logarithm of decays that are at most 1, such as log_sigmoid");
}

// [B, T] of what each token is; undefined without documents.
Tensor marks_of(const Tensor& documents, const Tensor& state_document) {
  if (!documents.defined()) return {};
  Tensor marks = Tensor::empty(documents.shape(), kU8, documents.device());
  if (is_dry_run()) return marks;
  if constexpr (kCuda) {
    if (marks.is_cuda()) return cuda::mark_documents(marks, documents, state_document), marks;
  }
  const int64_t B = documents.size(0), T = documents.size(1);
  const int32_t* of_token = documents.data<int32_t>();
  const Shape& strides = documents.strides();
  auto* mark = marks.mutable_data<uint8_t>();
  for (int64_t b = 0; b < B; ++b) {
    bool is_known = state_document.defined();
    int32_t at_work = is_known ? state_document.data<int32_t>()[b * state_document.strides()[0]] : 0;
    for (int64_t t = 0; t < T; ++t) {
      const int32_t document = of_token[b * strides[0] + t * strides[1]];
      Mark m = document < 0 ? Mark::padding : is_known && document != at_work ? Mark::first : Mark::token;
      if (m != Mark::padding) at_work = document, is_known = true;
      mark[b * T + t] = static_cast<uint8_t>(m);
    }
  }
  return marks;
}

void check_documents(std::string_view op, const Tensor& documents, const Tensor& state_document, const Shape& tokens,
                     const Tensor& like) {
  if (documents.defined()) check_tensor(op, "documents", documents, tokens, kI32, like);
  if (!state_document.defined()) return;
  WEFT_CHECK(documents.defined(), str(op, ": state_document is ", state_document, ", documents are undefined"),
             "pass the documents of the tokens too");
  check_tensor(op, "state_document", state_document, {tokens[0]}, kI32, like);
}

Tensor state_documents(const Tensor& documents_BT, const Tensor& before) {
  constexpr std::string_view op = "state_documents";
  WEFT_CHECK(documents_BT.defined() && documents_BT.num_dims() == 2,
             str(op, ": documents are ", describe_input(documents_BT)), "pass documents as [B, T] i32");
  check_documents(op, documents_BT, before, documents_BT.shape(), documents_BT);
  const int64_t B = documents_BT.size(0), T = documents_BT.size(1);
  Tensor last = Tensor::full({B}, -1, kI32, documents_BT.device());
  if (is_dry_run()) return last;
  if constexpr (kCuda) {
    if (last.is_cuda()) return cuda::last_documents(last, documents_BT, before), last;
  }
  const Tensor &here = documents_BT, &start = before;
  for (int64_t b = 0; b < B; ++b) {
    int32_t& document = last.mutable_data<int32_t>()[b];
    if (start.defined()) document = start.data<int32_t>()[b * start.strides()[0]];
    for (int64_t t = 0; t < T; ++t) {
      const int32_t at = here.data<int32_t>()[b * here.strides()[0] + t * here.strides()[1]];
      if (at >= 0) document = at;
    }
  }
  return last;
}

}  // namespace weft::ops
