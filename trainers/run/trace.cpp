#include "trainers/run/trace.h"

#include <fmt/format.h>

#include <filesystem>

#include "weft/io/files.h"
#include "weft/io/trace.h"

namespace weft::train {

void write_trace(const std::vector<ProfileSpan>& spans, const std::string& path) {
  constexpr int kCpu = 0, kGpu = 1;
  io::TraceWriter trace(0);
  trace.name_process("weft");
  trace.name_thread(kCpu, "CPU");
  for (const ProfileSpan& span : spans) {
    trace.span({.name = span.path,
                .category = "module",
                .begin_us = span.begin_us,
                .duration_us = span.duration_us,
                .thread = kCpu});
    if (span.device_duration_us <= 0) continue;
    trace.span({.name = span.path,
                .category = "device",
                .begin_us = span.device_begin_us,
                .duration_us = span.device_duration_us,
                .thread = kGpu});
  }
  trace.name_thread(kGpu, "GPU");
  io::make_folders(std::filesystem::path(path).parent_path().string());
  trace.write(path);
}

std::string share_table(const std::vector<ProfileSpan>& spans) {
  double all = 0, left = 0;
  const std::vector<SelfTime> times = self_times(spans);
  for (const SelfTime& time : times) all += time.us;
  std::string table = fmt::format("{:>7} {:>10} {:>6}  {}\n", "share", "ms", "spans", "what");
  int64_t num_left = 0;
  auto add = [&](double us, int64_t count, const std::string& name) {
    table += fmt::format("{:>6.1f}% {:>10.3f} {:>6}  {}\n", all > 0 ? 100 * us / all : 0, us / 1e3, count, name);
  };
  for (const SelfTime& time : times) {
    if (time.us >= 1e-3 * all) add(time.us, time.count, time.name);
    else left += time.us, num_left += time.count;
  }
  add(left, num_left, "all others");
  return table;
}

GradientMarks::GradientMarks(const Module& model) {
  for (const NamedParam& p : model.params())
    hooks_.push_back(p.param->var().on_grad([name = "gradient of " + p.name](Tensor&) { ProfileRange mark(name); }));
}
GradientMarks::~GradientMarks() {
  for (GradHook& hook : hooks_) hook.remove();
}

}  // namespace weft::train
