// The losses of a step's micro-batches, summed where the model is and read by the CPU once a step.
#pragma once

#include <cstdint>
#include <span>

#include "weft/core/staging.h"

namespace weft {

class StepLosses {
 public:
  struct Sums {
    double loss = 0;       // of all micro-batches
    double byte_nats = 0;  // of the targets that have bytes
  };

  void start();
  // `loss` is a scalar; `losses` f32 per token, for `targets` on the CPU; `byte_lengths` per id, empty: nobody asks for bytes, and losses and
  // targets are not read.
  void add(const Tensor& loss, const Tensor& losses, const Tensor& targets, std::span<const int64_t> byte_lengths,
           Upload& upload);
  // After the last: the sums leave a GPU, and sums() waits for them only if nothing has waited for that GPU since.
  void send();
  Sums sums();

 private:
  Sums here_;
  Tensor there_;  // on a GPU: here_ as a tensor [2] f64
  Download download_;
};

}  // namespace weft
