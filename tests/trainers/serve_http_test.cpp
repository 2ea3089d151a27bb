// The server over sockets: the requests of lm-evaluation-harness, streams, and clients that do not behave.
#include <gtest/gtest.h>
#include <httplib.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/support/errors.h"
#include "tests/trainers/serve_support.h"
#include "weft/models/sample.h"

namespace weft {
namespace {

using namespace serve;
using nlohmann::json;
using namespace std::chrono_literals;

class ServeHttp : public ::testing::Test {
 protected:
  void SetUp() override {
    set_num_threads(1);
    begin({.max_batch = 4, .max_wait_s = 0.002}, {.timeout_s = 1});
  }
  void TearDown() override {
    engine_.reset();
    server_.reset();
  }

  void begin(const BatcherOptions& batches, const HttpOptions& http) {
    TearDown();
    model_ = std::make_unique<LanguageModel>(serve_test::tiny(serve_test::hybrid()), Rng(3));
    served_ = serve_test::served(*model_);
    engine_ = std::make_unique<serve_test::Engine>(*model_, served_, batches);
    server_ = std::make_unique<HttpServer>(http, api_routes(served_, engine_->batcher));
    server_->start();
  }
  httplib::Client client() const {
    httplib::Client client("127.0.0.1", server_->port());
    client.set_read_timeout(20);
    return client;
  }
  json post(const std::string& path, const json& body, int status = 200) const {
    const httplib::Result result = client().Post(path, body.dump(), "application/json");
    if (!result) {
      ADD_FAILURE() << path << ": " << httplib::to_string(result.error());
      return {};
    }
    EXPECT_EQ(result->status, status) << result->body;
    return json::parse(result->body);
  }
  json complete(const json& body, int status = 200) const { return post("/v1/completions", body, status); }
  json get(const std::string& path, int status = 200) const {
    const httplib::Result result = client().Get(path);
    if (!result) {
      ADD_FAILURE() << path << ": " << httplib::to_string(result.error());
      return {};
    }
    EXPECT_EQ(result->status, status) << result->body;
    return json::parse(result->body);
  }

