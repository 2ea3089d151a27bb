#include "distributed/comm/rendezvous.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "weft/core/error.h"

namespace weft::dist {

namespace {

constexpr const char* kHint =
    "let MASTER_ADDR and MASTER_PORT name the host of rank 0 and a free port that the others can reach; see whether "
    "all ranks started";

class Deadline {
 public:
  explicit Deadline(double seconds)
      : end_(Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds))) {}
  int left_ms() const {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end_ - Clock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
  }
  double left_s() const { return 1e-3 * left_ms(); }
  bool is_over() const { return left_ms() == 0; }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point end_;
};

class Socket {
 public:
  explicit Socket(int file = -1) : file_(file) {
    if (file_ >= 0) ::fcntl(file_, F_SETFL, O_NONBLOCK);
  }
  Socket(Socket&& other) noexcept : file_(std::exchange(other.file_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(file_, other.file_);
    return *this;
  }
  ~Socket() {
    if (file_ >= 0) ::close(file_);
  }
  int file() const { return file_; }
  bool is_open() const { return file_ >= 0; }

  bool waits_for(short events, const Deadline& deadline) const {
    for (;;) {
      pollfd poll{file_, events, 0};
      const int count = ::poll(&poll, 1, deadline.left_ms());
      if (count >= 0 || errno != EINTR) return count > 0;  // a signal that is handled does not end the wait
    }
  }
  // False if the peer is gone or the time is up.
  bool send_all(const void* from, size_t size, const Deadline& deadline) const {
    for (const auto* next = static_cast<const char*>(from); size > 0;) {
      if (!waits_for(POLLOUT, deadline)) return false;
      const ssize_t sent = ::send(file_, next, size, MSG_NOSIGNAL);
      if (sent < 0 && errno != EAGAIN && errno != EINTR) return false;
      if (sent > 0) next += sent, size -= static_cast<size_t>(sent);
    }
    return true;
  }
  bool receive_all(void* to, size_t size, const Deadline& deadline) const {
    for (auto* next = static_cast<char*>(to); size > 0;) {
      if (!waits_for(POLLIN, deadline)) return false;
      const ssize_t came = ::recv(file_, next, size, 0);
      if (came == 0 || (came < 0 && errno != EAGAIN && errno != EINTR)) return false;
      if (came > 0) next += came, size -= static_cast<size_t>(came);
    }
    return true;
  }

 private:
  int file_;
};

// Who asks, so that a stranger at the port is not taken for a rank.
struct Greeting {
  char word[8] = {'w', 'e', 'f', 't', 'r', 'a', 'n', 'k'};
  int32_t rank = 0, size = 0;
  uint64_t length = 0;  // of the text that follows
};
constexpr uint64_t kLongest = 1 << 20;
constexpr double kGreeting_s = 5;  // that one who comes has to say who it is

bool send_text(const Socket& socket, const std::string& text, const Deadline& deadline) {
  const uint64_t length = text.size();
  return socket.send_all(&length, sizeof length, deadline) && socket.send_all(text.data(), text.size(), deadline);
}

std::optional<std::string> receive_text(const Socket& socket, const Deadline& deadline) {
  uint64_t length = 0;
  if (!socket.receive_all(&length, sizeof length, deadline) || length > kLongest) return std::nullopt;
  std::string text(length, '\0');
  if (!socket.receive_all(text.data(), length, deadline)) return std::nullopt;
  return text;
}

// The addresses of "host:port"; of this host's own if `is_listener`.
std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses_of(const std::string& address, bool is_listener) {
  const size_t colon = address.rfind(':');
  WEFT_CHECK(colon != std::string::npos && colon > 0 && colon + 1 < address.size(),
             str("rendezvous: '", address, "' is not host:port"), "set MASTER_ADDR and MASTER_PORT");
  const std::string host = address.substr(0, colon), port = address.substr(colon + 1);
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = is_listener ? AI_PASSIVE : 0;
  const int code = ::getaddrinfo(is_listener ? nullptr : host.c_str(), port.c_str(), &hints, &found);
  WEFT_CHECK(code == 0, str("rendezvous: ", address, ": ", ::gai_strerror(code)), kHint);
  return {found, ::freeaddrinfo};
}

Socket listener_at(const std::string& address) {
  std::string problem = "no address";
  const auto found = addresses_of(address, true);
  for (const addrinfo* a = found.get(); a; a = a->ai_next) {
    Socket socket(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    const int yes = 1, no = 0;
    if (socket.is_open()) ::setsockopt(socket.file(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (socket.is_open() && a->ai_family == AF_INET6)
      ::setsockopt(socket.file(), IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
    if (socket.is_open() && ::bind(socket.file(), a->ai_addr, a->ai_addrlen) == 0 && ::listen(socket.file(), 1024) == 0)
      return socket;
    problem = std::strerror(errno);
  }
  fail(str("rendezvous: rank 0 cannot listen at ", address, ": ", problem), kHint);
}

// Tries again until rank 0 listens.
Socket connection_to(const std::string& address, const Deadline& deadline, double timeout_s) {
  std::string problem = "no address";
  for (;; std::this_thread::sleep_for(std::chrono::milliseconds(20))) {
    const auto found = addresses_of(address, false);
    for (const addrinfo* a = found.get(); a; a = a->ai_next) {
      Socket socket(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
      if (!socket.is_open()) continue;
      int code = ::connect(socket.file(), a->ai_addr, a->ai_addrlen) == 0 ? 0 : errno;
      if (code == EINPROGRESS) {
        socklen_t size = sizeof code;
        code = ETIMEDOUT;
        if (socket.waits_for(POLLOUT, deadline)) ::getsockopt(socket.file(), SOL_SOCKET, SO_ERROR, &code, &size);
      }
      if (code == 0) return socket;
      problem = std::strerror(code);
    }
    WEFT_CHECK(!deadline.is_over(),
               str("rendezvous: rank 0 did not answer at ", address, " for ", timeout_s, " s: ", problem), kHint);
  }
}

std::vector<std::string> gather_as_first(const std::string& address, int size, const std::string& mine,
                                         const Deadline& deadline, double timeout_s) {
  const Socket listener = listener_at(address);
  std::vector<std::string> texts(static_cast<size_t>(size));
  texts[0] = mine;
  std::map<int, Socket> others;
  while (static_cast<int>(others.size()) < size - 1) {
    // Also while somebody stands at the door: a stranger may come again and again.
    if (!listener.waits_for(POLLIN, deadline) || deadline.is_over()) {
      std::string absent;
      for (int r = 1; r < size; ++r)
        if (!others.contains(r)) absent += str(absent.empty() ? "" : ", ", r);
      fail(str("rendezvous: rank ", absent, " did not come to ", address, " for ", timeout_s, " s"), kHint);
    }
    Socket other(::accept4(listener.file(), nullptr, nullptr, SOCK_CLOEXEC));
    Greeting greeting;
    const Deadline soon(std::min(kGreeting_s, deadline.left_s()));
    if (!other.is_open() || !other.receive_all(&greeting, sizeof greeting, soon)) continue;
    if (std::memcmp(greeting.word, Greeting{}.word, sizeof greeting.word) != 0 || greeting.length > kLongest) continue;
    WEFT_CHECK(greeting.size == size && greeting.rank >= 1 && greeting.rank < size && !others.contains(greeting.rank),
               str("rendezvous: rank ", greeting.rank, " of ", greeting.size, " came to ", address, ", where ", size,
                   " ranks meet", others.contains(greeting.rank) ? ", and it was there already" : ""),
               "give every process a rank of its own, and every program a port of its own");
    std::string text(greeting.length, '\0');
    if (!other.receive_all(text.data(), text.size(), soon)) continue;
    texts[static_cast<size_t>(greeting.rank)] = std::move(text);
    others.emplace(greeting.rank, std::move(other));
  }
  for (const auto& [rank, socket] : others)
    for (const std::string& text : texts)
      WEFT_CHECK(send_text(socket, text, deadline), str("rendezvous: rank ", rank, " is gone"), "see what ended it");
  return texts;
}

}  // namespace

std::vector<std::string> gather_by_tcp(const std::string& address, int rank, int size, const std::string& mine,
                                       double timeout_s) {
  const Deadline deadline(timeout_s);
  if (rank == 0) return gather_as_first(address, size, mine, deadline, timeout_s);
  const Socket first = connection_to(address, deadline, timeout_s);
  Greeting greeting;
  greeting.rank = rank, greeting.size = size, greeting.length = mine.size();
  std::vector<std::string> texts;
  bool is_there =
      first.send_all(&greeting, sizeof greeting, deadline) && first.send_all(mine.data(), mine.size(), deadline);
  for (int r = 0; r < size && is_there; ++r) {
    auto text = receive_text(first, deadline);
    is_there = text.has_value();
    if (text) texts.push_back(std::move(*text));
  }
  WEFT_CHECK(is_there, str("rendezvous: rank 0 at ", address, " left, or was silent for ", timeout_s, " s"), kHint);
  return texts;
}

}  // namespace weft::dist
