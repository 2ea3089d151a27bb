// The step line and bar: texts, the mean loss, the redrawing on a real pseudo-terminal, plain lines elsewhere.
#include "trainers/console/progress.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <sstream>

#include "trainers/console/console.h"
#include "trainers/console/stop_signal.h"

namespace weft::cli {
namespace {

StepStatus example() {
  StepStatus s;
  s.step = 1240;
  s.steps = 4768;
  s.loss = 3.2184;
  s.bits_per_byte = 1.012;
  s.lr = 2e-2;
  s.grad_norm = 0.41;
  s.tokens_per_s = 1.92e6;
  s.mfu = 0.461;
  s.memory_bytes = static_cast<int64_t>(30.9 * 1073741824.0);
  s.eta_s = 958;
  s.val = 3.2417;
  s.val_step = 1000;
  s.best_val = 3.2417;
  s.checkpoint_step = 1000;
  s.num_skipped = 1;
  return s;
}

TEST(Progress, WritesTheStepLineAndBar) {
  EXPECT_EQ(step_line(example()),
            "step  1240/4768  26.0%  loss 3.2184  bpb 1.012  lr 2.00e-02  gn 0.41  1.92 Mtok/s  MFU 46.1%  mem 30.9 "
            "GiB  ETA 0:15:58");
  EXPECT_EQ(bar_line(example()),
            "[##########------------------------------]  val 3.2417 @1000  best 3.2417  ckpt @1000  skipped 1");
}

TEST(Progress, WritesThePlainLineWithTheSameFields) {
  EXPECT_EQ(plain_line(example()),
            "step=1240 steps=4768 percent=26.0 loss=3.2184 bpb=1.012 lr=2.00e-02 gn=0.41 tokens_per_s=1920000 mfu=46.1 "
            "mem_gib=30.9 eta=0:15:58 val=3.2417 val_step=1000 best=3.2417 ckpt_step=1000 skipped=1");
}

TEST(Progress, LeavesOutWhatIsNotKnown) {
  StepStatus s;
  s.step = 7;
  s.steps = 1000;
  s.loss = 2;
  EXPECT_EQ(step_line(s), "step     7/1000  0.7%  loss 2.0000");
  EXPECT_EQ(bar_line(s), "[" + std::string(40, '-') + "]");
  EXPECT_EQ(plain_line(s), "step=7 steps=1000 percent=0.7 loss=2.0000 skipped=0");
}

TEST(Progress, WritesDurationsAndRates) {
  EXPECT_EQ(duration_text(0), "0:00:00");
  EXPECT_EQ(duration_text(59.6), "0:01:00");
  EXPECT_EQ(duration_text(90061), "25:01:01");
  EXPECT_EQ(duration_text(1e300 * 1e300), "?");
  EXPECT_EQ(rate_text(950), "950 tok/s");
  EXPECT_EQ(rate_text(15300), "15.3 ktok/s");
}

TEST(StepClock, TakesTheMedianOfTheLast50WithoutTheFirst10) {
  StepClock clock;
  for (int i = 0; i < 10; ++i) clock.add(100);
  EXPECT_FALSE(clock.median_s().has_value());
  clock.add(2);
  EXPECT_EQ(clock.median_s(), 2);
  for (int i = 0; i < 25; ++i) clock.add(1);
  EXPECT_EQ(clock.median_s(), 1);
  for (int i = 0; i < 50; ++i) clock.add(3);
  EXPECT_EQ(clock.median_s(), 3);
}

struct Recorder {
  std::string text;
  double now = 0;
  LiveOptions options(bool is_terminal) {
    LiveOptions out;
    out.write = [this](std::string_view more) { text += more; };
    out.is_terminal = is_terminal;
    out.now_s = [this] { return now; };
    return out;
  }
};

TEST(Progress, OffATerminalWritesOneLineEveryNStepsWithTheMeanLoss) {
  Recorder recorder;
  Progress progress(recorder.options(false), 2);
  StepStatus s;
  s.steps = 5;
  for (s.step = 1; s.step <= 5; ++s.step) {
    s.loss = static_cast<double>(s.step);
    progress.update(s);
  }
  progress.log("done");
  progress.finish();
  std::istringstream lines(recorder.text);
  std::vector<std::string> all;
  for (std::string line; std::getline(lines, line);) all.push_back(line.substr(0, line.find(" skipped")));
  EXPECT_EQ(all, (std::vector<std::string>{"step=2 steps=5 percent=40.0 loss=1.5000",
                                           "step=4 steps=5 percent=80.0 loss=3.5000",
                                           "step=5 steps=5 percent=100.0 loss=5.0000", "done"}));
}

TEST(Progress, RedrawsAtMostTenTimesASecond) {
  Recorder recorder;
  LiveLines lines(recorder.options(true));
  int num_writes = 0;
  for (int ms = 0; ms < 1000; ++ms) {
    recorder.now = ms * 1e-3;
    recorder.text.clear();
    lines.draw({std::to_string(ms)});
    num_writes += !recorder.text.empty();
  }
  EXPECT_GE(num_writes, 9);
  EXPECT_LE(num_writes, 10);
}

// Enough of a terminal to see what stands on the screen: text, CR, LF, erase line, cursor up.
class Screen {
 public:
  void feed(const std::string& bytes) {
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (bytes[i] == '\r') column_ = 0;
      else if (bytes[i] == '\n') line(++row_);
      else if (bytes.compare(i, 4, "\x1b[2K") == 0) line(row_).clear(), i += 3;
      else if (bytes.compare(i, 4, "\x1b[1A") == 0) --row_, i += 3;
      else put(bytes[i]);
    }
  }
  std::vector<std::string> lines() const { return lines_; }

