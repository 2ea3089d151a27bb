#include "trainers/serve/api.h"

#include <atomic>
#include <ctime>
#include <nlohmann/json.hpp>

#include "trainers/serve/answer.h"
#include "trainers/serve/fields.h"
#include "trainers/serve/request_error.h"
#include "trainers/serve/stream.h"
#include "weft/core/error.h"

namespace weft::serve {

namespace {

using nlohmann::ordered_json;

HttpAnswer json(const ordered_json& value) {
  return {.body = value.dump(-1, ' ', false, ordered_json::error_handler_t::replace)};
}

// Ends the stream with its reader.
struct StreamReader {
  std::shared_ptr<CompletionStream> stream;
  explicit StreamReader(std::shared_ptr<CompletionStream> of) : stream(std::move(of)) {}
  StreamReader(const StreamReader&) = delete;
  StreamReader& operator=(const StreamReader&) = delete;
  ~StreamReader() { stream->leave(); }
};

HttpAnswer complete(const std::string& body, const ServedModel& model, Batcher& batcher) {
  static std::atomic<int64_t> count{0};
  Completion completion = read_completion(body, model);
  AnswerHead head{.id = str("cmpl-", ++count), .created = static_cast<int64_t>(std::time(nullptr))};
  if (!completion.stream) {
    const CompletionRows rows = rows_of(completion, model);
    const std::vector<Generation> made = batcher.ask(rows.rows);
    return {.body = answer_text(completion, model, rows, made, head)};
  }
  auto stream = std::make_shared<CompletionStream>(std::move(completion), model, std::move(head));
  batcher.submit(stream->rows(), [stream](std::vector<Generation> made, std::exception_ptr error) {
    stream->finish(std::move(made), error);
  });
  auto reader = std::make_shared<StreamReader>(std::move(stream));
  return {.events = [reader](std::string& event) { return reader->stream->next(event); }};
}

HttpAnswer tokenize(const std::string& body, const ServedModel& model) {
  const std::vector<std::string> known{"prompt", "model", "add_special_tokens"};
  const Fields fields(body, known);
  const auto prompt = fields.text("prompt");
  if (!prompt) throw RequestError(400, "there is no prompt; give a text", "prompt");
  fields.boolean("add_special_tokens");  // there are none to add
  std::vector<int32_t> ids;
  if (model.end_of_text && *prompt == kEndOfText) ids = {*model.end_of_text};
  else if (model.first_token && *prompt == kFirstToken) ids = {*model.first_token};
  else ids = model.encode(*prompt);
  return json({{"count", ids.size()}, {"max_model_len", model.context}, {"tokens", ids}});
}

HttpAnswer detokenize(const std::string& body, const ServedModel& model) {
  const std::vector<std::string> known{"tokens", "model"};
  const Fields fields(body, known);
  const nlohmann::json* tokens = fields.find("tokens");
  if (!tokens || !tokens->is_array()) throw RequestError(400, "there are no tokens; give a list of ids", "tokens");
  const std::vector<int32_t> ids = token_ids(*tokens, "tokens");
  for (int32_t id : ids)
    if (!model.has_id(id))
      throw RequestError(400, str("there is no id ", id, "; the model has ", model.tokenizer->vocab_size()), "tokens");
  return json({{"prompt", model.text(ids)}});
}

ordered_json name_or_null(const std::optional<int32_t>& id, std::string_view name) {
  return id ? ordered_json(name) : ordered_json();
}

}  // namespace

std::vector<HttpRoute> api_routes(const ServedModel& model, Batcher& batcher) {
  const auto started = static_cast<int64_t>(std::time(nullptr));
  return {
      {"GET", "/health",
       [&](const std::string&) {
         return json({{"status", "ok"}, {"model", model.name}, {"step", model.step}, {"waiting", batcher.waiting()}});
       }},
      {"GET", "/v1/models",
       [&, started](const std::string&) {
         const ordered_json one{{"id", model.name},
                                {"object", "model"},
                                {"created", started},
                                {"owned_by", "weft"},
                                {"max_model_len", model.context}};
         return json({{"object", "list"}, {"data", ordered_json::array({one})}});
       }},
      {"POST", "/v1/completions", [&](const std::string& body) { return complete(body, model, batcher); }},
      {"GET", "/tokenizer_info",
       [&](const std::string&) {
         return json({{"tokenizer_class", model.tokenizer->name()},
                      {"vocab_size", model.tokenizer->vocab_size()},
                      {"eos_token", name_or_null(model.end_of_text, kEndOfText)},
                      {"bos_token", name_or_null(model.first_token, kFirstToken)},
                      {"pad_token", nullptr},
                      {"chat_template", nullptr}});
       }},
      {"POST", "/tokenize", [&](const std::string& body) { return tokenize(body, model); }},
      {"POST", "/detokenize", [&](const std::string& body) { return detokenize(body, model); }},
  };
}

}  // namespace weft::serve
