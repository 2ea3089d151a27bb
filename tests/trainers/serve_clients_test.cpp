// Clients that do not behave, and the end of the server.
#include <gtest/gtest.h>
#include <httplib.h>

#include <nlohmann/json.hpp>
#include <stop_token>
#include <thread>

#include "tests/support/errors.h"
#include "tests/trainers/serve_http_support.h"

namespace weft {
namespace {

using namespace serve;
using nlohmann::json;
using namespace std::chrono_literals;
using ServeClients = serve_test::HttpFixture;

class RawClient {
 public:
  explicit RawClient(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~RawClient() { leave(); }
  bool send(const std::string& text) const {
    return ::send(socket_, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
  }
  bool is_open() const {  // and nothing has come
    char c;
    return ::recv(socket_, &c, 1, MSG_DONTWAIT | MSG_PEEK) < 0 && errno == EAGAIN;
  }
  std::string read_all() const {  // until the server closes
    std::string text;
    char buffer[4096];
    for (ssize_t n; (n = ::recv(socket_, buffer, sizeof buffer, 0)) > 0;) text.append(buffer, static_cast<size_t>(n));
    return text;
  }
  void leave() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }

 private:
  int socket_;
};

std::string with_head(const std::string& headers, const std::string& body) {
  return "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + headers + "\r\n" + body;
}

// Sends a byte now and then, until the server leaves it.
struct Dribbling {
  Dribbling(int port, const std::string& first) : client(port) {
    client.send(first);
    thread = std::jthread([this](const std::stop_token& stop) {
      while (!stop.stop_requested() && client.send("x")) std::this_thread::sleep_for(20ms);
    });
  }

