// SIGTERM, SIGINT, SIGHUP and SIGXCPU ask for a stop: the run saves a checkpoint at the end of the step and exits with code 3. The
// first one is answered on stderr at once, with what is being waited for. A second one ends the process at once, as the
// signal does by itself; within 0.3 s it counts as the first one, which launchers like to deliver twice. SIGHUP stays ignored where it
// is (nohup). Ranks that are threads of one process have one each: the first of them listens, the last one to go ends that, and one that
// answers is enough.
#pragma once

namespace weft::train {

struct Stopped {};  // thrown where a signal breaks work off

class StopSignal {
 public:
  explicit StopSignal(bool answers);  // without: silent
  ~StopSignal();                      // the last one restores what was there
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  static bool was_raised();
  static const char* name();  // "SIGTERM"; empty if none

  // What the answer says from here on: a text that lives as long as the program, such as "finishing the step".
  static void waits_for(const char* text);
};

}  // namespace weft::train
