#include "trainers/serve/answer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "weft/core/error.h"

namespace weft::serve {

bool CompletionText::add(int32_t id) {
  const size_t before = bytes_.size();
  bytes_ += model_.piece(id, begins_.empty() && !follows_text_);
  begins_.push_back(before);
  for (const std::string& stop : stop_)
    end_ = std::min(end_, bytes_.find(stop, before >= stop.size() ? before - stop.size() + 1 : 0));
  return !was_stopped();
}

void CompletionText::clear() { bytes_.clear(), begins_.clear(), end_ = std::string::npos; }

std::string_view CompletionText::settled() const {
  if (was_stopped()) return text();
  std::string_view bytes = bytes_;
  size_t end = bytes.size();
  for (const std::string& stop : stop_)
    for (size_t begin = bytes.size() - std::min(bytes.size(), stop.size() - 1); begin < end; ++begin)
      if (std::string_view(stop).starts_with(bytes.substr(begin))) end = begin;
  // The last character, if bytes of it are still to come.
  for (size_t back = 1; back <= std::min<size_t>(3, end); ++back) {
    const auto byte = static_cast<unsigned char>(bytes[end - back]);
    if ((byte & 0xc0) == 0x80) continue;
    const size_t length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    if (length > back) end -= back;
    break;
  }
  return bytes.substr(0, end);
}

size_t CompletionText::num_tokens() const {
  return static_cast<size_t>(std::count_if(begins_.begin(), begins_.end(), [&](size_t begin) { return begin < end_; }));
}

CompletionRows rows_of(const Completion& c, const ServedModel& model) {
  CompletionRows all;
  for (const std::vector<int32_t>& prompt : c.prompts)
    for (int64_t copy = 0; copy < c.n; ++copy) {
      all.texts.push_back(std::make_shared<CompletionText>(model, c.stop, c.echo && !prompt.empty()));
      GenerationRow row{.prompt = prompt,
                        .max_tokens = c.max_tokens,
                        .temperature = c.temperature,
                        .top_p = c.top_p,
                        .seed = Rng(c.seed)[static_cast<uint64_t>(copy)].key(),
                        .scores_prompt = c.echo && c.logprobs,
                        .top = c.logprobs,
                        .goes_on = [text = all.texts.back()](int32_t id) { return text->add(id); },
                        .begins_anew = [text = all.texts.back()] { text->clear(); }};
      if (model.adds_first_token(prompt)) row.prompt.insert(row.prompt.begin(), *model.first_token);
      all.rows.push_back(std::move(row));
    }
  return all;
}

namespace {

using nlohmann::ordered_json;

// The lists of `logprobs`, token by token.
class TokenLists {
 public:
  explicit TokenLists(const ServedModel& model) : model_(model) {
    for (const char* name : {"tokens", "token_logprobs", "top_logprobs", "text_offset"})
      lists_[name] = ordered_json::array();
  }

  // score null: nothing was predicted there.
  void add(int32_t id, const TokenScore* score) {
    lists_["tokens"].push_back(model_.token_name(id));
    lists_["text_offset"].push_back(characters_);
    const std::string piece = model_.piece(id, is_empty_);
    characters_ += count_characters(piece), is_empty_ = is_empty_ && piece.empty();
    if (!score) {
      lists_["token_logprobs"].push_back(nullptr), lists_["top_logprobs"].push_back(nullptr);
      return;
    }
    lists_["token_logprobs"].push_back(score->logprob);
    auto top = ordered_json::object();
    auto put = [&](int32_t other, double logprob) {
      const std::string name = model_.token_name(other);
      top[top.contains(name) ? str("token_id:", other) : name] = logprob;
    };
    bool is_among = false;
    for (const auto& [other, logprob] : score->top) put(other, logprob), is_among = is_among || other == id;
    if (!is_among) put(id, score->logprob);
    lists_["top_logprobs"].push_back(std::move(top));
  }
  ordered_json take() { return std::move(lists_); }

 private:
  const ServedModel& model_;
  ordered_json lists_ = ordered_json::object();
  int64_t characters_ = 0;
  bool is_empty_ = true;  // the text so far
};

ordered_json logprobs_of(const Completion& c, const ServedModel& model, const std::vector<int32_t>& prompt,
                         const Generation& made, const CompletionText& text) {
  if (!c.logprobs) return nullptr;
  TokenLists lists(model);
  const size_t unscored = model.adds_first_token(prompt) ? 0 : 1;
  for (size_t i = 0; c.echo && i < prompt.size(); ++i)
    lists.add(prompt[i], i == 0 ? nullptr : &made.prompt_scores[i - unscored]);
  for (size_t i = 0; i < text.num_tokens(); ++i) lists.add(made.ids[i], &made.scores[i]);
  // Programs that ask for one token beyond the prompt, to read the prompt's, take the last of the lists for it.
  if (made.end_score) lists.add(*model.end_of_text, &*made.end_score);
  return lists.take();
}

}  // namespace

nlohmann::ordered_json usage_of(const Completion& c, std::span<const Generation> made) {
  size_t read = 0, written = 0;
  for (const std::vector<int32_t>& prompt : c.prompts) read += prompt.size();
  for (const Generation& one : made) written += one.ids.size();
  return {{"prompt_tokens", read}, {"completion_tokens", written}, {"total_tokens", read + written}};
}

std::string answer_text(const Completion& c, const ServedModel& model, const CompletionRows& rows,
                        std::span<const Generation> made, const AnswerHead& head) {
  auto choices = ordered_json::array();
  for (size_t i = 0; i < made.size(); ++i) {
    const std::vector<int32_t>& prompt = c.prompts[i / static_cast<size_t>(c.n)];
    const CompletionText& text = *rows.texts[i];
    choices.push_back({{"index", i},
                       {"text", (c.echo ? model.text(prompt) : "") + std::string(text.text())},
                       {"logprobs", logprobs_of(c, model, prompt, made[i], text)},
                       {"finish_reason", made[i].ended ? "stop" : "length"}});
  }
  const ordered_json answer{{"id", head.id},       {"object", "text_completion"},   {"created", head.created},
                            {"model", model.name}, {"choices", std::move(choices)}, {"usage", usage_of(c, made)}};
  return answer.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

std::string error_text(int status, std::string_view message, std::string_view param) {
  const char* type = status >= 500 ? "server_error" : status == 404 ? "not_found_error" : "invalid_request_error";
  const ordered_json error{{"message", message},
                           {"type", type},
                           {"param", param.empty() ? ordered_json() : ordered_json(param)},
                           {"code", status}};
  return ordered_json{{"error", error}}.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace weft::serve
