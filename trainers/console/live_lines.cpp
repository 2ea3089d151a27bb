#include "trainers/console/live_lines.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "trainers/console/console.h"

namespace weft::cli {

namespace {

constexpr double kRedraw_s = 0.1;

std::atomic<int> standing{0}, interrupts{0};  // lines on the terminal; how often they were taken away

// Cuts to `columns` characters, not bytes, and one less: a full last column makes some terminals wrap.
std::string cut(const std::string& line, int columns) {
  int room = std::max(columns - 1, 1);
  for (size_t i = 0; i < line.size(); ++i) {
    bool starts_character = (static_cast<unsigned char>(line[i]) & 0xC0) != 0x80;
    if (starts_character && room-- == 0) return line.substr(0, i);
  }
  return line;
}

}  // namespace

LiveOptions live_options(int fd) {
  LiveOptions out;
  out.write = [fd](std::string_view text) {
    if (fd >= 0) write_all(fd, text);
  };
  out.is_terminal = fd >= 0 && is_rich_terminal(fd);
  out.columns = [fd] { return terminal_columns(fd); };
  out.now_s = [] { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); };
  return out;
}

std::string LiveLines::erase() const {
  if (num_drawn_ == 0 || num_interrupts_ != interrupts) return "";
  std::string out = "\r\x1b[2K";
  for (size_t i = 1; i < num_drawn_; ++i) out += "\x1b[1A\x1b[2K";
  return out;
}

void LiveLines::redraw(std::string before) {
  int columns = options_.columns();
  std::string out = std::move(before);
  for (size_t i = 0; i < lines_.size(); ++i) {
    if (i > 0) out += '\n';
    out += cut(lines_[i], columns);
  }
  num_drawn_ = lines_.size();
  num_interrupts_ = interrupts;
  standing = static_cast<int>(num_drawn_);
  drawn_at_s_ = options_.now_s();
  options_.write(out);  // in one piece, so that the terminal never shows half of it
}

void LiveLines::draw(std::vector<std::string> lines) {
  lines_ = std::move(lines);
  if (!options_.is_terminal || options_.now_s() - drawn_at_s_ < kRedraw_s) return;
  redraw(erase());
}

void LiveLines::log(std::string_view line) {
  std::string text(line);
  if (!text.ends_with('\n')) text += '\n';
  if (!options_.is_terminal || lines_.empty()) options_.write(text);
  else redraw(erase() + text);
}

void LiveLines::clear() {
  if (num_drawn_ > 0) options_.write(erase());
  num_drawn_ = 0;
  standing = 0;
  lines_.clear();
}

void LiveLines::finish() {
  if (!options_.is_terminal || lines_.empty()) return;
  redraw(erase());
  options_.write("\n");
  num_drawn_ = 0;
  standing = 0;
  lines_.clear();
}

int LiveLines::interrupt() {
  ++interrupts;
  return standing.exchange(0);
}

}  // namespace weft::cli
