#include "trainers/stop_signal.h"

#include <csignal>

namespace weft::train {

namespace {

volatile std::sig_atomic_t raised = 0;
struct sigaction old_term, old_int;

void on_signal(int signal) {
  if (raised) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
  raised = signal;
}

}  // namespace

StopSignal::StopSignal() {
  raised = 0;
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, &old_term);
  sigaction(SIGINT, &action, &old_int);
}

StopSignal::~StopSignal() {
  sigaction(SIGTERM, &old_term, nullptr);
  sigaction(SIGINT, &old_int, nullptr);
}

bool StopSignal::was_raised() { return raised != 0; }
const char* StopSignal::name() { return raised == SIGTERM ? "SIGTERM" : raised == SIGINT ? "SIGINT" : ""; }

}  // namespace weft::train
