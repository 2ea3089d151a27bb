// Scopes for nvtx_tool to print.
#include "weft/core/profile.h"
#include "weft/core/scope.h"

int main() {
  weft::Scope model("model");
  weft::Scope layer("layers.0");
  weft::ProfileRange range("forward");
  return 0;
}
