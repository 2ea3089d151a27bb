#include "trainers/run/environment.h"

#include <array>
#include <cstdio>
#include <ctime>

#include "trainers/config/config.h"
#include "trainers/run/state.pb.h"
#include "trainers/run/system_info.h"

namespace weft::train {

namespace {

// Output of a program without its last line end; empty if it fails.
std::string output_of(const char* command) {
  std::string text;
  FILE* pipe = popen(command, "r");
  if (!pipe) return text;
  std::array<char, 256> buffer;
  while (size_t count = fread(buffer.data(), 1, buffer.size(), pipe)) text.append(buffer.data(), count);
  if (pclose(pipe) != 0) return {};
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

}  // namespace

const std::string& working_commit() {
  static const std::string& commit = *new std::string([] {
    const std::string head = output_of("git rev-parse HEAD 2>/dev/null");
    if (head.empty()) return head;
    return head + (output_of("git status --porcelain 2>/dev/null").empty() ? "" : "-dirty");
  }());
  return commit;
}

std::string environment_text(int64_t seed) {
  cli::SystemInfo info = cli::system_info();
  Environment e;
  e.set_version(info.version);
  e.set_compiler(info.compiler);
  e.set_build(info.build_type);
  e.set_host(info.host);
  e.set_processor(info.cpu);
  e.set_instruction_set(info.isa);
  e.set_threads(info.threads);
  e.set_memory_bytes(info.memory_bytes);
  if (!working_commit().empty()) e.set_git(working_commit());
  e.set_commit(build_commit());
  e.set_seed(seed);
  char stamp[32];
  std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &utc);
  e.set_started(stamp);
  return config::to_text(e);
}

}  // namespace weft::train
