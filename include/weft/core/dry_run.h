// A dry run: code runs as always, but tensors have no memory and kernels do nothing. Shapes, checks and the counts of the allocators are as
// in a real run. So a dry run tells how much memory a training step needs, for any model, before anything is allocated.
//   DryRun dry;                                     // for this thread, as long as it exists; its tensors must not outlive it
//   LanguageModel model(options, Rng(1));
//   backward(model.loss(ids, targets, tokens, 1).loss);
//   int64_t peak = dry.memory(Device::cpu()).peak_bytes;
// Values are mostly zeros and must not be used. Where work depends on values (how many tokens choose an expert), it is assumed to be spread
// evenly. Tensors from outside may be read, but not written.
#pragma once

#include "weft/core/allocator.h"

namespace weft {

class DryRun {
 public:
  DryRun();  // Error inside another
  ~DryRun();
  DryRun(const DryRun&) = delete;
  DryRun& operator=(const DryRun&) = delete;

  // What Allocator::stats() would say. Reserved bytes include freed blocks that are kept for reuse.
  MemoryStats memory(Device device) const;
};

// Whether this thread is in a dry run. Code that reads or writes elements of tensors outside parallel_for and launch() must ask first.
bool is_dry_run();

}  // namespace weft
