#include "trainers/console/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "trainers/console/live_lines.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"

namespace weft::cli {

bool is_rich_terminal(int fd) {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  bool is_dumb = !term || std::string_view(term) == "dumb";
  return isatty(fd) == 1 && !is_dumb && !(no_color && *no_color);
}

int terminal_columns(int fd) {
  winsize size{};
  return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

bool write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    text.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

Console::Console(Verbosity verbosity, bool is_json) : verbosity_(verbosity), is_json_(is_json) {}

void Console::result(std::string_view text) {
  if (lines_) lines_->clear();
  WEFT_CHECK(write_all(STDOUT_FILENO, is_json_ ? std::string(text) : data::show_utf8(text)),
             str("cannot write the result to standard output: ", std::strerror(errno)),
             "make room there or name another place");
}

void Console::write_line(std::string_view line) {
  if (lines_) lines_->log(line);
  else write_all(STDERR_FILENO, std::string(line) + "\n");  // nobody is left to tell if stderr is gone
}

void Console::message(std::string_view line) {
  if (verbosity_ != Verbosity::quiet) write_line(data::show_utf8(line));
}

void Console::detail(std::string_view line) {
  if (verbosity_ == Verbosity::verbose) write_line(data::show_utf8(line));
}

void Console::error(std::string_view text) {
  const char* label = is_rich_terminal(STDERR_FILENO) ? "\x1b[1;31merror:\x1b[0m " : "error: ";
  write_line(label + data::show_utf8(text));
}

}  // namespace weft::cli
