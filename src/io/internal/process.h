// Runs another program, without a shell.
#pragma once

#include <string>
#include <vector>

namespace weft::io::internal {

struct ProcessResult {
  int exit_code = 0;     // 128 + signal if it was killed by one
  std::string output;    // standard output
  std::string messages;  // standard error
};

// Finds the program arguments[0] on PATH, gives it `input` and waits for its end. Error if it cannot be started
// (`install_hint` is the fix then), or has not ended after `timeout_s`.
ProcessResult run_process(const std::vector<std::string>& arguments, const std::string& input, int timeout_s,
                          const std::string& install_hint);

}  // namespace weft::io::internal
