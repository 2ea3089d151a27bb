#include "src/io/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "src/io/internal/posix.h"
#include "weft/core/error.h"

extern char** environ;

namespace weft::io {

namespace {

using internal::close_quietly;
using internal::fail_errno;
using Clock = std::chrono::steady_clock;

struct Descriptor {
  int value = -1;
  Descriptor() = default;
  explicit Descriptor(int v) : value(v) {}
  Descriptor(Descriptor&& other) noexcept : value(std::exchange(other.value, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    close_quietly(std::exchange(value, std::exchange(other.value, -1)));
    return *this;
  }
  ~Descriptor() { close_quietly(value); }
  void close() { close_quietly(std::exchange(value, -1)); }
};

// Two connected ends. A socket, so that writing to a program that has ended is an error code instead of SIGPIPE.
std::pair<Descriptor, Descriptor> make_channel() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    fail_errno("open a channel for", "a process", errno);
  return {Descriptor(ends[0]), Descriptor(ends[1])};
}

// A process group of its own: it can be killed with all that it started, and Ctrl-C on the terminal is ours alone. Signals that
// this process ignores end the program as usual.
pid_t start(const std::vector<std::string>& arguments, const std::vector<std::string>& environment, int in, int out,
            int messages, const std::string& install_hint) {
  std::vector<char*> variables;
  for (const std::string& variable : environment) variables.push_back(const_cast<char*>(variable.c_str()));
  for (char** at = environ; *at; ++at)
    if (std::ranges::none_of(environment, [&](const std::string& variable) {
          return std::string_view(*at).starts_with(std::string_view(variable).substr(0, variable.find('=') + 1));
        }))
      variables.push_back(*at);
  variables.push_back(nullptr);
  std::vector<char*> words;
  for (const std::string& word : arguments) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in, 0);
  posix_spawn_file_actions_adddup2(&actions, out, 1);
  posix_spawn_file_actions_adddup2(&actions, messages, 2);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t usual;
  sigemptyset(&usual);
  for (int signal : {SIGPIPE, SIGXFSZ}) sigaddset(&usual, signal);
  posix_spawnattr_setsigdefault(&attributes, &usual);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  pid_t pid = 0;
  int code = ::posix_spawnp(&pid, words[0], &actions, &attributes, words.data(), variables.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (code != 0) fail(str(arguments[0], ": cannot be started: ", std::string_view(std::strerror(code))), install_hint);
  return pid;
}

void receive(Descriptor& from, std::string& text) {
  char buffer[16384];
  ssize_t n = ::read(from.value, buffer, sizeof buffer);
  if (n > 0) text.append(buffer, static_cast<size_t>(n));
  else if (n == 0 || errno != EINTR) from.close();
}

class Watch {
 public:
  explicit Watch(ProcessLimits limits)
      : limits_(std::move(limits)),
        deadline_(Clock::now() +
                  std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(limits_.timeout_s))) {}

  ProcessEnd end() const {
    if (limits_.is_stopping && limits_.is_stopping()) return ProcessEnd::stopped;
    return Clock::now() < deadline_ ? ProcessEnd::exited : ProcessEnd::timed_out;
  }
  int wait_ms() const {  // until the next look
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - Clock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(left + 1, 1, limits_.is_stopping ? 100 : 1000));
  }

 private:
  ProcessLimits limits_;
  Clock::time_point deadline_;
};

// Moves data until the program has closed both outputs.
ProcessEnd exchange_data(Descriptor& in, Descriptor& out, Descriptor& messages, std::string_view input,
                         ProcessResult& result, const Watch& watch) {
  if (input.empty()) in.close();
  while (out.value >= 0 || messages.value >= 0) {
    if (ProcessEnd end = watch.end(); end != ProcessEnd::exited) return end;
    std::array<pollfd, 3> polled{pollfd{in.value, POLLOUT, 0}, pollfd{out.value, POLLIN, 0},
                                 pollfd{messages.value, POLLIN, 0}};
    if (::poll(polled.data(), polled.size(), watch.wait_ms()) < 0) {
      if (errno != EINTR) fail_errno("wait for", "a process", errno);
      continue;
    }
    if (polled[0].revents) {
      ssize_t n = ::send(in.value, input.data(), input.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n > 0) input.remove_prefix(static_cast<size_t>(n));
      if (input.empty() || (n < 0 && errno != EAGAIN && errno != EINTR)) in.close();
    }
    if (polled[1].revents) receive(out, result.output);
    if (polled[2].revents) receive(messages, result.messages);
  }
  return ProcessEnd::exited;
}

// A program may close its outputs and go on.
ProcessEnd wait_for_exit(pid_t pid, int& status, const Watch& watch) {
  for (;;) {
    pid_t ended = ::waitpid(pid, &status, WNOHANG);
    if (ended == pid || (ended < 0 && errno != EINTR)) return ProcessEnd::exited;
    if (ProcessEnd end = watch.end(); end != ProcessEnd::exited) return end;
    ::poll(nullptr, 0, std::min(watch.wait_ms(), 5));
  }
}

bool ends_by_itself(pid_t pid, int& status, double grace_s) {
  ::kill(-pid, SIGTERM);
  return wait_for_exit(pid, status, Watch({.timeout_s = grace_s})) == ProcessEnd::exited;
}

}  // namespace

ProcessResult run_process(const std::vector<std::string>& arguments, const std::string& input,
                          const ProcessLimits& limits, const std::string& install_hint,
                          const std::vector<std::string>& environment) {
  auto [in, child_in] = make_channel();
  auto [out, child_out] = make_channel();
  auto [messages, child_messages] = make_channel();
  pid_t pid = start(arguments, environment, child_in.value, child_out.value, child_messages.value, install_hint);
  child_in.close();
  child_out.close();
  child_messages.close();

  ProcessResult result;
  Watch watch(limits);
  int status = 0;
  result.end = exchange_data(in, out, messages, input, result, watch);
  in.close();
  if (result.end == ProcessEnd::exited) result.end = wait_for_exit(pid, status, watch);
  if (result.end != ProcessEnd::exited) {
    const bool has_ended =
        result.end == ProcessEnd::stopped && limits.grace_s > 0 && ends_by_itself(pid, status, limits.grace_s);
    ::kill(-pid, SIGKILL);
    while (!has_ended && ::waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
  }
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace weft::io
