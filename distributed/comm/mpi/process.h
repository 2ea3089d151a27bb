// Processes of this host, so that a rank that waits sees at once whether another one still lives.
#pragma once

#include <cstdint>
#include <string>

namespace weft::dist {

struct Process {
  char host[64] = {};
  int32_t id = 0;
  uint64_t started = 0;  // in the ticks of the system's clock: an id may be used again
};

enum class Life { unknown, runs, stopped, gone };

Process this_process();
// Unknown for processes of other hosts and where there is no /proc.
Life life_of(const Process& process, const Process& self);
std::string to_string(const Process& process);  // "on HOST (process 77)"

}  // namespace weft::dist
