#include "trainers/serve/http.h"

#include <httplib.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <new>
#include <thread>

#include "trainers/serve/answer.h"
#include "trainers/serve/connection.h"
#include "trainers/serve/request_error.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"

namespace weft::serve {

namespace {

constexpr std::chrono::seconds kEnd{3};  // for clients to send and take what they began

void set_error(httplib::Response& response, int status, std::string_view message, std::string_view param = {}) {
  response.status = status;
  response.set_content(error_text(status, message, param), "application/json");
}

std::string status_text(int status, const httplib::Request& request, const std::vector<HttpRoute>& routes) {
  std::string known;
  for (const HttpRoute& route : routes) known += str(known.empty() ? "" : ", ", route.method, " ", route.path);
  if (status == 404)
    return str("there is no ", request.method, " ", data::show_utf8(request.path.substr(0, 200)), "; there are ",
               known);
  if (status == 413) return "the request is too large; send several";
  if (status == 414) return "the address is too long; there are " + known;
  return str("HTTP status ", status, "; send one of ", known);
}

// The body of a request, however it is sent: httplib itself bounds only what has a length.
std::string read_body(const httplib::ContentReader& read, const httplib::Response& response,
                      const HttpOptions& options) {
  Connection& connection = *Connection::current();
  std::string body;
  bool is_large = false;
  const bool is_whole = read([&](const char* bytes, size_t count) {
    is_large = body.size() + count > static_cast<size_t>(options.max_body_bytes);
    if (!is_large) body.append(bytes, count);
    return !is_large;
  });
  if (is_whole) connection.request_is_read();
  if (is_large || (!is_whole && response.status == 413))
    throw RequestError(413, str("the request has more than ", options.max_body_bytes, " bytes; send several"));
  if (!is_whole && connection.is_late())
    throw RequestError(408,
                       str("the request took more than ", options.request_timeout_s, " s to arrive; send it again"));
  if (!is_whole) throw RequestError(400, "the request broke off; send it again");
  return body;
}

void fill(httplib::Response& response, HttpAnswer answer) {
  response.status = answer.status;
  if (!answer.events) return response.set_content(answer.body, "application/json");
  response.set_chunked_content_provider("text/event-stream",
                                        [events = std::move(answer.events)](size_t, httplib::DataSink& sink) {
                                          std::string event;
                                          const bool goes_on = events(event);
                                          if (!event.empty() && !sink.write(event.data(), event.size())) return false;
                                          if (!goes_on) sink.done();
                                          return true;
                                        });
}

template <class Call>
void answer(httplib::Response& response, const Call& call) {
  try {
    fill(response, call());
  } catch (const RequestError& error) {
    set_error(response, error.status, error.message, error.param);
  } catch (const Error& error) {
    set_error(response, 500, error.problem() + "; " + error.fix());
  } catch (const std::bad_alloc&) {
    set_error(response, 500, "out of memory; send less at once, or start the server with a smaller --max-batch");
  } catch (const std::exception& error) { set_error(response, 500, error.what()); }
}

std::string bind_problem(int code) {
  if (code == EADDRINUSE) return "is in use";
  if (code == EACCES) return "is not allowed for this user";
  if (code == EADDRNOTAVAIL) return "is no address of this machine";
  return "cannot be had";
}

// httplib's server on connections of our own.
class ConnectionServer : public httplib::Server {
 public:
  explicit ConnectionServer(const Connection::Limits& limits) : limits_(limits) {}
  void end(std::chrono::seconds left) { end_ = Connection::Clock::now() + left; }

 private:
  bool process_and_close_socket(socket_t socket) override {
    try {
      Connection connection(socket, limits_, end_);
      bool goes_on = true;
      while (goes_on && connection.begin_request()) {
        bool is_last = false;
        goes_on = process_request(connection, false, is_last, nullptr) && !is_last && connection.goes_on();
      }
      connection.leave();
    } catch (const std::exception&) {}  // no memory for this one: others go on
    ::close(socket);
    return true;
  }

