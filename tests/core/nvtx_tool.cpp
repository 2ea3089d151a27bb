// What a profiler is to NVTX: a library that takes the place of pushing and popping ranges. This one prints them.
#include <nvtx3/nvToolsExt.h>

#include <cstdio>

namespace {

int push(const char* name) {
  std::printf("push %s\n", name);
  std::fflush(stdout);
  return 0;
}
int pop() {
  std::puts("pop");
  std::fflush(stdout);
  return 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t find_table) {
  const auto* callbacks = static_cast<const NvtxExportTableCallbacks*>(find_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned int size = 0;
  if (!callbacks || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &table, &size)) return 0;
  if (size <= NVTX_CBID_CORE_RangePop) return 0;
  *table[NVTX_CBID_CORE_RangePushA] = reinterpret_cast<NvtxFunctionPointer>(push);
  *table[NVTX_CBID_CORE_RangePop] = reinterpret_cast<NvtxFunctionPointer>(pop);
  return 1;
}
