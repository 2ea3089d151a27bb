// Requests that are refused, and what is answered.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/trainers/serve_support.h"
#include "trainers/serve/answer.h"
#include "trainers/serve/request_error.h"
#include "trainers/serve/stream.h"

namespace weft {
namespace {

using namespace serve;
using nlohmann::json;
using Ids = std::vector<int32_t>;

class Serve : public ::testing::Test {
 protected:
  void SetUp() override { set_num_threads(1); }
};

ServedModel bytes_model() {
  return {.name = "tiny", .address = "runs/tiny", .context = 16, .tokenizer = data::make_byte_tokenizer()};
}

TEST_F(Serve, RefusesRequestsThatAreNoneOfThisInterface) {
  struct Row {
    std::string body;
    std::vector<std::string> parts;
    std::string param;
    int status = 400;
  };
  const ServedModel model = bytes_model();
  const std::string deep(100000, '[');
  const std::vector<Row> rows{
      {"", {"not valid JSON", "send one JSON object"}, ""},
      {"{", {"not valid JSON"}, ""},
      {"[]", {"the request is a JSON array"}, ""},
      {"{\"prompt\": \"\xff\"}", {"not valid JSON"}, ""},
      {R"({"prompt": "\ud800"})", {"not valid JSON"}, ""},
      {R"({"prompt": "a", "temperature": 1e999})", {"not valid JSON"}, ""},
      {deep, {"nested deeper"}, ""},
      {"{\"prompt\": " + deep, {"nested deeper"}, ""},
      {R"({"prompt": [[[[1]]]]})", {"nested deeper than 4 levels"}, ""},
      {"{}", {"there is no prompt", "give a text"}, "prompt"},
      {R"({"prompt": null})", {"there is no prompt"}, "prompt"},
      {R"({"prompt": 7})", {"prompt is 7"}, "prompt"},
      {R"({"prompt": {}})", {"prompt is {}"}, "prompt"},
      {R"({"prompt": ""})", {"prompt has no tokens", "give at least one"}, "prompt"},
      {R"({"prompt": []})", {"prompt has no tokens"}, "prompt"},
      {R"({"prompt": [""]})", {"prompt has no tokens"}, "prompt"},
      {R"({"prompt": ["a", ""]})", {"prompt[1] has no tokens"}, "prompt"},
      {R"({"prompt": [[1], []]})", {"prompt[1] has no tokens"}, "prompt"},
      {R"({"prompt": ["a", [1]]})", {"prompt[1] is [1]", "all as texts"}, "prompt"},
      {R"({"prompt": [[1], "a"]})", {"prompt[1] is \"a\""}, "prompt"},
      {R"({"prompt": [1, "a"]})", {"prompt[1] is \"a\"", "token ids"}, "prompt"},
      {R"({"prompt": [[1, 2.5]]})", {"prompt[0][1] is 2.5"}, "prompt"},
      {R"({"prompt": [true]})", {"prompt[0] is true"}, "prompt"},
      {R"({"prompt": [-1]})", {"prompt[0] is -1", "from 0 on"}, "prompt"},
      {R"({"prompt": [99999999999999999999]})", {"prompt[0] is"}, "prompt"},
      {R"({"prompt": [18446744073709551615]})", {"prompt[0] is 18446744073709551615"}, "prompt"},
      {R"({"prompt": [1, 256]})", {"id 256", "the model has 256 ids", "/tokenize"}, "prompt"},
      {R"({"prompt": [1, 2147483647]})", {"id 2147483647"}, "prompt"},
      {R"({"prompt": "12345678901234567"})", {"has 17 tokens, and the model reads 16", "--context 17"}, "prompt"},
      {R"({"prompt": ["a", "12345678901234567"]})", {"prompt[1] has 17 tokens"}, "prompt"},
      {R"({"prompt": "1234567890", "max_tokens": 8})", {"10 tokens and max_tokens is 8", "at most 7"}, "max_tokens"},
      {R"({"prompt": "a", "max_tokens": 1000000000})", {"max_tokens is 1000000000", "at most 16"}, "max_tokens"},
      {R"({"prompt": "a", "max_tokens": 99999999999})", {"max_tokens is 99999999999", "whole number"}, "max_tokens"},
      {R"({"prompt": "a", "max_tokens": -1})", {"max_tokens is -1"}, "max_tokens"},
      {R"({"prompt": "a", "max_tokens": 1.5})", {"max_tokens is 1.5"}, "max_tokens"},
      {R"({"prompt": "a", "max_tokens": "9"})", {"max_tokens is \"9\""}, "max_tokens"},
      {R"({"prompt": "a", "n": 0})", {"n is 0", "from 1 to 128"}, "n"},
      {R"({"prompt": "a", "n": 1000000})", {"n is 1000000"}, "n"},
      {R"({"prompt": ["a","a","a","a","a","a","a","a","a"], "n": 128})", {"9 prompts and n 128", "1024"}, "prompt"},
      {R"({"prompt": "a", "logprobs": 1000})", {"logprobs is 1000", "from 0 to 20"}, "logprobs"},
      {R"({"prompt": "a", "logprobs": true})", {"logprobs is true"}, "logprobs"},
      {R"({"prompt": "a", "echo": 1})", {"echo is 1", "true or false"}, "echo"},
      {R"({"prompt": "a", "temperature": -0.1})", {"temperature is -0.1"}, "temperature"},
      {R"({"prompt": "a", "temperature": "hot"})", {"temperature is \"hot\""}, "temperature"},
      {R"({"prompt": "a", "top_p": 0})", {"top_p is 0", "above 0"}, "top_p"},
      {R"({"prompt": "a", "top_p": 1.1})", {"top_p is 1.1"}, "top_p"},
      {R"({"prompt": "a", "seed": 1.5})", {"seed is 1.5"}, "seed"},
      {R"({"prompt": "a", "stop": ""})", {"stop is \"\""}, "stop"},
      {R"({"prompt": "a", "stop": [7]})", {"stop[0] is 7"}, "stop"},
      {"{\"prompt\": \"a\", \"stop\": \"" + std::string(1001, 'x') + "\"}",
       {"stop is \"xxx", "...", "1000 bytes"},
       "stop"},
      {R"({"prompt": "a", "suffix": "b"})", {"suffix is \"b\"", "not supported"}, "suffix"},
      {R"({"prompt": "a", "best_of": 3})", {"best_of is 3", "n, which is 1"}, "best_of"},
      {R"({"prompt": "a", "logit_bias": {"5": 1}})", {"logit_bias is {\"5\":1}"}, "logit_bias"},
      {R"({"prompt": "a", "presence_penalty": 1})", {"presence_penalty is 1"}, "presence_penalty"},
      {R"({"prompt": "a", "frequency_penalty": 0.5})", {"frequency_penalty is 0.5"}, "frequency_penalty"},
      {R"({"prompt": "a", "stream": true, "logprobs": 1})", {"logprobs are not sent"}, "logprobs"},
      {R"({"prompt": "a", "stream_options": {"include_usage": true}})", {"stream_options is"}, "stream_options"},
      {R"({"prompt": "a", "max_token": 5})", {"no field 'max_token'. Did you mean 'max_tokens'?"}, "max_token"},
      {R"({"prompt": "a", "messages": []})", {"no field 'messages'"}, "messages"},
      {R"({"prompt": "a", "model": "gpt-4"})", {"no model 'gpt-4'", "'tiny'"}, "model", 404},
      {R"({"prompt": "a", "model": 4})", {"model is 4"}, "model"}};
  for (const Row& row : rows) {
    try {
      read_completion(row.body, model);
      ADD_FAILURE() << "taken: " << row.body.substr(0, 100);
    } catch (const RequestError& error) {
      EXPECT_EQ(error.status, row.status) << row.body.substr(0, 100);
      EXPECT_EQ(error.param, row.param) << error.message;
      EXPECT_LT(error.message.size(), 500u);
      for (const std::string& part : row.parts)
        EXPECT_NE(error.message.find(part), std::string::npos) << part << " in: " << error.message;
      const json answer = json::parse(error_text(error.status, error.message, error.param));
      EXPECT_EQ(answer["error"]["message"], error.message);
      EXPECT_EQ(answer["error"]["code"], row.status);
    }
  }
}

TEST_F(Serve, ARequestOfManyObjectsIsRefusedAtOnce) {
  const ServedModel model = bytes_model();
  std::string body = "{\"prompt\": [{}";
  while (body.size() < (size_t{2} << 20)) body += ",{}";
  body += "]}";
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(read_completion(body, model), RequestError);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST_F(Serve, BracketsOfTextsAreNoDepth) {
  const ServedModel model = bytes_model();
  EXPECT_EQ(read_completion(R"({"prompt": "[[[[\"[[[\\"})", model).prompts[0].size(), 9u);
}

TEST_F(Serve, PromptsAreCountedBeforeTheyAreEncoded) {
  const ServedModel model = bytes_model();
  const json body{{"prompt", std::vector<std::vector<double>>(1025, {2.5})}};  // no ids, which who reads them finds
  try {
    read_completion(body.dump(), model);
    FAIL() << "taken";
  } catch (const RequestError& error) {
    EXPECT_EQ(error.message, "there are 1025 prompts; give at most 1024, and send several requests");
  }
}

// A request of some kilobytes, whose answer would have gigabytes.
TEST_F(Serve, AnAnswerThatIsTooLargeIsRefusedBeforeItIsComputed) {
  ServedModel model = bytes_model();
  model.context = int64_t{1} << 20;
  struct Row {
    size_t prompts, ids;  // of each
    json fields;
    std::vector<std::string> parts;  // empty: it is taken
    std::string param = "logprobs";
  };
  const std::vector<Row> rows{
      {8, 1, {{"n", 128}, {"max_tokens", 1024}, {"logprobs", 0}}, {}},
      {8, 1, {{"n", 128}, {"max_tokens", 1025}, {"logprobs", 0}}, {"8 prompts, n 128", "1049600 tokens", "1048576"}},
      {8, 1, {{"n", 128}, {"max_tokens", 512}, {"logprobs", 1}}, {}},
      {8, 1, {{"n", 128}, {"max_tokens", 513}, {"logprobs", 1}}, {"1050624 log probabilities"}},
      {8, 4096, {{"n", 128}, {"max_tokens", 0}, {"logprobs", 20}}, {}},
      {8,
       4096,
       {{"n", 128}, {"max_tokens", 0}, {"logprobs", 20}, {"echo", true}},
       {"with echo", "4194304 tokens", "logprobs 20", "88080384 log probabilities", "lower logprobs"}},
      {128, 4096, {{"max_tokens", 0}, {"logprobs", 1}, {"echo", true}}, {}},
      {1, 1, {{"max_tokens", 1 << 20}, {"logprobs", 20}}, {"1 prompt, n 1 and max_tokens 1048576"}},
      {8, 1, {{"n", 128}, {"max_tokens", 16383}}, {}},
      {8, 1, {{"n", 128}, {"max_tokens", 16384}}, {"16778240 tokens", "16777216", "lower n"}, "max_tokens"},
      {1, 200000, {{"n", 128}, {"max_tokens", 1}}, {"25600128 tokens"}, "max_tokens"}};
  for (const Row& row : rows) {
    json body = row.fields;
    body["prompt"] = std::vector<Ids>(row.prompts, Ids(row.ids, 7));
    try {
      read_completion(body.dump(), model);
      EXPECT_TRUE(row.parts.empty()) << "taken: " << row.fields;
    } catch (const RequestError& error) {
      EXPECT_FALSE(row.parts.empty()) << error.message;
      EXPECT_EQ(error.status, 400);
      EXPECT_EQ(error.param, row.param) << error.message;
      for (const std::string& part : row.parts)
        EXPECT_NE(error.message.find(part), std::string::npos) << part << " in: " << error.message;
    }
  }
}

TEST_F(Serve, AModelThatOnlyScoresRefusesToContinue) {
  ServedModel model = bytes_model();
  model.can_continue = false;
  EXPECT_EQ(read_completion(R"({"prompt": "a", "max_tokens": 1})", model).max_tokens, 1);
  EXPECT_EQ(read_completion(R"({"prompt": "a"})", model).max_tokens, 1);
  try {
    read_completion(R"({"prompt": "a", "max_tokens": 2})", model);
    FAIL() << "taken";
  } catch (const RequestError& error) {
    EXPECT_EQ(error.status, 400);
    EXPECT_EQ(error.param, "max_tokens");
    EXPECT_NE(error.message.find("max_tokens is 2"), std::string::npos) << error.message;
    EXPECT_NE(error.message.find("ask for 0 or 1"), std::string::npos) << error.message;
  }
}

TEST_F(Serve, ReadsEveryFormOfAPromptAndWhatIsNotGiven) {
  const ServedModel model = bytes_model();
  auto prompts = [&](const std::string& text) { return read_completion("{\"prompt\": " + text + "}", model).prompts; };
  EXPECT_EQ(prompts("\"ab\""), (std::vector<Ids>{{97, 98}}));
  EXPECT_EQ(prompts("[\"ab\", \"c\"]"), (std::vector<Ids>{{97, 98}, {99}}));
  EXPECT_EQ(prompts("[97, 98]"), (std::vector<Ids>{{97, 98}}));
  EXPECT_EQ(prompts("[[97, 98], [255]]"), (std::vector<Ids>{{97, 98}, {255}}));
  const Completion plain = read_completion(R"({"prompt": "a", "stop": null, "logprobs": null, "user": "me"})", model);
  EXPECT_EQ(plain.max_tokens, 16);
  EXPECT_EQ(plain.n, 1);
  EXPECT_EQ(plain.temperature, 1);
  EXPECT_FALSE(plain.echo || plain.logprobs || plain.stream);
  EXPECT_EQ(read_completion(R"({"prompt": "123456789012345"})", model).max_tokens, 2) << "what there is room for";
  EXPECT_EQ(read_completion(R"({"prompt": "1234567890123456", "max_tokens": 1})", model).max_tokens, 1)
      << "the last token is not read";
  EXPECT_EQ(read_completion(R"({"prompt": "a", "seed": -1})", model).seed, ~uint64_t{0});
  EXPECT_EQ(read_completion(R"({"prompt": "a", "model": "runs/tiny", "stop": "x"})", model).stop,
            std::vector<std::string>{"x"});
}

TEST_F(Serve, AFirstTokenStandsBeforeEveryPromptOnce) {
  ServedModel model = bytes_model();
  model.first_token = 256;
  auto row = [&](const std::string& prompt) {
    const Completion c = read_completion("{\"prompt\": " + prompt + "}", model);
    return rows_of(c, model).rows[0].prompt;
  };
  EXPECT_EQ(row("\"a\""), (Ids{256, 97}));
  EXPECT_EQ(row("[256, 97]"), (Ids{256, 97}));
  EXPECT_EQ(row("\"\""), (Ids{256}));
  EXPECT_EQ(model.token_name(256), "<|first|>");
}

TEST_F(Serve, ATextEndsBeforeTheFirstStopWhereverTokensBegin) {
  const ServedModel model = bytes_model();
  auto texts = [&](const std::string& bytes, const std::vector<std::string>& stop) {
    CompletionText text(model, stop, false);
    std::string settled;
    for (char c : bytes) {
      const bool goes_on = text.add(static_cast<unsigned char>(c));
      EXPECT_TRUE(text.settled().starts_with(settled)) << "what was sent is taken back";
      settled = std::string(text.settled());
      if (!goes_on) break;
    }
    return std::tuple(std::string(text.text()), settled, text.num_tokens());
  };
  using Texts = std::tuple<std::string, std::string, size_t>;
  EXPECT_EQ(texts("ab\n\ncd", {"\n\n"}), Texts("ab", "ab", 2));
  EXPECT_EQ(texts("ab\n", {"\n\n"}), Texts("ab\n", "ab", 3));
  EXPECT_EQ(texts("abcabd", {"abd", "zz"}), Texts("abc", "abc", 3));
  EXPECT_EQ(texts("ababac", {"abac"}), Texts("ab", "ab", 2));
  EXPECT_EQ(texts("abc", {"bc", "abc"}), Texts("", "", 0));
  EXPECT_EQ(texts("a\xc3\xa9", {}), Texts("a\xc3\xa9", "a\xc3\xa9", 3));
  EXPECT_EQ(texts("a\xe2\x82", {}), Texts("a\xe2\x82", "a", 3));
  EXPECT_EQ(texts("\xff", {}), Texts("\xff", "", 1));
}

TEST_F(Serve, AnswersHaveTheFieldsOfTheInterface) {
  ServedModel model = bytes_model();
  model.end_of_text = 0;
  const Completion c = read_completion(
      R"({"prompt": [[97, 195, 169]], "max_tokens": 3, "echo": true, "logprobs": 2, "stop": "!"})", model);
  const CompletionRows rows = rows_of(c, model);
  EXPECT_TRUE(rows.rows[0].scores_prompt);
  auto score = [](double logprob, std::vector<std::pair<int32_t, double>> top) {
    return TokenScore{logprob, std::move(top)};
  };
  Generation made{.ids = {98, 33}, .ended = true};
  for (int32_t id : made.ids) rows.texts[0]->add(id);
  made.prompt_scores = {score(-2.5, {{195, -2.5}, {98, -3}}), score(-4, {{98, -1}, {99, -2}})};
  made.scores = {score(-0.5, {{98, -0.5}, {0, -1}}), score(-1, {})};
  const json answer = json::parse(answer_text(c, model, rows, std::span(&made, 1), {.id = "cmpl-1", .created = 5}));
  const json expected = json::parse(R"({"id": "cmpl-1", "object": "text_completion", "created": 5, "model": "tiny",
    "choices": [{"index": 0, "text": "a\u00e9b", "finish_reason": "stop", "logprobs": {
      "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9", "b"], "token_logprobs": [null, -2.5, -4.0, -0.5],
      "top_logprobs": [null, {"bytes:\\xc3": -2.5, "b": -3.0}, {"b": -1.0, "c": -2.0, "bytes:\\xa9": -4.0},
                       {"b": -0.5, "<|endoftext|>": -1.0}],
      "text_offset": [0, 1, 2, 2]}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})");
  EXPECT_EQ(answer, expected) << answer.dump(1);
}

// Who scores a prompt asks for one token more and drops the last: the end of text is a token of the lists too.
TEST_F(Serve, TheEndOfTextIsAmongTheTokensOfTheLists) {
  ServedModel model = bytes_model();
  model.end_of_text = 0;
  const Completion c = read_completion(R"({"prompt": "ab", "max_tokens": 1, "echo": true, "logprobs": 0})", model);
  const CompletionRows rows = rows_of(c, model);
  Generation made{.prompt_scores = {{.logprob = -3}}, .end_score = TokenScore{.logprob = -1}, .ended = true};
  const json choice = json::parse(answer_text(c, model, rows, std::span(&made, 1), {}))["choices"][0];
  EXPECT_EQ(choice["text"], "ab");
  EXPECT_EQ(choice["logprobs"]["tokens"], (json{"a", "b", "<|endoftext|>"}));
  EXPECT_EQ(choice["logprobs"]["token_logprobs"], (json{nullptr, -3, -1}));
}

// Text that a stream has sent is not sent again.
TEST_F(Serve, AStreamThatBeginsAnewGoesOnWhereItWas) {
  const ServedModel model = bytes_model();
  auto stream = std::make_shared<CompletionStream>(
      read_completion(R"({"prompt": "a", "stream": true, "max_tokens": 3})", model), model, AnswerHead{});
  const std::vector<GenerationRow> rows = stream->rows();
  for (char c : std::string("bc")) rows[0].goes_on(c);
  rows[0].begins_anew();
  for (char c : std::string("bcd")) rows[0].goes_on(c);
  stream->finish(std::vector<Generation>(1), nullptr);
  std::string text, event;
  while (stream->next(event))
    if (event != "data: [DONE]\n\n") text += json::parse(event.substr(6))["choices"][0]["text"];
  EXPECT_EQ(text, "bcd");
}

}  // namespace
}  // namespace weft
