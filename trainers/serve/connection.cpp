#include "trainers/serve/connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace weft::serve {

namespace {

constexpr auto kLook = std::chrono::milliseconds(50), kLeave = std::chrono::milliseconds(1000);

thread_local Connection* current_connection = nullptr;

}  // namespace

Connection* Connection::current() { return current_connection; }

Connection::~Connection() { current_connection = nullptr; }

bool Connection::wait(short event, Clock::time_point until) const {
  while (Clock::now() < std::min(until, end_.load())) {
    pollfd one{.fd = socket_, .events = event, .revents = 0};
    const int count = ::poll(&one, 1, static_cast<int>(kLook.count()));
    if (count > 0) return true;
    if (count < 0 && errno != EINTR) return false;
  }
  return false;
}

bool Connection::begin_request() {
  current_connection = this;
  const auto silent_until = Clock::now() + limits_.silence;
  bool is_there = begin_ < size_;
  // A request that came before the end is answered; nobody waits for one that did not.
  while (!is_there && Clock::now() < silent_until) {
    is_there = wait(POLLIN, Clock::now() + kLook);
    if (is_ending()) break;
  }
  if (!is_there) return false;
  head_left_ = limits_.head_bytes;
  until_ = Clock::now() + limits_.request;
  is_read_ = false;
  return true;
}

bool Connection::is_readable() const { return begin_ < size_ || wait(POLLIN, Clock::now() + limits_.silence); }

bool Connection::is_writable() const {
  if (!wait(POLLOUT, Clock::now() + limits_.silence)) return false;
  char byte;
  return ::recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 0;  // 0: the client left
}

ssize_t Connection::read(char* bytes, size_t size) {
  if (head_left_ == 0) return -1;
  if (begin_ == size_) {
    if (!wait(POLLIN, std::min(until_, Clock::now() + limits_.silence))) return -1;
    const ssize_t count = ::recv(socket_, buffer_.data(), buffer_.size(), 0);
    if (count <= 0) return count;
    begin_ = 0, size_ = static_cast<size_t>(count);
  }
  const size_t count = std::min({size, size_ - begin_, head_left_});
  std::copy_n(buffer_.data() + begin_, count, bytes);
  begin_ += count;
  if (head_left_ != SIZE_MAX) head_left_ -= count;
  return static_cast<ssize_t>(count);
}

ssize_t Connection::write(const char* bytes, size_t size) {
  if (!is_writable()) return -1;
  return ::send(socket_, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void Connection::leave() {
  ::shutdown(socket_, SHUT_WR);
  const auto until = Clock::now() + kLeave;
  while (!is_read_ && !is_ending() && wait(POLLIN, until))
    if (::recv(socket_, buffer_.data(), buffer_.size(), 0) <= 0) return;
}

}  // namespace weft::serve
