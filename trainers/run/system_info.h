// What this build and this machine are: for `weft doctor` and the record of a run.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace weft::cli {

struct SystemInfo {
  std::string version, build_type, compiler, sanitizers;       // sanitizers: empty for none
  std::vector<std::pair<std::string, std::string>> libraries;  // name, version
  std::string host, os, cpu;
  std::vector<std::string> cpu_features;  // of those that matter for speed
  std::string isa;                        // of the kernels chosen at start
  std::vector<std::string> isas;          // that this build has and this CPU runs
  bool multiplies_bf16 = false;           // kernels multiply bf16 by the CPU's instructions for it
  std::vector<std::string> devices;       // the CPU, every GPU with its memory and versions; why there is none
  int cores = 0;                          // this process may use
  int threads = 0;
  int64_t memory_bytes = 0, memory_available_bytes = 0;  // of the machine, or of the container's limit if lower
};

SystemInfo system_info();

// Versions of what is called for GPUs, or why it is missing; empty in a build without CUDA. Not in system_info(): this opens cuDNN.
std::vector<std::pair<std::string, std::string>> gpu_libraries();

}  // namespace weft::cli
