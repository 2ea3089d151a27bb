// Who is told of spans as they begin and end: the profile that this thread takes, and tools that read NVTX ranges.
#pragma once

#include <string>

namespace weft {

class ScopeWatch {
 public:
  virtual ~ScopeWatch() = default;
  virtual void begin(const std::string& path) = 0;
  virtual void end() = 0;
};

// Of this thread, null for none. Set while no span is open, or between two of them at one depth.
ScopeWatch* thread_watch();
void set_thread_watch(ScopeWatch* watch);

// Tells the watches there are; returns whether there were any.
bool begin_span(const std::string& path);
void end_span();

namespace cuda {
ScopeWatch* nvtx_watch();  // null if no tool reads the ranges of this process
}

}  // namespace weft
