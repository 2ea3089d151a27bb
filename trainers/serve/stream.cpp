#include "trainers/serve/stream.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "trainers/serve/request_error.h"

namespace weft::serve {

namespace {

using nlohmann::ordered_json;

std::string event_of(const ordered_json& value) {
  return "data: " + value.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n\n";
}

}  // namespace

CompletionStream::CompletionStream(Completion completion, const ServedModel& model, AnswerHead head)
    : completion_(std::move(completion)),
      model_(model),
      head_(std::move(head)),
      rows_(rows_of(completion_, model)),
      sent_(rows_.rows.size(), 0) {
  for (size_t row = 0; completion_.echo && row < rows_.rows.size(); ++row)
    send_choice(row, model.text(completion_.prompts[row / static_cast<size_t>(completion_.n)]), nullptr);
}

std::vector<GenerationRow> CompletionStream::rows() {
  std::vector<GenerationRow> rows = std::move(rows_.rows);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].goes_on = [self = shared_from_this(), i](int32_t id) { return self->add(i, id); };
    rows[i].begins_anew = [self = shared_from_this(), i] { self->clear(i); };
  }
  return rows;
}

bool CompletionStream::add(size_t row, int32_t id) {
  std::lock_guard lock(mutex_);
  CompletionText& text = *rows_.texts[row];
  const bool goes_on = text.add(id);
  const std::string_view settled = text.settled();
  if (settled.size() > sent_[row]) send_choice(row, settled.substr(sent_[row]), nullptr);
  sent_[row] = std::max(sent_[row], settled.size());
  came_.notify_one();
  return goes_on && !was_left_;
}

// What was sent stays so: the row's seed gives the same text again.
void CompletionStream::clear(size_t row) {
  std::lock_guard lock(mutex_);
  rows_.texts[row]->clear();
}

void CompletionStream::send_choice(size_t row, std::string_view text, const char* finish_reason) {
  const ordered_json choice{{"index", row},
                            {"text", text},
                            {"logprobs", nullptr},
                            {"finish_reason", finish_reason ? ordered_json(finish_reason) : ordered_json()}};
  events_.push_back(event_of({{"id", head_.id},
                              {"object", "text_completion"},
                              {"created", head_.created},
                              {"model", model_.name},
                              {"choices", ordered_json::array({choice})}}));
}

void CompletionStream::finish(std::vector<Generation> made, std::exception_ptr error) {
  std::lock_guard lock(mutex_);
  if (error) {
    try {
      std::rethrow_exception(error);
    } catch (const RequestError& e) {
      events_.push_back("data: " + error_text(e.status, e.message, e.param) + "\n\n");
    } catch (const std::exception& e) { events_.push_back("data: " + error_text(500, e.what()) + "\n\n"); }
  }
  for (size_t row = 0; !error && row < made.size(); ++row) {
    const std::string_view text = rows_.texts[row]->text();
    send_choice(row, text.substr(std::min(sent_[row], text.size())), made[row].ended ? "stop" : "length");
  }
  if (!error && completion_.streams_usage) {
    const ordered_json usage = usage_of(completion_, made);
    events_.push_back(event_of({{"id", head_.id},
                                {"object", "text_completion"},
                                {"created", head_.created},
                                {"model", model_.name},
                                {"choices", ordered_json::array()},
                                {"usage", usage}}));
  }
  events_.push_back("data: [DONE]\n\n");
  is_finished_ = true;
  came_.notify_one();
}

bool CompletionStream::next(std::string& event) {
  std::unique_lock lock(mutex_);
  came_.wait(lock, [&] { return is_finished_ || !events_.empty(); });
  if (events_.empty()) return false;
  event = std::move(events_.front());
  events_.pop_front();
  return true;
}

void CompletionStream::leave() {
  std::lock_guard lock(mutex_);
  was_left_ = true;
}

}  // namespace weft::serve
