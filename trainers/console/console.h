// What a command says: results on stdout, messages on stderr. Knows verbosity, colour and whether stderr is a terminal.
#pragma once

#include <string>
#include <string_view>

namespace weft::cli {

class LiveLines;

enum class Verbosity { quiet, normal, verbose };

// Texts are shown by data::show_utf8(), so that no name, prompt or sample can command a terminal; JSON has escapes of its own.
class Console {
 public:
  Console(Verbosity verbosity, bool is_json);

  void result(std::string_view text);   // on stdout
  void message(std::string_view line);  // on stderr; not with --quiet
  void detail(std::string_view line);   // on stderr; only with --verbose
  void error(std::string_view text);    // "error: text" on stderr, red on a terminal; always

  bool is_json() const { return is_json_; }  // results are one JSON document
  Verbosity verbosity() const { return verbosity_; }

  // Messages scroll above these lines while they are attached; null detaches.
  void attach(LiveLines* lines) { lines_ = lines; }

 private:
  void write_line(std::string_view line);

  Verbosity verbosity_;
  bool is_json_;
  LiveLines* lines_ = nullptr;
};

// A terminal that may be drawn on: a tty, TERM not "dumb", NO_COLOR not set.
bool is_rich_terminal(int fd);
int terminal_columns(int fd);  // 80 if unknown

// Writes all bytes to the file descriptor, also through interrupts; false if it cannot.
bool write_all(int fd, std::string_view text);

}  // namespace weft::cli
