#include "distributed/comm/mpi/process.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include "distributed/comm/flight_record.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {

struct Stat {
  char state = 0;  // 0: there is no such process
  uint64_t started = 0;
};

// The third field of /proc/ID/stat is the state, the 22nd the time of the start. The second, the name, may hold blanks and brackets.
Stat stat_of(int32_t id) {
  std::ifstream file(str("/proc/", id, "/stat"));
  std::string text;
  if (!std::getline(file, text)) return {};
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return {};
  std::istringstream fields(text.substr(name_end + 1));
  Stat stat;
  fields >> stat.state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  fields >> stat.started;
  return stat;
}

}  // namespace

Process this_process() {
  Process process;
  const std::string host = host_name();
  std::copy_n(host.begin(), std::min(host.size(), sizeof process.host - 1), process.host);
  process.id = static_cast<int32_t>(::getpid());
  process.started = stat_of(process.id).started;
  return process;
}

Life life_of(const Process& process, const Process& self) {
  if (std::strcmp(process.host, self.host) != 0 || self.started == 0 || process.started == 0) return Life::unknown;
  const Stat stat = stat_of(process.id);
  if (stat.state == 0 || stat.started != process.started || stat.state == 'Z' || stat.state == 'X') return Life::gone;
  return stat.state == 'T' || stat.state == 't' ? Life::stopped : Life::runs;
}

std::string to_string(const Process& process) { return str("on ", process.host, " (process ", process.id, ")"); }

}  // namespace weft::dist
