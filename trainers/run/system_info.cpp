#include "trainers/run/system_info.h"

#include <fmt/core.h>
#include <google/protobuf/stubs/common.h>
#include <sched.h>
#include <sys/utsname.h>

#include <CLI/Version.hpp>
#include <algorithm>
#include <fstream>
#include <nlohmann/detail/macro_scope.hpp>
#include <sstream>

#include "ops/cpu/isa.h"
#include "ops/cpu/onednn_gemm.h"
#include "ops/cuda/cudnn/attention.h"
#include "ops/cuda/gemm/cublaslt.h"
#include "weft/core/device.h"
#include "weft/core/error.h"
#include "weft/core/memory.h"
#include "weft/core/parallel.h"
#include "weft/core/stream.h"

namespace weft::cli {

namespace {

std::string dotted(int major, int minor, int patch) { return fmt::format("{}.{}.{}", major, minor, patch); }

// The value behind the first line "key ... : value" of a /proc file.
std::string proc_value(const char* file, std::string_view key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    size_t colon = line.find(':');
    if (!line.starts_with(key) || colon == std::string::npos) continue;
    size_t start = line.find_first_not_of(" \t", colon + 1);
    return start == std::string::npos ? "" : line.substr(start);
  }
  return "";
}

void add_libraries(SystemInfo& info) {
  info.libraries = {
      {"oneDNN", cpu::onednn_version()},
      {"OpenMP", fmt::format("{}", _OPENMP)},
      {"Protocol Buffers", dotted(GOOGLE_PROTOBUF_VERSION / 1000000, GOOGLE_PROTOBUF_VERSION / 1000 % 1000,
                                  GOOGLE_PROTOBUF_VERSION % 1000)},
      {"fmt", dotted(FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100)},
      {"nlohmann-json", dotted(NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH)},
      {"CLI11", CLI11_VERSION},
  };
}

void add_cpu(SystemInfo& info) {
  info.cpu = proc_value("/proc/cpuinfo", "model name");
  std::istringstream flags(proc_value("/proc/cpuinfo", "flags"));
  for (std::string flag; flags >> flag;)
    for (const char* wanted : {"avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16"})
      if (flag == wanted) info.cpu_features.push_back(flag);
  info.isa = cpu::to_string(cpu::isa());
  for (cpu::Isa isa : {cpu::Isa::baseline, cpu::Isa::avx2, cpu::Isa::avx512})
    if (cpu::has_isa(isa)) info.isas.emplace_back(cpu::to_string(isa));
  info.multiplies_bf16 = cpu::multiplies_bf16();
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) info.cores = CPU_COUNT(&allowed);
  info.threads = num_threads();
}

std::string gpu_text(int index) {
  try {
    CudaDeviceInfo gpu = cuda_device_info(index);
    auto version = [](int number) { return fmt::format("{}.{}", number / 1000, number % 1000 / 10); };
    std::string text = fmt::format("cuda:{} {}, compute capability {}.{}, {:.1f} GiB", index, gpu.name, gpu.major,
                                   gpu.minor, static_cast<double>(gpu.memory_bytes) / 1073741824.0);
    if (gpu.runtime_version > 0)
      text += fmt::format(", driver for CUDA {}, runtime of CUDA {}", version(gpu.driver_version),
                          version(gpu.runtime_version));
    return text + (gpu.problem.empty() ? ", supported" : ", not usable: " + gpu.problem);
  } catch (const Error& error) {  // the others are still of interest
    return fmt::format("cuda:{}, not usable: {}", index, error.problem());
  }
}

}  // namespace

SystemInfo system_info() {
  SystemInfo info;
  info.version = WEFT_VERSION;
  info.build_type = WEFT_BUILD_TYPE;
  info.compiler = WEFT_COMPILER;
  info.sanitizers = WEFT_SANITIZERS;
  utsname names{};
  if (uname(&names) == 0) {
    info.host = names.nodename;
    info.os = fmt::format("{} {} {}", names.sysname, names.release, names.machine);
  }
  add_libraries(info);
  add_cpu(info);
  info.memory_bytes = limit_bytes(Device::cpu());
  info.memory_available_bytes = available_bytes(Device::cpu());
  info.devices = {to_string(Device::cpu())};
  for (int i = 0; i < num_cuda_devices(); ++i) info.devices.push_back(gpu_text(i));
  if (has_cuda_kernels() && num_cuda_devices() == 0) info.devices.push_back("no GPU: " + cuda_problem());
  return info;
}

std::vector<std::pair<std::string, std::string>> gpu_libraries() {
#if defined(WEFT_WITH_CUDA) && !defined(WEFT_CUDA_EMULATED)
  return {{"cuBLASLt", cuda::cublaslt_version()},
          {"cuDNN", cuda::cudnn_available() ? cuda::cudnn_version() : "missing (" + cuda::cudnn_problem() + ")"}};
#else
  return {};
#endif
}

}  // namespace weft::cli
