// One client's socket, as httplib reads and writes it, with limits that httplib has not: on the size of a request's head, on the time until a
// request is there whole, and on how long a client can hold up the server's end.
#pragma once

#include <httplib.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <string>

namespace weft::serve {

class Connection final : public httplib::Stream {
 public:
  using Clock = std::chrono::steady_clock;
  struct Limits {
    std::chrono::seconds silence{5};   // a client that sends or takes nothing for so long is left
    std::chrono::seconds request{30};  // from a request's first byte to its last
    size_t head_bytes = size_t{64} << 10;
  };

  // `end`: when clients are left whatever they do; time_point::max() until the server ends.
  Connection(int socket, const Limits& limits, const std::atomic<Clock::time_point>& end)
      : socket_(socket), limits_(limits), end_(end) {}
  ~Connection() override;

  // Of the thread that answers a request; null on others.
  static Connection* current();

  // False where none comes: the client left or is silent, or the server ends. Else what follows belongs to a new request.
  bool begin_request();
  void head_is_read() { head_left_ = SIZE_MAX; }
  void request_is_read() { is_read_ = true; }
  bool is_ending() const { return end_.load() != Clock::time_point::max(); }
  bool is_late() const { return Clock::now() >= until_; }
  // What a request leaves unread would be taken for the next one.
  bool goes_on() const { return is_read_ && !is_ending(); }
  // Drops for a moment what still comes: where bytes are unread, close() would take the answer from the client.
  void leave();

  bool is_readable() const override;
  bool is_writable() const override;
  ssize_t read(char* bytes, size_t size) override;
  ssize_t write(const char* bytes, size_t size) override;
  // Nothing here asks for addresses.
  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return socket_; }

 private:
  bool wait(short event, Clock::time_point until) const;

  const int socket_;
  const Limits limits_;
  const std::atomic<Clock::time_point>& end_;
  std::array<char, 4096> buffer_;
  size_t begin_ = 0, size_ = 0;  // unread bytes of the buffer
  size_t head_left_ = 0;         // bytes that the head may still have
  Clock::time_point until_ = {};
  bool is_read_ = true;
};

}  // namespace weft::serve