  const Connection::Limits limits_;
  std::atomic<Connection::Clock::time_point> end_{Connection::Clock::time_point::max()};
};

// httplib reads the body of a POST until the client leaves where neither header is there.
bool has_no_body(const httplib::Request& request) {
  return request.method != "POST" && !request.has_header("Transfer-Encoding") && !request.has_header("Content-Length");
}

bool is_known(const httplib::Request& request, const std::vector<HttpRoute>& routes) {
  return std::any_of(routes.begin(), routes.end(), [&](const HttpRoute& route) {
    return route.path == request.path &&
           (route.method == request.method || (route.method == "GET" && request.method == "HEAD"));
  });
}

}  // namespace

struct HttpServer::Server {
  Server(const HttpOptions& given, std::vector<HttpRoute> of)
      : options(given),
        routes(std::move(of)),
        http({.silence = std::chrono::seconds(given.timeout_s),
              .request = std::chrono::seconds(given.request_timeout_s)}) {}

  HttpOptions options;
  std::vector<HttpRoute> routes;
  ConnectionServer http;
  std::thread thread;
  int port = 0;
};

HttpServer::HttpServer(const HttpOptions& options, std::vector<HttpRoute> routes)
    : server_(std::make_unique<Server>(options, std::move(routes))) {
  Server& server = *server_;
  httplib::Server& http = server.http;
  for (const HttpRoute& route : server.routes) {
    if (route.method == "GET")
      http.Get(route.path, [&route](const httplib::Request&, httplib::Response& response) {
        answer(response, [&] { return route.answer(""); });
      });
    else
      http.Post(route.path, [&route, &server](const httplib::Request&, httplib::Response& response,
                                              const httplib::ContentReader& read) {
        answer(response, [&] { return route.answer(read_body(read, response, server.options)); });
      });
  }
  http.set_pre_routing_handler([&server](const httplib::Request& request, httplib::Response& response) {
    Connection::current()->head_is_read();
    if (has_no_body(request)) Connection::current()->request_is_read();
    // Before httplib reads a body that nobody asks for, without bound.
    if (!is_known(request, server.routes)) {
      set_error(response, 404, status_text(404, request, server.routes));
      return httplib::Server::HandlerResponse::Handled;
    }
    if (!request.is_multipart_form_data()) return httplib::Server::HandlerResponse::Unhandled;
    set_error(response, 415, "the request is a form; send JSON");
    return httplib::Server::HandlerResponse::Handled;
  });
  http.set_error_handler([&server](const httplib::Request& request, httplib::Response& response) {
    if (response.body.empty())
      set_error(response, response.status, status_text(response.status, request, server.routes));
  });
  http.set_post_routing_handler([](const httplib::Request&, httplib::Response& response) {
    if (Connection::current()->goes_on()) return;
    response.headers.erase("Keep-Alive"), response.headers.erase("Connection");
    response.set_header("Connection", "close");
  });
  if (options.log)
    http.set_logger([&server](const httplib::Request& request, const httplib::Response& response) {
      server.options.log(str(request.method, " ", request.path.substr(0, 200), " ", response.status));
    });
  // Without SO_REUSEPORT, which httplib would set: with it, a second server on the port would take half of the requests.
  http.set_socket_options([](int socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
  http.set_tcp_nodelay(true);
  http.set_keep_alive_max_count(100000);
  http.set_keep_alive_timeout(options.timeout_s);
  http.set_payload_max_length(static_cast<size_t>(options.max_body_bytes));
  http.new_task_queue = [threads = options.threads] { return new httplib::ThreadPool(static_cast<size_t>(threads)); };
  errno = 0;
  if (options.port == 0) server.port = http.bind_to_any_port(options.host);
  else server.port = http.bind_to_port(options.host, options.port) ? options.port : -1;
  WEFT_CHECK(server.port > 0, str("serve: ", options.host, ":", options.port, " ", bind_problem(errno)),
             "give another --port (0: one that is free), or another --host");
}

HttpServer::~HttpServer() { stop(); }

int HttpServer::port() const { return server_->port; }

void HttpServer::start() {
  server_->thread = std::thread([server = server_.get()] { server->http.listen_after_bind(); });
  while (!server_->http.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

void HttpServer::stop() {
  if (!server_->thread.joinable()) return;
  server_->http.end(kEnd);
  server_->http.stop();
  server_->thread.join();
}

}  // namespace weft::serve
