#include "trainers/serve/completion.h"

#include <algorithm>
#include <limits>

#include "trainers/serve/fields.h"
#include "trainers/serve/request_error.h"
#include "weft/core/error.h"

namespace weft::serve {

namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr int64_t kMostCopies = 128, kMostLogprobs = 20;
constexpr size_t kMostChoices = 1024, kMostStops = 64, kLongestStop = 1000;
// Of one request, which is held whole until its last completion is there: an answer takes about 100 bytes for each log probability.
constexpr int64_t kMostScores = int64_t{1} << 20, kMostTokens = int64_t{1} << 24;

const std::vector<std::string> kFields{"model", "prompt", "n", "max_tokens", "echo", "logprobs", "stop", "temperature",
                                       "top_p", "seed", "stream", "stream_options", "user",
                                       // taken where they ask for nothing
                                       "best_of", "frequency_penalty", "presence_penalty", "logit_bias", "suffix"};

std::vector<std::vector<int32_t>> read_prompts(const Fields& fields, const ServedModel& model) {
  const json* prompt = fields.find("prompt");
  if (!prompt) throw RequestError(400, "there is no prompt; give a text, token ids, or a list of either", "prompt");
  auto one = [&](const json& value, const std::string& name) {
    if (value.is_string()) return model.encode(value.get<std::string>());
    return token_ids(value, name);
  };
  std::vector<std::vector<int32_t>> prompts;
  const bool is_list =
      prompt->is_array() && !prompt->empty() && (prompt->front().is_string() || prompt->front().is_array());
  if (is_list) {
    // Before texts are encoded, which takes long.
    if (prompt->size() > kMostChoices)
      throw RequestError(
          400,
          str("there are ", prompt->size(), " prompts; give at most ", kMostChoices, ", and send several requests"),
          "prompt");
    for (const json& value : *prompt) {
      if (value.type() != prompt->front().type())
        throw RequestError(400,
                           str(shown(str("prompt[", prompts.size(), "]"), value), ", and prompt[0] is a JSON ",
                               prompt->front().type_name(), "; give all as texts, or all as lists of ids"),
                           "prompt");
      prompts.push_back(one(value, str("prompt[", prompts.size(), "]")));
    }
  } else if (prompt->is_string() || prompt->is_array()) {
    prompts.push_back(one(*prompt, "prompt"));
  } else {
    throw RequestError(400, shown("prompt", *prompt) + "; give a text, token ids, or a list of either", "prompt");
  }
  return prompts;
}

void check_prompts(const Completion& c, const ServedModel& model) {
  for (size_t i = 0; i < c.prompts.size(); ++i) {
    const std::vector<int32_t>& prompt = c.prompts[i];
    const std::string name = c.prompts.size() > 1 ? str("prompt[", i, "]") : "prompt";
    if (prompt.empty() && !model.first_token)
      throw RequestError(400,
                         name + " has no tokens; give at least one" +
                             (model.end_of_text ? str(", such as the end of text, [", *model.end_of_text, "]") : ""),
                         "prompt");
    for (int32_t id : prompt)
      if (!model.has_id(id))
        throw RequestError(400,
                           str(name, " has id ", id, ", and the model has ", model.tokenizer->vocab_size(),
                               " ids; encode it with the run's tokenizer, such as by /tokenize"),
                           "prompt");
  }
}

int64_t tokens_read(const std::vector<int32_t>& prompt, const ServedModel& model) {
  return static_cast<int64_t>(prompt.size()) + (model.adds_first_token(prompt) ? 1 : 0);
}

// How many new tokens the longest prompt leaves room for: the last one is not read.
int64_t check_room(const Completion& c, std::optional<int64_t> max_tokens, const ServedModel& model) {
  if (!model.can_continue && max_tokens.value_or(0) > 1)
    throw RequestError(400,
                       str("max_tokens is ", *max_tokens, ", and this model continues a prompt by one token at most; ",
                           "ask for 0 or 1"),
                       "max_tokens");
  int64_t room = model.can_continue ? std::numeric_limits<int64_t>::max() : 1;
  for (size_t i = 0; i < c.prompts.size(); ++i) {
    const int64_t read = tokens_read(c.prompts[i], model);
    room = std::min(room, model.context - read + 1);
    if (room >= std::max<int64_t>(1, max_tokens.value_or(0))) continue;
    const std::string name = c.prompts.size() > 1 ? str("prompt[", i, "]") : "the prompt";
    throw RequestError(400,
                       read > model.context ? str(name, " has ", read, " tokens, and the model reads ", model.context,
                                                  "; shorten it, or start the server with --context ", read)
                                            : str(name, " has ", read, " tokens and max_tokens is ", *max_tokens,
                                                  ", and the model reads ", model.context,
                                                  " tokens; shorten it, or ask for at most ", room),
                       read > model.context ? "prompt" : "max_tokens");
  }
  return room;
}

// Few bytes of a request can ask for an answer that no memory holds.
void check_answer(const Completion& c, const ServedModel& model) {
  int64_t held = 0, shown = 0;  // tokens of all completions
  for (const std::vector<int32_t>& prompt : c.prompts) {
    held += c.n * (tokens_read(prompt, model) + c.max_tokens);
    shown += c.n * ((c.echo ? static_cast<int64_t>(prompt.size()) : 0) + c.max_tokens);
  }
  const std::string asked = str(c.prompts.size(), c.prompts.size() > 1 ? " prompts" : " prompt", ", n ", c.n,
                                " and max_tokens ", c.max_tokens, c.echo ? " with echo" : "");
  if (held > kMostTokens)
    throw RequestError(400,
                       str(asked, " are up to ", held, " tokens, and a request has at most ", kMostTokens,
                           "; lower n or max_tokens, or send several requests"),
                       "max_tokens");
  const int64_t scores = c.logprobs ? shown * (1 + *c.logprobs) : 0;
  if (scores > kMostScores)
    throw RequestError(400,
                       str(asked, " are up to ", shown, " tokens, with logprobs ", *c.logprobs, " up to ", scores,
                           " log probabilities, and an answer has at most ", kMostScores,
                           "; lower logprobs, n or max_tokens, or send several requests"),
                       "logprobs");
}

std::vector<std::string> read_stop(const Fields& fields) {
  const json* value = fields.find("stop");
  if (!value) return {};
  std::vector<std::string> stop;
  auto add = [&](const json& text) {
    const std::string name = value->is_array() ? str("stop[", stop.size(), "]") : "stop";
    if (!text.is_string() || text.get_ref<const std::string&>().empty() ||
        text.get_ref<const std::string&>().size() > kLongestStop)
      throw RequestError(400, str(shown(name, text), "; give a text of 1 to ", kLongestStop, " bytes"), "stop");
    stop.push_back(text.get<std::string>());
  };
  if (!value->is_array()) add(*value);
  else if (value->size() > kMostStops)
    throw RequestError(400, str("stop has ", value->size(), " texts; give at most ", kMostStops), "stop");
  else
    for (const json& text : *value) add(text);
  return stop;
}

// Fields of the interface that are there for other models: only the value that changes nothing is taken.
void check_unused(const Fields& fields, int64_t n) {
  auto refuse = [&](const std::string& name, const std::string& only) {
    throw RequestError(
        400, str(shown(name, *fields.find(name)), ", which is not supported; leave it out or give ", only), name);
  };
  if (fields.find("best_of") && fields.integer("best_of", 1, kMostCopies) != n)
    refuse("best_of", str("n, which is ", n));
  for (const char* name : {"frequency_penalty", "presence_penalty"})
    if (fields.find(name) && fields.number(name, -2, 2) != 0.0) refuse(name, "0");
  if (const json* bias = fields.find("logit_bias"); bias && !(bias->is_object() && bias->empty()))
    refuse("logit_bias", "{}");
  if (fields.find("suffix") && fields.text("suffix") != "") refuse("suffix", "\"\"");
  fields.text("user");  // names whoever asks; nothing depends on it
}

void read_stream(const Fields& fields, Completion& c) {
  c.stream = fields.boolean("stream").value_or(false);
  const json* options = fields.find("stream_options");
  if (!options) return;
  const bool is_known =
      options->is_object() && (options->empty() || (options->size() == 1 && options->contains("include_usage") &&
                                                    (*options)["include_usage"].is_boolean()));
  if (!c.stream || !is_known)
    throw RequestError(
        400, shown("stream_options", *options) + "; give {\"include_usage\": true} together with \"stream\": true",
        "stream_options");
  c.streams_usage = options->value("include_usage", false);
}

std::optional<uint64_t> read_seed(const Fields& fields) {
  const json* value = fields.find("seed");
  if (!value) return {};
  if (!value->is_number_integer()) throw RequestError(400, shown("seed", *value) + "; give a whole number", "seed");
  return value->is_number_unsigned() ? value->get<uint64_t>() : static_cast<uint64_t>(value->get<int64_t>());
}

}  // namespace

