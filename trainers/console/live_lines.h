// Lines at the bottom of a terminal that are redrawn in place, at most ten times a second, while log lines scroll above
// them. Off a terminal nothing is drawn and log lines are simply written.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace weft::cli {

struct LiveOptions {
  std::function<void(std::string_view)> write;  // bytes for the terminal or log
  bool is_terminal = false;
  std::function<int()> columns = [] { return 80; };
  std::function<double()> now_s;  // monotonic clock
};

LiveOptions live_options(int fd);  // of a file descriptor, with the real clock; -1: nothing is shown

class LiveLines {
 public:
  explicit LiveLines(LiveOptions options) : options_(std::move(options)) {}
  ~LiveLines() { finish(); }
  LiveLines(const LiveLines&) = delete;
  LiveLines& operator=(const LiveLines&) = delete;

  // Replaces the lines; each is cut to the width of the terminal. Too soon after the last drawing they wait for the next
  // call of anything here.
  void draw(std::vector<std::string> lines);
  void log(std::string_view line);  // one or more whole lines above
  void clear();                     // takes the lines away until the next draw
  void finish();                    // leaves the last lines standing and ends below them

  bool is_terminal() const { return options_.is_terminal; }

  // For a signal handler that writes a line of its own to the terminal: how many lines stand there. They count as erased
  // from here on, so the handler has to erase them.
  static int interrupt();

 private:
  std::string erase() const;  // the bytes that take the drawn lines away
  void redraw(std::string before);

  LiveOptions options_;
  std::vector<std::string> lines_;  // newest, perhaps not drawn yet
  size_t num_drawn_ = 0;            // lines standing on the terminal; the cursor is at the end of the last
  int num_interrupts_ = 0;          // of the process, when they were drawn
  double drawn_at_s_ = -1e9;
};

}  // namespace weft::cli
