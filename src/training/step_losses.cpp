#include "src/training/step_losses.h"

#include "weft/ops/elementwise.h"
#include "weft/ops/reduce.h"

namespace weft {

namespace {

bool has_bytes(int32_t target, std::span<const int64_t> byte_lengths) {
  return target >= 0 && byte_lengths[static_cast<size_t>(target)] > 0;
}

// Sum of the losses whose targets have bytes, on their device: [1] f64.
Tensor sum_with_bytes(const Tensor& losses, const Tensor& targets, std::span<const int64_t> byte_lengths,
                      Upload& upload) {
  Tensor counts = Tensor::empty(targets.shape(), kBool, Device::cpu());
  const auto* ids = targets.data<int32_t>();
  auto* out = counts.mutable_data<bool>();
  for (int64_t i = 0; i < targets.num_elements(); ++i) out[i] = has_bytes(ids[i], byte_lengths);
  Tensor nats = ops::where(upload(counts), ops::cast(losses, kF64), Tensor::zeros({}, kF64, losses.device()));
  return ops::sum_all(nats).reshape({1});
}

}  // namespace

void StepLosses::start() {
  here_ = {};
  there_ = {};
}

void StepLosses::add(const Tensor& loss, const Tensor& losses, const Tensor& targets,
                     std::span<const int64_t> byte_lengths, Upload& upload) {
  if (loss.is_cuda()) {
    if (!there_.defined()) there_ = Tensor::zeros({2}, kF64, loss.device());
    Tensor sum = there_.slice(0, 0, 1), byte_nats = there_.slice(0, 1, 2);
    ops::add_(sum, ops::cast(loss, kF64).reshape({1}));
    if (!byte_lengths.empty()) ops::add_(byte_nats, sum_with_bytes(losses, targets, byte_lengths, upload));
    return;
  }
  here_.loss += loss.item();
  if (byte_lengths.empty()) return;
  const auto* ids = targets.data<int32_t>();
  const auto* nats = losses.data<float>();
  for (int64_t i = 0; i < targets.num_elements(); ++i)
    if (has_bytes(ids[i], byte_lengths)) here_.byte_nats += static_cast<double>(nats[i]);
}

void StepLosses::send() {
  if (there_.defined()) download_.start(there_);
}

StepLosses::Sums StepLosses::sums() {
  if (!there_.defined()) return here_;
  there_ = {};
  Tensor sums = download_.finish();
  const auto* at = sums.data<double>();
  return {at[0], at[1]};
}

}  // namespace weft