 private:
  std::string& line(size_t row) {
    if (lines_.size() <= row) lines_.resize(row + 1);
    return lines_[row];
  }
  void put(char c) {
    EXPECT_NE(c, '\x1b') << "an escape sequence that no one expects";
    std::string& text = line(row_);
    if (text.size() <= column_) text.resize(column_ + 1, ' ');
    text[column_++] = c;
  }
  std::vector<std::string> lines_;
  size_t row_ = 0, column_ = 0;
};

// A pseudo-terminal; what was written to the terminal's end is read at the other.
class Pty {
 public:
  explicit Pty(unsigned short columns) {
    winsize size{24, columns, 0, 0};
    if (openpty(&master_, &terminal_, nullptr, nullptr, &size) != 0) throw std::runtime_error("no pseudo-terminal");
    fcntl(master_, F_SETFL, O_NONBLOCK);
  }
  ~Pty() {
    close(master_);
    close(terminal_);
  }
  int terminal() const { return terminal_; }
  void show_on(Screen& screen) {
    char buffer[4096];
    for (ssize_t n; (n = read(master_, buffer, sizeof buffer)) > 0;)
      screen.feed(std::string(buffer, static_cast<size_t>(n)));
  }

 private:
  int master_ = -1, terminal_ = -1;
};

TEST(Progress, LogLinesScrollAboveTheBarOnATerminal) {
  setenv("TERM", "xterm", 1);
  unsetenv("NO_COLOR");
  Pty pty(80);
  LiveOptions options = live_options(pty.terminal());
  double now = 0;
  options.now_s = [&] { return now += 1; };
  ASSERT_TRUE(options.is_terminal);
  Screen screen;
  {
    Progress progress(options, 1);
    StepStatus s = example();
    s.steps = 30;
    for (s.step = 1; s.step <= 30; ++s.step) {
      progress.update(s);
      if (s.step % 10 == 0) progress.log("saved a checkpoint at step " + std::to_string(s.step));
      pty.show_on(screen);
    }
    progress.finish();
    progress.log("after the bar");
    pty.show_on(screen);
  }
  std::vector<std::string> seen = screen.lines();
  while (!seen.empty() && seen.back().empty()) seen.pop_back();
  ASSERT_EQ(seen.size(), 6u);
  EXPECT_EQ(seen[0], "saved a checkpoint at step 10");
  EXPECT_EQ(seen[1], "saved a checkpoint at step 20");
  EXPECT_EQ(seen[2], "saved a checkpoint at step 30");
  EXPECT_TRUE(seen[3].starts_with("step  30/30  100.0%  loss 3.2184"));
  EXPECT_TRUE(seen[4].starts_with("[" + std::string(40, '#') + "]"));
  EXPECT_EQ(seen[5], "after the bar");
  for (const std::string& line : seen) EXPECT_LT(line.size(), 80u) << "a wrapped line breaks the redrawing";
}

TEST(Progress, TheAnswerToAStopSignalStandsAboveTheBar) {
  setenv("TERM", "xterm", 1);
  unsetenv("NO_COLOR");
  Pty pty(120);
  LiveOptions options = live_options(pty.terminal());
  double now = 0;
  options.now_s = [&] { return now += 1; };
  Screen screen;
  const int old_stderr = dup(STDERR_FILENO);
  dup2(pty.terminal(), STDERR_FILENO);
  {
    train::StopSignal signals(true);
    Progress progress(options, 1);
    StepStatus s = example();
    s.steps = 3;
    train::StopSignal::waits_for("finishing the step");
    for (s.step = 1; s.step <= 3; ++s.step) {
      progress.update(s);
      if (s.step == 2) raise(SIGTERM), raise(SIGTERM);  // twice within 0.3 s is once
      pty.show_on(screen);
    }
    progress.finish();
    pty.show_on(screen);
    EXPECT_TRUE(train::StopSignal::was_raised());
    EXPECT_STREQ(train::StopSignal::name(), "SIGTERM");
  }
  dup2(old_stderr, STDERR_FILENO);
  close(old_stderr);
  std::vector<std::string> seen = screen.lines();
  while (!seen.empty() && seen.back().empty()) seen.pop_back();
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen[0], "SIGTERM: finishing the step; a second signal ends the run at once");
  EXPECT_TRUE(seen[1].starts_with("step  3/3  100.0%")) << seen[1];
}

TEST(Progress, CutsByCharactersNotBytes) {
  Recorder recorder;
  LiveOptions options = recorder.options(true);
  options.columns = [] { return 5; };
  LiveLines lines(options);
  lines.draw({"\xc3\xa4\xc3\xb6\xc3\xbc\xc3\x9f\xc3\xa4\xc3\xb6"});
  EXPECT_EQ(recorder.text, "\xc3\xa4\xc3\xb6\xc3\xbc\xc3\x9f");
}

TEST(Console, DrawsOnlyOnTerminalsThatWantIt) {
  Pty pty(80);
  setenv("TERM", "xterm", 1);
  unsetenv("NO_COLOR");
  EXPECT_TRUE(is_rich_terminal(pty.terminal()));
  setenv("NO_COLOR", "1", 1);
  EXPECT_FALSE(is_rich_terminal(pty.terminal()));
  unsetenv("NO_COLOR");
  setenv("TERM", "dumb", 1);
  EXPECT_FALSE(is_rich_terminal(pty.terminal()));
  setenv("TERM", "xterm", 1);
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  EXPECT_FALSE(is_rich_terminal(pipes[1]));
  close(pipes[0]);
  close(pipes[1]);
  EXPECT_EQ(terminal_columns(pty.terminal()), 80);
}

}  // namespace
}  // namespace weft::cli
