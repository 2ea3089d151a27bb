#include "trainers/console/standard_streams.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <initializer_list>

namespace weft::cli {

void open_standard_streams() {
  for (int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(stream, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest free number is this one, as those below it are open. It stays open in child processes too.
    if (::open("/dev/null", O_RDWR) != stream) std::_Exit(1);  // without a place for messages there is nobody to tell
  }
}

}  // namespace weft::cli
