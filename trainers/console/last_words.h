// When a process of mpirun has died, mpirun sends SIGTERM to the others. What they know of it is worth a moment: while this object exists, SIGTERM
// ends the process a few seconds after it has come, by SIGALRM, unless the process comes to an end of its own before. Commands that save what
// they have done answer it otherwise (stop_signal.h).
#pragma once

#include <csignal>

namespace weft::train {

class LastWords {
 public:
  LastWords();
  ~LastWords();  // restores what was there
  LastWords(const LastWords&) = delete;
  LastWords& operator=(const LastWords&) = delete;

 private:
  struct sigaction before_ {};
};

}  // namespace weft::train
