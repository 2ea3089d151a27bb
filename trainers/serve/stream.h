// A completion that is sent while it grows: server-sent events, as OpenAI's interface has them.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "trainers/serve/answer.h"

namespace weft::serve {

// Held by its reader and by the callbacks of its rows. The model must outlive it.
class CompletionStream : public std::enable_shared_from_this<CompletionStream> {
 public:
  CompletionStream(Completion completion, const ServedModel& model, AnswerHead head);

  std::vector<GenerationRow> rows();                                    // once: for the batcher
  void finish(std::vector<Generation> made, std::exception_ptr error);  // what the batcher calls when it is done
  // Waits for the next event; false behind the last.
  bool next(std::string& event);
  void leave();  // nobody reads any more: the rows end with their next token

 private:
  bool add(size_t row, int32_t id);
  void clear(size_t row);
  void send_choice(size_t row, std::string_view text, const char* finish_reason);

  const Completion completion_;
  const ServedModel& model_;
  const AnswerHead head_;
  CompletionRows rows_;
  std::vector<size_t> sent_;  // bytes of each row's text
  std::mutex mutex_;
  std::condition_variable came_;
  std::deque<std::string> events_;
  bool is_finished_ = false, was_left_ = false;
};

}  // namespace weft::serve