  std::unique_ptr<LanguageModel> model_;
  ServedModel served_;
  std::unique_ptr<serve_test::Engine> engine_;
  std::unique_ptr<HttpServer> server_;
};

// The payload of LocalCompletionsAPI._create_payload(generate=False), and what its parse_logprobs() makes of the answer.
TEST_F(ServeHttp, TheHarnessScoresContinuations) {
  std::vector<int32_t> greedy{104, 105};
  for (int32_t id : sample(*model_, greedy, {.tokens = 5, .temperature = 0})) greedy.push_back(id);
  const std::vector<std::vector<int32_t>> prompts{{116, 104, 101, 32, 99, 97, 116}, {97, 98}, greedy};
  const std::vector<size_t> context_lengths{4, 1, 2};
  const json answer = complete({{"model", "tiny"},
                                {"prompt", prompts},
                                {"temperature", 0},
                                {"max_tokens", 1},
                                {"logprobs", 1},
                                {"seed", 1234},
                                {"echo", true}});
  ASSERT_EQ(answer["choices"].size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    const json& choice = answer["choices"][i];
    EXPECT_EQ(choice["index"], i);
    const json &logprobs = choice["logprobs"]["token_logprobs"], &top = choice["logprobs"]["top_logprobs"];
    ASSERT_EQ(logprobs.size(), prompts[i].size() + 1);
    EXPECT_TRUE(logprobs[0].is_null());
    double sum = 0, expected = 0;
    bool is_greedy = true, expects_greedy = true;
    std::vector<bool> plain_greedy;
    const std::vector<double> plain = serve_test::plain_logprobs(*model_, prompts[i], &plain_greedy);
    for (size_t t = context_lengths[i]; t + 1 < logprobs.size(); ++t) {
      sum += logprobs[t].get<double>(), expected += plain[t - 1];
      double most = -INFINITY;
      for (const auto& [token, logprob] : top[t].items()) most = std::max(most, logprob.get<double>());
      is_greedy = is_greedy && logprobs[t].get<double>() == most;
      expects_greedy = expects_greedy && plain_greedy[t - 1];
    }
    EXPECT_NEAR(sum, expected, 1e-5);
    EXPECT_EQ(is_greedy, expects_greedy);
    EXPECT_EQ(is_greedy, i == 2);
  }
  for (int32_t max_tokens : {0, 1}) {
    const json one = complete(
        {{"prompt", "the cat"}, {"max_tokens", max_tokens}, {"logprobs", 1}, {"echo", true}, {"temperature", 0}});
    for (size_t t = 1; t < 7; ++t)
      EXPECT_NEAR(one["choices"][0]["logprobs"]["token_logprobs"][t].get<double>(),
                  answer["choices"][0]["logprobs"]["token_logprobs"][t].get<double>(), 1e-5);
    EXPECT_EQ(one["choices"][0]["logprobs"]["tokens"].size(), static_cast<size_t>(7 + max_tokens));
    EXPECT_EQ(one["choices"][0]["text"].get<std::string>().substr(0, 7), "the cat");
  }
}

// The payload of generate=True: what weft::sample() writes, up to the stop text.
TEST_F(ServeHttp, TheHarnessGeneratesUntilAStop) {
  auto sampled = [&](const std::string& prompt, double temperature) {
    return served_.text(sample(*model_, served_.encode(prompt),
                               {.tokens = 20, .temperature = temperature, .seed = Rng(1234)[uint64_t{0}].key()}));
  };
  for (double temperature : {0.0, 1.0}) {
    const std::string whole = sampled("Q: 1", temperature);
    const std::string stop = whole.substr(7, 2), cut = whole.substr(0, whole.find(stop));
    json request{{"prompt", {"Q: 1", "another, longer"}},
                 {"model", "tiny"},
                 {"max_tokens", 20},
                 {"temperature", temperature},
                 {"stop", json::array()},
                 {"seed", 1234}};
    const json plain = complete(request);
    auto as_json = [](const std::string& bytes) {
      return json::parse(json(bytes).dump(-1, ' ', false, json::error_handler_t::replace)).get<std::string>();
    };
    EXPECT_EQ(plain["choices"][0]["text"], as_json(whole));
    EXPECT_EQ(plain["choices"][1]["text"], as_json(sampled("another, longer", temperature)));
    EXPECT_EQ(plain["choices"][0]["finish_reason"], "length");
    if (as_json(stop) != stop) continue;  // bytes that no JSON can hold
    request["stop"] = {stop, "<|endoftext|>"};
    const json stopped = complete(request);
    EXPECT_EQ(stopped["choices"][0]["text"], as_json(cut));
    EXPECT_EQ(stopped["choices"][0]["finish_reason"], "stop");
  }
}

// RemoteTokenizer of the harness.
TEST_F(ServeHttp, TheHarnessAsksForTokens) {
  json info = get("/tokenizer_info");
  EXPECT_TRUE(info.contains("eos_token") && info["eos_token"].is_null());
  EXPECT_EQ(post("/tokenize", {{"prompt", "test"}, {"add_special_tokens", false}})["tokens"],
            (json{116, 101, 115, 116}));
  EXPECT_EQ(post("/detokenize", {{"tokens", {116, 101}}})["prompt"], "te");
  served_.end_of_text = 0;
  info = get("/tokenizer_info");
  EXPECT_EQ(post("/tokenize", {{"prompt", info["eos_token"]}})["tokens"], json{0});
  post("/detokenize", {{"tokens", {256}}}, 400);
  post("/tokenize", {{"prompt", 7}}, 400);
}

TEST_F(ServeHttp, TellsWhatItServes) {
  EXPECT_EQ(get("/health")["status"], "ok");
  EXPECT_EQ(get("/health")["step"], 7);
  const json models = get("/v1/models");
  EXPECT_EQ(models["data"][0]["id"], "tiny");
  EXPECT_EQ(models["data"][0]["max_model_len"], 48);
  for (const char* path : {"/", "/v1/completion", "/v1/chat/completions", "/../../etc/passwd"})
    EXPECT_NE(get(path, 404)["error"]["message"].get<std::string>().find("POST /v1/completions"), std::string::npos);
  EXPECT_NE(get("/v1/completions", 404)["error"]["message"].get<std::string>().find("GET /v1/completions"),
            std::string::npos);
}

TEST_F(ServeHttp, CopiesDifferAndRepeatWithTheSeed) {
  const json request{{"prompt", "abc"}, {"n", 4}, {"max_tokens", 12}, {"seed", 5}};
  const json first = complete(request), second = complete(request);
  ASSERT_EQ(first["choices"].size(), 4u);
  EXPECT_EQ(first["choices"], second["choices"]);
  EXPECT_NE(first["choices"][0]["text"], first["choices"][1]["text"]);
  EXPECT_EQ(first["usage"], (json{{"prompt_tokens", 3}, {"completion_tokens", 48}, {"total_tokens", 51}}));
}

TEST_F(ServeHttp, ManyClientsGetWhatEachGetsAlone) {
  std::vector<json> requests, alone;
  for (int i = 0; i < 12; ++i)
    requests.push_back({{"prompt", std::string(static_cast<size_t>(1 + i), static_cast<char>('a' + i))},
                        {"max_tokens", 3 + i},
                        {"temperature", i % 2},
                        {"logprobs", 1},
                        {"echo", i % 3 == 0}});
  for (const json& request : requests) alone.push_back(complete(request)["choices"][0]);
  std::vector<std::thread> clients;
  std::vector<json> together(requests.size());
  engine_->is_held = true;
  for (size_t i = 0; i < requests.size(); ++i)
    clients.emplace_back([&, i] { together[i] = complete(requests[i])["choices"][0]; });
  while (engine_->batcher.waiting() < 8) std::this_thread::sleep_for(1ms);
  engine_->is_held = false;
  for (std::thread& one : clients) one.join();
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(together[i]["text"], alone[i]["text"]);
    const json &x = together[i]["logprobs"]["token_logprobs"], &y = alone[i]["logprobs"]["token_logprobs"];
    ASSERT_EQ(x.size(), y.size());
    for (size_t t = 0; t < x.size(); ++t) {
      if (x[t].is_null()) continue;
      EXPECT_NEAR(x[t].get<double>(), y[t].get<double>(), 1e-5);
    }
  }
  EXPECT_GT(*std::max_element(engine_->batches.begin(), engine_->batches.end()), 1u) << "nothing was batched";
}

std::vector<json> events_of(const std::string& body) {
  std::vector<json> events;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    EXPECT_EQ(body.substr(at, 6), "data: ");
    const std::string text = body.substr(at + 6, end - at - 6);
    events.push_back(text == "[DONE]" ? json("done") : json::parse(text));
    at = end == std::string::npos ? body.size() : end + 2;
  }
  return events;
}