  RawClient client;
  std::jthread thread;
};

TEST_F(ServeClients, BadRequestsGetOneClearErrorAndTheNextIsAnswered) {
  begin({}, {.max_body_bytes = 2000, .timeout_s = 1});
  auto error = [&](const json& answer) { return answer["error"]["message"].get<std::string>(); };
  EXPECT_NE(error(complete({{"prompt", std::string(49, 'x')}}, 400)).find("--context 49"), std::string::npos);
  EXPECT_NE(error(complete({{"prompt", "a"}, {"max_tokens", 100000}}, 400)).find("at most 48"), std::string::npos);
  EXPECT_NE(error(complete({{"prompt", {1, 300}}}, 400)).find("id 300"), std::string::npos);
  EXPECT_NE(error(complete({{"prompt", "a"}, {"model", "other"}}, 404)).find("'tiny'"), std::string::npos);
  EXPECT_EQ(complete({{"prompt", std::string(3000, 'x')}}, 413)["error"]["code"], 413);
  const httplib::Result broken = client().Post("/v1/completions", "{\"prompt\": ", "application/json");
  ASSERT_TRUE(broken);
  EXPECT_EQ(broken->status, 400);
  EXPECT_NE(broken->body.find("not valid JSON"), std::string::npos);
  // Bodies whose length is not said: in chunks, and compressed ones that grow.
  auto raw = [&](const std::string& request) {
    RawClient client(server_->port());
    client.send(request);
    return client.read_all();
  };
  const std::string large(3000, 'x');
  const std::string chunked = raw(with_head("Transfer-Encoding: chunked\r\n", "bb8\r\n" + large + "\r\n0\r\n\r\n"));
  EXPECT_NE(chunked.find(" 413 "), std::string::npos) << chunked;
  httplib::Client packing = client();
  packing.set_compress(true);
  const httplib::Result packed = packing.Post("/v1/completions", json{{"prompt", large}}.dump(), "application/json");
  ASSERT_TRUE(packed);
  EXPECT_EQ(packed->status, 413) << packed->body;
  const std::string form =
      raw(with_head("Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 3\r\n", "--b"));
  EXPECT_NE(form.find(" 415 "), std::string::npos) << form;
  const std::string curl = "{\"prompt\": \"ab\", \"max_tokens\": 2}";  // what curl -d says of JSON
  const std::string plain = raw(
      with_head(str("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: ", curl.size(), "\r\n"), curl));
  EXPECT_NE(plain.find(" 200 "), std::string::npos) << plain;
  raw("\x16\x03\x01 no HTTP at all\r\n\r\n");
  raw(with_head("Content-Length: 99999999999999999999\r\n", "x"));
  raw(with_head("Content-Length: -5\r\n", "x"));
  raw("GET /health HTTP/1.1\r\nX: " + std::string(100000, 'x') + "\r\n\r\n");
  EXPECT_EQ(complete({{"prompt", "ab"}, {"max_tokens", 2}})["usage"]["completion_tokens"], 2);
}

TEST_F(ServeClients, SlowClientsAreLeftAndOthersAnsweredMeanwhile) {
  begin({}, {.timeout_s = 3});
  RawClient silent(server_->port()), halfway(server_->port());
  halfway.send(with_head("Content-Length: 100\r\n", "{\"prompt\": "));
  const auto started = std::chrono::steady_clock::now();
  EXPECT_EQ(complete({{"prompt", "ab"}, {"max_tokens", 2}})["usage"]["completion_tokens"], 2);
  EXPECT_TRUE(silent.is_open() && halfway.is_open()) << "waited for the slow ones";
  EXPECT_EQ(silent.read_all(), "");
  EXPECT_NE(halfway.read_all().find(" 400 "), std::string::npos);
  EXPECT_LT(std::chrono::steady_clock::now() - started, 20s);
}

// Of head or body: a byte now and then is no silence.
TEST_F(ServeClients, DribblingClientsAreLeftToo) {
  begin({}, {.timeout_s = 5, .request_timeout_s = 1});
  for (const std::string& first : {std::string("GET /heal"), std::string("GET /health HTTP/1.1\r\nX: "),
                                   with_head("Content-Length: 100000\r\n", "{\"prompt\": \"")}) {
    const Dribbling client(server_->port(), first);
    const auto started = std::chrono::steady_clock::now();
    const std::string answer = client.client.read_all();
    EXPECT_LT(std::chrono::steady_clock::now() - started, 4s);
    EXPECT_EQ(answer.find(" 408 ") != std::string::npos, first.starts_with("POST")) << answer;
  }
  EXPECT_EQ(get("/health")["status"], "ok");
}

// On one connection, which the client would keep: what it goes on to send must not be taken for a request.
TEST_F(ServeClients, WhatIsLeftOfABodyIsNoRequest) {
  begin({}, {.max_body_bytes = 2000, .timeout_s = 3, .request_timeout_s = 1});
  const std::string inner = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n", large(3000, 'x');
  auto head = [](const std::string& line, const std::string& headers) {
    return line + " HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n";
  };
  const std::string chunked = "Transfer-Encoding: chunked\r\n", post = "POST /v1/completions";
  const std::vector<std::pair<std::string, std::string>> rows{
      {head(post, chunked) + "bb8\r\n" + large + "\r\n" + inner, " 413 "},
      {head(post, "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 3\r\n") + inner, " 415 "},
      {head("POST /nothing", "Content-Length: 40\r\n") + inner, " 404 "},
      {head("GET /nothing", "Content-Length: 40\r\n") + inner, " 404 "},
      {head("PUT /health", chunked) + inner, " 404 "},
      {head(post, "Content-Length: 100\r\n") + "{", " 408 "},
      {head("GET /v1/models", "Content-Length: 40\r\n") + inner, " 200 "}};
  for (const auto& [request, status] : rows) {
    RawClient client(server_->port());
    client.send(request);
    const std::string answers = client.read_all();
    EXPECT_NE(answers.find(status), std::string::npos) << answers;
    EXPECT_NE(answers.find("Connection: close"), std::string::npos) << answers;
    EXPECT_EQ(answers.find("HTTP/1.1", 1), std::string::npos) << "two answers: " << answers;
  }
  // Bodies that are read, and refusals of requests without one, keep the connection.
  RawClient client(server_->port());
  client.send(head("GET /nothing", "") + head(post, "Content-Length: 2\r\n") + "{}" + inner);
  const std::string answers = client.read_all();
  for (const char* part : {" 404 ", " 400 ", " 200 "}) EXPECT_NE(answers.find(part), std::string::npos) << answers;
}

TEST_F(ServeClients, ABodyThatNobodyAskedForIsNotRead) {
  RawClient client(server_->port());
  client.send("POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string chunk = "10000\r\n" + std::string(1 << 16, 'x') + "\r\n";
  const auto started = std::chrono::steady_clock::now();
  while (client.send(chunk) && std::chrono::steady_clock::now() - started < 6s) std::this_thread::sleep_for(10ms);
  EXPECT_LT(std::chrono::steady_clock::now() - started, 5s) << "read on and on";
  EXPECT_EQ(get("/health")["status"], "ok");
  // Answered before the body comes.
  RawClient patient(server_->port());
  patient.send("POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
  EXPECT_NE(patient.read_all().find("there is no POST /nothing"), std::string::npos);
}

TEST_F(ServeClients, ClientsThatLeaveHarmNobody) {
  for (int i = 0; i < 20; ++i) {
    const std::string body = json{{"prompt", "ab"}, {"max_tokens", 40}, {"stream", i % 2 == 1}}.dump();
    RawClient client(server_->port());
    client.send(with_head(str("Content-Length: ", body.size(), "\r\n"), i % 3 == 0 ? body.substr(0, 9) : body));
    client.leave();
  }
  EXPECT_EQ(complete({{"prompt", "ab"}, {"max_tokens", 3}})["usage"]["completion_tokens"], 3);
}

TEST_F(ServeClients, EndsWithinSecondsAndTellsWhoWaits) {
  engine_->is_held = true;
  std::vector<std::thread> clients;
  std::atomic<int> told{0};
  for (int i = 0; i < 3; ++i)
    clients.emplace_back([&] {
      const httplib::Result result =
          client().Post("/v1/completions", json{{"prompt", "ab"}, {"max_tokens", 40}}.dump(), "application/json");
      told += result && result->status == 503 && result->body.find("ending") != std::string::npos ? 1 : 0;
    });
  RawClient idle(server_->port());
  const Dribbling dribbling(server_->port(), "GET /health HTTP/1.1\r\nX: ");
  while (!engine_->is_computing) std::this_thread::sleep_for(1ms);
  std::this_thread::sleep_for(50ms);  // until the others wait
  const auto begin = std::chrono::steady_clock::now();
  engine_->end();
  server_->stop();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 10s);
  for (std::thread& one : clients) one.join();
  EXPECT_EQ(told, 3);
}

TEST_F(ServeClients, APortThatIsTakenIsAnError) {
  const ServedModel& served = served_;
  EXPECT_EQ(test::error_of([&] { HttpServer({.port = server_->port()}, api_routes(served, engine_->batcher)); },
                           {str("127.0.0.1:", server_->port(), " is in use"), "--port"}),
            "");
  EXPECT_EQ(test::error_of([&] { HttpServer({.host = "192.0.2.1"}, api_routes(served, engine_->batcher)); },
                           {"192.0.2.1:0 is no address of this machine"}),
            "");
}

}  // namespace
}  // namespace weft
