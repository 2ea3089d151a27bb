// Available memory from /proc/meminfo, the control groups of the process (versions 1 and 2) and its limits.
#include "weft/core/memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include "src/core/rank_memory.h"
#include "weft/core/allocator.h"
#include "weft/core/error.h"
#include "weft/core/stream.h"

namespace weft {

namespace {

// The number behind a word at the start of a line: "MemAvailable:  123 kB", "inactive_file 4096".
std::optional<int64_t> number_after(const std::string& file, const std::string& word) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(word)) continue;
    std::istringstream rest(line.substr(word.size()));
    int64_t number = 0;
    if (rest >> number) return number;
  }
  return std::nullopt;
}

// The only number in a file; nothing for "max" or no file.
std::optional<int64_t> number_in(const std::string& file) {
  std::ifstream in(file);
  int64_t number = 0;
  return in >> number ? std::optional(number) : std::nullopt;
}

struct Left {
  int64_t limit = std::numeric_limits<int64_t>::max(), available = limit;

  void lower(int64_t to_limit, int64_t used) {
    limit = std::min(limit, to_limit);
    available = std::min(available, std::max<int64_t>(to_limit - used, 0));
  }
};

// A control group and those above it; each may have a limit.
void add_groups(Left& left, const std::string& root, std::string path, const char* limit_file, const char* used_file,
                const char* cache_word) {
  for (;;) {
    const std::string folder = root + path + "/";
    auto limit = number_in(folder + limit_file), used = number_in(folder + used_file);
    if (limit && used) left.lower(*limit, *used - number_after(folder + "memory.stat", cache_word).value_or(0));
    if (path.empty()) return;
    path.resize(path.starts_with('/') ? path.rfind('/') : 0);
  }
}

Left cpu_left() {
  Left left;
  int64_t total = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  int64_t available = number_after("/proc/meminfo", "MemAvailable:").value_or(total / 1024) * 1024;
  left.lower(total, total - available);
  std::ifstream groups("/proc/self/cgroup");  // "0::/a/b" (version 2), "4:memory:/a/b" (version 1)
  for (std::string line; std::getline(groups, line);) {
    const size_t path = line.rfind(':');
    if (path == std::string::npos || line.back() == '/') line.resize(std::min(line.size(), path + 1));
    const std::string of_group = line.substr(path + 1);
    if (line.starts_with("0::"))
      add_groups(left, "/sys/fs/cgroup", of_group, "memory.max", "memory.current", "inactive_file");
    else if (line.find(":memory:") != std::string::npos)
      add_groups(left, "/sys/fs/cgroup/memory", of_group, "memory.limit_in_bytes", "memory.usage_in_bytes",
                 "total_inactive_file");
  }
  rlimit address_space{};
  const auto pages = number_in("/proc/self/statm");
  if (getrlimit(RLIMIT_AS, &address_space) == 0 && address_space.rlim_cur != RLIM_INFINITY && pages)
    left.lower(static_cast<int64_t>(address_space.rlim_cur), *pages * sysconf(_SC_PAGESIZE));
  return left;
}

}  // namespace

int64_t available_bytes(Device device) {
  if (device.is_cuda()) return cuda_device_info(device.index).free_bytes;
  return cpu_left().available;
}

MemoryLimit::MemoryLimit(Device device, int64_t bytes)
    : is_of_gpu_(device.is_cuda()), outer_bytes_(memory_limit(is_of_gpu_)) {
  WEFT_CHECK(bytes > 0, str("memory limit: ", bytes, " bytes"), "use at least one");
  memory_limit(is_of_gpu_) = bytes;
}
MemoryLimit::~MemoryLimit() { memory_limit(is_of_gpu_) = outer_bytes_; }

int64_t limit_bytes(Device device) { return device.is_cuda() ? memory_bytes(device) : cpu_left().limit; }

}  // namespace weft
