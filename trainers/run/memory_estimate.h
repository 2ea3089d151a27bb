// How much memory a training will take, before it takes any: a dry run (weft/core/dry_run.h) of two of its steps. Every mixer, residual stream,
// recompute rule, compute type and optimiser is thereby counted as it is, a user's own included, and no formula has to follow the code.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "trainers/run/trial.h"

namespace weft::train {

// On the default device, of the first of several ranks. Tests hold the peak to 3 % for every mixer of the table, what is reserved to 10 % (experts are chosen unevenly). Not counted: what is not in tensors (see kOutsideBytes), and analyses in between (log.analysis_every).
struct MemoryEstimate {
  int64_t num_params = 0;
  int64_t weights_bytes = 0;    // f32 masters, bf16 working copies, running means; a teacher's too
  int64_t optimizer_bytes = 0;  // moments
  int64_t gradients_bytes = 0;  // of what is not frozen
  // The rest of the peak: activations that the recompute rule keeps, a chunk of logits, the batch, temporary tensors.
  int64_t activations_bytes = 0;
  int64_t peak_bytes = 0;          // of live tensors: MemoryStats::peak_bytes of the training
  int64_t reserved_bytes = 0;      // taken from the system for them: MemoryStats::reserved_bytes
  int64_t sent_bytes = 0;          // to other ranks in a micro-batch, without the sums of gradients
  int64_t buffers_sent_bytes = 0;  // at the end of a step, to add the sums of buffers over all ranks
  std::string text() const;        // "1.42 GiB (weights 110.3 MiB, gradients ...)"
};

// What a rank may take.
struct MemoryRoom {
  int64_t reserved_bytes = INT64_MAX;  // from the system
  int64_t peak_bytes = INT64_MAX;      // in tensors
  bool holds(const MemoryEstimate& estimate) const {
    return estimate.reserved_bytes <= reserved_bytes && estimate.peak_bytes <= peak_bytes;
  }
};

// Beside tensors: the program and its libraries, compiled products, scratch memory of threads.
inline constexpr int64_t kOutsideBytes = int64_t{128} << 20;

class MemoryEstimator {
 public:
  explicit MemoryEstimator(MemorySubject subject) : subject_(std::move(subject)) {}

  // Of steps with this micro-batch. A dry run up to kMostTokens tokens; above, the straight line through two of them, which is exact but for
  // the sizes of blocks (they come in eighths of powers of two).
  MemoryEstimate of(int64_t micro_batch);
  // One up to `most` that the room holds while it does not hold the next one; 0 if it holds none. Blocks come in eighths of powers of two, so
  // that a micro-batch up to an eighth larger may fit again.
  int64_t largest_micro_batch(const MemoryRoom& room, int64_t most);

  static constexpr int64_t kMostTokens = int64_t{1} << 17;

 private:
  const MemoryEstimate& dry_run(int64_t micro_batch);

  MemorySubject subject_;
  std::map<int64_t, MemoryEstimate> known_;
};

std::string size_text(int64_t bytes);  // "1.4 MiB"

// The number of trained numbers of a model, without making it.
int64_t count_params(const LanguageModelOptions& options);

// The estimate of a run. ConfigError with the numbers, and the largest micro-batch that fits, if it is more than train.memory_gib, or than is
// available on the default device, which `ranks_here` ranks share alike. `source`: as in memory_subject().
MemoryEstimate check_memory(const config::Loaded& config, int64_t num_ids, bool keeps_documents_apart,
                            int ranks_here = 1, const std::string& source = {});

}  // namespace weft::train
