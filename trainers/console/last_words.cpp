#include "trainers/console/last_words.h"

#include <unistd.h>

namespace weft::train {

namespace {

constexpr unsigned kMoment_s = 3;

void on_signal(int) { ::alarm(kMoment_s); }

}  // namespace

LastWords::LastWords() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, &before_);
}

LastWords::~LastWords() { sigaction(SIGTERM, &before_, nullptr); }

}  // namespace weft::train
