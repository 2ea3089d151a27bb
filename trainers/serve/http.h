// An HTTP server of a few routes that take and give JSON. cpp-httplib stands behind it, in one file.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace weft::serve {

struct HttpAnswer {
  int status = 200;
  std::string body = {};  // JSON
  // In place of `body`: gives one event after another (text/event-stream), and false behind the last. Dropped where the client left.
  std::function<bool(std::string& event)> events = {};
};

struct HttpRoute {
  std::string method, path;  // GET or POST
  std::function<HttpAnswer(const std::string& body)>
      answer;  // may throw RequestError, Error; called on several threads at once
};

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 0;                                // 0: one that is free
  int threads = 64;                            // connections at one time; others wait
  int64_t max_body_bytes = int64_t{16} << 20;  // of a request, also uncompressed
  int timeout_s = 5;           // a client that sends or takes nothing for so long is left; also between requests
  int request_timeout_s = 30;  // from the first byte of a request to its last
  std::function<void(const std::string& line)> log = {};  // a line for each request; called on several threads at once
};

class HttpServer {
 public:
  HttpServer(const HttpOptions& options, std::vector<HttpRoute> routes);  // Error if the port is not to be had
  ~HttpServer();
  int port() const;
  void start();
  // Takes no more requests, and returns when those that are there are answered. A client that still sends its request, or does not take its
  // answer, is left after a few seconds.
  void stop();

 private:
  struct Server;
  std::unique_ptr<Server> server_;
};

}  // namespace weft::serve
