// A dry run: code runs as always, but tensors have no memory behind them and kernels do nothing, so that only shapes, checks and the books of
// the allocators are real. It tells what a training step takes before a byte of it is taken, whatever the model is made of.
//   DryRun dry;                                     // of this thread, until its end; tensors are born and die within it
//   LanguageModel model(options, Rng(1));
//   backward(model.loss(ids, targets, tokens, 1).loss);
//   int64_t peak = dry.memory(Device::cpu()).peak_bytes;
// Values are zeros, mostly: none may be used, and what depends on them (how many tokens choose an expert) is spread evenly. Tensors from
// outside may be read and not written.
#pragma once

#include "weft/core/allocator.h"

namespace weft {

class DryRun {
 public:
  DryRun();  // Error inside another
  ~DryRun();
  DryRun(const DryRun&) = delete;
  DryRun& operator=(const DryRun&) = delete;

  // As Allocator::stats() would be: reserved bytes include freed blocks that wait for a tensor of their size.
  MemoryStats memory(Device device) const;
};

// Whether this thread is in a dry run. What computes on the elements of tensors, and is not in a parallel_for or launch(), asks it first.
bool is_dry_run();

}  // namespace weft
