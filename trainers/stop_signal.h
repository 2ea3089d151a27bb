// SIGTERM and SIGINT ask for a stop at the end of the step; a second one ends the process at once.
#pragma once

namespace weft::train {

class StopSignal {
 public:
  StopSignal();
  ~StopSignal();  // restores what was there
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  static bool was_raised();
  static const char* name();  // "SIGTERM"; empty if none
};

}  // namespace weft::train
