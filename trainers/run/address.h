// How commands name a run and one of its checkpoints: RUN, RUN@STEP, RUN@best, RUN@latest, or the checkpoint's own folder.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

namespace weft::train {

// For the help of commands.
inline constexpr const char* kRunForms =
    "Folder of a run, whose newest checkpoint is taken; or RUN@STEP, RUN@best (lowest validation loss), RUN@latest, or "
    "a checkpoint's "
    "folder";

struct RunAddress {
  std::string folder;      // of the run
  std::string checkpoint;  // folder of the one that was named; empty: the newest good one
};

// What follows the @ in `text`, or a folder that is there: that one is taken as it is, also with an @ in its name. ConfigError that says
// what is there instead, or which checkpoints the run has.
RunAddress find_run(const std::string& text);

// The lowest of a run's validation losses up to `last_step`, in nats per token, and its step; nothing before the first validation. The
// one at the end uses all validation tokens: where eval.tokens bounds the others, it is not compared with them.
struct BestValidation {
  int64_t step = 0;
  double loss = 0;
};
std::optional<BestValidation> best_validation(const std::string& run_folder,
                                              int64_t last_step = std::numeric_limits<int64_t>::max());

}  // namespace weft::train
