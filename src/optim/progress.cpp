#include "weft/optim/progress.h"

#include <algorithm>

namespace weft {

double training_progress(int64_t step, int64_t steps) {
  if (steps <= 0) return 0;
  return std::min(static_cast<double>(step) / static_cast<double>(std::max<int64_t>(steps - 1, 1)), 1.0);
}

}  // namespace weft
