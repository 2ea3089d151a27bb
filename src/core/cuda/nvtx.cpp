// Scopes as NVTX ranges, for tools that load themselves into the process: they name their library in the environment.
#include <nvtx3/nvToolsExt.h>

#include <cstdlib>

#include "src/core/scope_watch.h"

namespace weft::cuda {

namespace {

class Nvtx final : public ScopeWatch {
 public:
  void begin(const std::string& path) override { nvtxRangePushA(path.c_str()); }
  void end() override { nvtxRangePop(); }
};

}  // namespace

ScopeWatch* nvtx_watch() {
  static Nvtx nvtx;
  return std::getenv("NVTX_INJECTION64_PATH") ? &nvtx : nullptr;
}

}  // namespace weft::cuda
