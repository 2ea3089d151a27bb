// Runs another program, without a shell.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace weft::io {

struct ProcessLimits {
  double timeout_s = 60;
  std::function<bool()> is_stopping = {};  // asked about ten times a second
  double grace_s = 0;  // a program that is stopped gets SIGTERM first, and this time to end by itself
};

enum class ProcessEnd {
  exited,
  timed_out,
  stopped
};  // by itself, killed after `timeout_s`, ended because `is_stopping`

struct ProcessResult {
  ProcessEnd end = ProcessEnd::exited;
  int exit_code = 0;     // 128 + signal if it was killed by one
  std::string output;    // standard output
  std::string messages;  // standard error
};

// Finds the program arguments[0] on PATH, gives it `input` and waits for its end, within the limits. What the program
// started is killed with it. `environment`: NAME=value beside, or in place of, those of this process. Error if it cannot be started (`install_hint` is the fix then).
ProcessResult run_process(const std::vector<std::string>& arguments, const std::string& input,
                          const ProcessLimits& limits, const std::string& install_hint,
                          const std::vector<std::string>& environment = {});

}  // namespace weft::io
