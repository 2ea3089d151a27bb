// weft doctor: build, libraries, instruction sets, devices, threads, memory.
#include <fmt/format.h>

#include <CLI/App.hpp>
#include <nlohmann/json.hpp>

#include "trainers/commands/command.h"
#include "trainers/config_error.h"
#include "trainers/console.h"
#include "trainers/system_info.h"
#include "weft/core/device.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

double gib(int64_t bytes) { return static_cast<double>(bytes) / 1073741824.0; }

std::string json_text(const SystemInfo& info) {
  nlohmann::ordered_json libraries = nlohmann::ordered_json::object();
  for (const auto& [name, version] : info.libraries) libraries[name] = version;
  nlohmann::ordered_json out = {{"version", info.version},
                                {"build_type", info.build_type},
                                {"compiler", info.compiler},
                                {"sanitizers", info.sanitizers},
                                {"cuda_build", kCuda},
                                {"libraries", libraries},
                                {"host", info.host},
                                {"os", info.os},
                                {"cpu", info.cpu},
                                {"cpu_features", info.cpu_features},
                                {"isa", info.isa},
                                {"isas", info.isas},
                                {"devices", info.devices},
                                {"cores", info.cores},
                                {"threads", info.threads},
                                {"memory_bytes", info.memory_bytes},
                                {"memory_available_bytes", info.memory_available_bytes}};
  return out.dump(2) + "\n";
}

std::string text(const SystemInfo& info) {
  std::string out;
  auto row = [&](std::string_view name, const std::string& value) { out += fmt::format("{:<14}{}\n", name, value); };
  row("weft", fmt::format("{}, {} build{}{}", info.version, info.build_type, kCuda ? ", CUDA" : ", without CUDA",
                          info.sanitizers.empty() ? "" : ", sanitizers " + info.sanitizers));
  row("compiler", info.compiler);
  std::string libraries;
  for (const auto& [name, version] : info.libraries)
    libraries += fmt::format("{}{} {}", libraries.empty() ? "" : ", ", name, version);
  row("libraries", libraries);
  row("host", info.host + ", " + info.os);
  row("cpu", info.cpu);
  row("features", config::join(info.cpu_features, " "));
  row("kernels", fmt::format("{} (this CPU runs {})", info.isa, config::join(info.isas, ", ")));
  row("devices", config::join(info.devices, ", "));
  row("threads", fmt::format("{} of {} cores", info.threads, info.cores));
  row("memory",
      fmt::format("{:.1f} GiB, {:.1f} GiB available", gib(info.memory_bytes), gib(info.memory_available_bytes)));
  return out;
}

}  // namespace

Action define_doctor(CLI::App&) {
  return [](Console& console, const Extensions&) {
    SystemInfo info = system_info();
    console.result(console.is_json() ? json_text(info) : text(info));
    return kSuccess;
  };
}

}  // namespace weft::cli
