// A completion put to the model as rows, and answered in JSON.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trainers/serve/completion.h"
#include "trainers/serve/generation.h"

namespace weft::serve {

// The text of one completion while it grows: finds the first of the `stop` texts.
class CompletionText {
 public:
  CompletionText(const ServedModel& model, const std::vector<std::string>& stop, bool follows_text)
      : model_(model), stop_(stop), follows_text_(follows_text) {}

  bool add(int32_t id);  // false: a stop text is complete
  void clear();          // of all ids
  bool was_stopped() const { return end_ != std::string::npos; }
  std::string_view text() const { return std::string_view(bytes_).substr(0, end_); }  // up to the stop text
  // The part of text() that no later token can take away: it does not end in the beginning of a stop text or of a character.
  std::string_view settled() const;
  // Of ids added, those that text() holds a part of, or that add nothing before its end.
  size_t num_tokens() const;

 private:
  const ServedModel& model_;
  const std::vector<std::string>& stop_;
  bool follows_text_;
  std::string bytes_;
  std::vector<size_t> begins_;  // of each id in bytes_
  size_t end_ = std::string::npos;
};

// The rows of a completion, prompt by prompt, and what watches each. The Completion must outlive them.
struct CompletionRows {
  std::vector<GenerationRow> rows;
  std::vector<std::shared_ptr<CompletionText>> texts;
};
CompletionRows rows_of(const Completion& completion, const ServedModel& model);

struct AnswerHead {
  std::string id;
  int64_t created = 0;  // seconds since 1970
};
std::string answer_text(const Completion& completion, const ServedModel& model, const CompletionRows& rows,
                        std::span<const Generation> made, const AnswerHead& head);

nlohmann::ordered_json usage_of(const Completion& completion, std::span<const Generation> made);

// The object of an error: {"error": {"message", "type", "param", "code"}}.
std::string error_text(int status, std::string_view message, std::string_view param = {});

}  // namespace weft::serve
