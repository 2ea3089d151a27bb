// The server over sockets: the requests of lm-evaluation-harness, and streams.
#include <gtest/gtest.h>
#include <httplib.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/trainers/serve_http_support.h"
#include "weft/models/sample.h"

namespace weft {
namespace {

using namespace serve;
using nlohmann::json;
using namespace std::chrono_literals;

using ServeHttp = serve_test::HttpFixture;

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

}  // namespace
}  // namespace weft