TEST_F(ServeHttp, AStreamIsTheTextInPieces) {
  json request{{"prompt", {"ab", "c"}}, {"max_tokens", 9}, {"temperature", 0}, {"stop", "zzz"}};
  const json whole = complete(request);
  request["stream"] = true;
  request["stream_options"] = {{"include_usage", true}};
  const httplib::Result result = client().Post("/v1/completions", request.dump(), "application/json");
  ASSERT_TRUE(result);
  EXPECT_EQ(result->get_header_value("Content-Type"), "text/event-stream");
  const std::vector<json> events = events_of(result->body);
  ASSERT_GT(events.size(), 4u);
  EXPECT_EQ(events.back(), "done");
  EXPECT_EQ(events[events.size() - 2]["usage"], whole["usage"]);
  std::vector<std::string> texts(2);
  std::vector<int> ends(2);
  for (const json& event : events)
    for (const json& choice : event.is_object() ? event["choices"] : json::array()) {
      const size_t i = choice["index"];
      texts[i] += choice["text"];
      ends[i] += choice["finish_reason"].is_null() ? 0 : 1;
    }
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(texts[i], whole["choices"][i]["text"]);
  EXPECT_EQ(ends, (std::vector<int>{1, 1}));
}

// ---- clients that do not behave

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
  void send(const std::string& text) const { (void)!::send(socket_, text.data(), text.size(), MSG_NOSIGNAL); }
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

TEST_F(ServeHttp, BadRequestsGetOneClearErrorAndTheNextIsAnswered) {
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

TEST_F(ServeHttp, SlowClientsAreLeftAndOthersAnsweredMeanwhile) {
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

TEST_F(ServeHttp, ClientsThatLeaveHarmNobody) {
  for (int i = 0; i < 20; ++i) {
    const std::string body = json{{"prompt", "ab"}, {"max_tokens", 40}, {"stream", i % 2 == 1}}.dump();
    RawClient client(server_->port());
    client.send(with_head(str("Content-Length: ", body.size(), "\r\n"), i % 3 == 0 ? body.substr(0, 9) : body));
    client.leave();
  }
  EXPECT_EQ(complete({{"prompt", "ab"}, {"max_tokens", 3}})["usage"]["completion_tokens"], 3);
}

TEST_F(ServeHttp, EndsWithinSecondsAndTellsWhoWaits) {
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
  while (!engine_->is_computing) std::this_thread::sleep_for(1ms);
  std::this_thread::sleep_for(50ms);  // until the others wait
  const auto begin = std::chrono::steady_clock::now();
  engine_->end();
  server_->stop();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 10s);
  for (std::thread& one : clients) one.join();
  EXPECT_EQ(told, 3);
}

TEST_F(ServeHttp, APortThatIsTakenIsAnError) {
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
