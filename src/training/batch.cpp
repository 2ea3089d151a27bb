#include "src/training/batch.h"

#include <algorithm>

#include "weft/core/error.h"

namespace weft {

namespace {

void check(const Tensor& x, const char* name, const Shape& shape) {
  WEFT_CHECK(x.dtype() == kI32 && x.num_dims() == 2 && x.shape() == shape && x.is_contiguous() && !x.is_cuda(),
             str("training: the batch's ", name, " are ", x, ", its tokens ", shape),
             "give row-major i32 tensors [rows, tokens] of one shape on the CPU");
}

}  // namespace

data::Batch completed(data::Batch batch) {
  const Shape shape = batch.tokens.shape();
  check(batch.tokens, "tokens", shape);
  check(batch.targets, "targets", shape);
  const int64_t rows = shape[0], T = shape[1];
  if (!batch.positions.defined()) {
    batch.positions = Tensor::empty(shape, kI32, Device::cpu());
    auto* out = batch.positions.mutable_data<int32_t>();
    for (int64_t i = 0; i < rows * T; ++i) out[i] = static_cast<int32_t>(i % T);
  }
  if (!batch.documents.defined()) {
    batch.documents = Tensor::zeros(shape, kI32, Device::cpu());
    batch.document_positions = batch.positions;
  }
  check(batch.positions, "positions", shape);
  check(batch.documents, "documents", shape);
  check(batch.document_positions, "document_positions", shape);
  return batch;
}

data::Batch rows_of(const data::Batch& batch, int64_t first, int64_t count) {
  auto rows = [&](const Tensor& x) { return x.slice(0, first, first + count); };
  return {rows(batch.tokens), rows(batch.targets), rows(batch.positions), rows(batch.documents),
          rows(batch.document_positions)};
}

int64_t count_targets(const data::Batch& batch) {
  const auto* targets = batch.targets.data<int32_t>();
  return std::count_if(targets, targets + batch.targets.num_elements(), [](int32_t id) { return id >= 0; });
}

int64_t count_bytes(const data::Batch& batch, std::span<const int64_t> byte_lengths) {
  if (byte_lengths.empty()) return 0;
  int64_t bytes = 0;
  const auto* targets = batch.targets.data<int32_t>();
  for (int64_t t = 0; t < batch.targets.num_elements(); ++t)
    if (targets[t] >= 0) bytes += byte_lengths[static_cast<size_t>(targets[t])];
  return bytes;
}

}  // namespace weft
