// weft doctor [--kernels]: build, libraries, instruction sets, devices, threads, memory, measured limits, kernel self-test.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "tools/bench/bench.h"
#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/command/self_test.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/run/session.h"
#include "trainers/run/system_info.h"
#include "weft/core/device.h"
#include "weft/core/stream.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

double gib(int64_t bytes) { return static_cast<double>(bytes) / 1073741824.0; }

struct Report {
  SystemInfo info;
  double f32_flops = 0, bf16_flops = 0, bandwidth = 0;  // per second, measured now
  std::vector<KernelCheck> kernels;                     // with --kernels
};

std::string json_text(const Report& report) {
  const SystemInfo& info = report.info;
  nlohmann::ordered_json libraries = nlohmann::ordered_json::object();
  for (const auto& [name, version] : info.libraries) libraries[name] = version;
  nlohmann::ordered_json out = {
      {"version", info.version},
      {"build_type", info.build_type},
      {"compiler", info.compiler},
      {"sanitizers", info.sanitizers},
      {"cuda_build", has_cuda_kernels()},
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
      {"memory_available_bytes", info.memory_available_bytes},
      {"measured",
       {{"f32_flops", report.f32_flops}, {"bf16_flops", report.bf16_flops}, {"memory_bytes_per_s", report.bandwidth}}}};
  for (const KernelCheck& c : report.kernels)
    out["kernels"].push_back({{"kernel", c.kernel},
                              {"isa", c.isa},
                              {"dtype", c.dtype},
                              {"error", c.error},
                              {"bound", c.bound},
                              {"passed", c.passed()}});
  return cli::json_text(out);
}

std::string text(const Report& report) {
  const SystemInfo& info = report.info;
  std::string out;
  auto row = [&](std::string_view name, const std::string& value) { out += fmt::format("{:<14}{}\n", name, value); };
  row("weft",
      fmt::format("{}, {} build{}{}", info.version, info.build_type, has_cuda_kernels() ? ", CUDA" : ", without CUDA",
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
  for (const std::string& device : info.devices) row(&device == info.devices.data() ? "devices" : "", device);
  row("threads", fmt::format("{} of {} cores", info.threads, info.cores));
  row("memory",
      fmt::format("{:.1f} GiB, {:.1f} GiB available", gib(info.memory_bytes), gib(info.memory_available_bytes)));
  row("measured", fmt::format("{:.0f} GFLOP/s f32, {:.0f} GFLOP/s bf16 (matrix products), {:.1f} GB/s (copy)",
                              report.f32_flops / 1e9, report.bf16_flops / 1e9, report.bandwidth / 1e9));
  for (const KernelCheck& c : report.kernels)
    row(c.passed() ? "ok" : "FAILED",
        fmt::format("{:<20}{:<10}{:<6}error {:.1e}, bound {:.1e}", c.kernel, c.isa, c.dtype, c.error, c.bound));
  return out;
}

}  // namespace

Action define_doctor(Arguments& app) {
  auto tests_kernels = std::make_shared<bool>(false);
  app.add_flag(
      "--kernels", *tests_kernels,
      "Compare the kernels of every instruction set of this machine with float64; exit code 4 if one is wrong");
  return [tests_kernels](Console& console, const Extensions&) {
    SystemInfo info = system_info();
    for (auto& library : gpu_libraries()) info.libraries.push_back(std::move(library));
    Report report{.info = std::move(info),
                  .f32_flops = train::measured_peak_flops(kF32),
                  .bf16_flops = train::measured_peak_flops(kBF16),
                  .bandwidth = bench::memory_bandwidth(),
                  .kernels = {}};
    if (*tests_kernels) report.kernels = kernel_self_test();
    console.result(console.is_json() ? json_text(report) : text(report));
    return std::ranges::all_of(report.kernels, &KernelCheck::passed) ? kSuccess : kCheckFailed;
  };
}

}  // namespace weft::cli