Completion read_completion(std::string_view body, const ServedModel& model) {
  const Fields fields(body, kFields);
  if (const auto name = fields.text("model"); name && *name != model.name && *name != model.address)
    throw RequestError(404,
                       str("there is no model '", data::show_utf8(name->substr(0, 200)), "' here; name '", model.name,
                           "', or leave the field out"),
                       "model");
  Completion c;
  c.prompts = read_prompts(fields, model);
  c.n = fields.integer("n", 1, kMostCopies).value_or(1);
  if (c.prompts.size() * static_cast<size_t>(c.n) > kMostChoices)
    throw RequestError(400,
                       str(c.prompts.size(), " prompts and n ", c.n, " ask for more than ", kMostChoices,
                           " completions; send several requests"),
                       "prompt");
  check_unused(fields, c.n);
  check_prompts(c, model);
  const auto max_tokens = fields.integer("max_tokens", 0, std::numeric_limits<int32_t>::max());
  const int64_t room = check_room(c, max_tokens, model);
  c.max_tokens = max_tokens.value_or(std::min<int64_t>(c.max_tokens, room));
  c.echo = fields.boolean("echo").value_or(false);
  c.logprobs = fields.integer("logprobs", 0, kMostLogprobs);
  check_answer(c, model);
  c.stop = read_stop(fields);
  c.temperature = fields.number("temperature", 0, 1000).value_or(1);
  c.top_p = fields.number("top_p", 0, 1).value_or(1);
  if (c.top_p == 0) throw RequestError(400, "top_p is 0; give a number above 0, at most 1, or temperature 0", "top_p");
  c.seed = read_seed(fields).value_or(1);
  read_stream(fields, c);
  if (c.stream && c.logprobs)
    throw RequestError(400, "logprobs are not sent with \"stream\": true; leave one of them out", "logprobs");
  return c;
}

}  // namespace weft::serve
