#include "trainers/serve/batcher.h"

#include <algorithm>
#include <future>
#include <utility>

#include "trainers/console/stop_signal.h"
#include "trainers/serve/request_error.h"
#include "weft/core/error.h"

namespace weft::serve {

namespace {

constexpr auto kLook = std::chrono::milliseconds(50);

RequestError ending() { return {503, "the server is ending; start it again, then repeat the request"}; }

bool is_scored_only(const GenerationRow& row) { return row.max_tokens <= 1; }  // one forward, and no cache

}  // namespace

void Batcher::Ticket::finish(std::vector<Generation> results, std::exception_ptr problem) noexcept {
  const Done tell = std::exchange(done, {});
  if (!tell) return;
  try {
    tell(std::move(results), problem);
  } catch (...) {
    try {
      tell({}, std::current_exception());
    } catch (...) {}  // who asked cannot be told
  }
}

Batcher::Ticket::~Ticket() {
  if (done) finish({}, std::make_exception_ptr(ending()));
}

void Batcher::submit(std::vector<GenerationRow> rows, Done done) {
  auto ticket = std::make_shared<Ticket>();
  ticket->open = rows.size();
  ticket->made.resize(rows.size());
  ticket->rows = std::move(rows);
  {
    std::lock_guard lock(mutex_);
    if (is_closed_) throw ending();
    const auto waiting = static_cast<int64_t>(waiting_.size());
    if (waiting + static_cast<int64_t>(ticket->rows.size()) > options_.max_waiting)
      throw RequestError(
          503, str(waiting, " completions wait already, and ", options_.max_waiting, " may; repeat the request later"));
    ticket->done = std::move(done);
    for (size_t row = 0; row < ticket->rows.size(); ++row) waiting_.push_back({ticket, row, Clock::now()});
  }
  came_.notify_one();
}

std::vector<Generation> Batcher::ask(std::vector<GenerationRow> rows) {
  // Shared: who waits may be gone before the call that wakes it returns.
  auto result = std::make_shared<std::promise<std::vector<Generation>>>();
  submit(std::move(rows), [result](std::vector<Generation> made, std::exception_ptr error) {
    if (error) result->set_exception(error);
    else result->set_value(std::move(made));
  });
  return result->get_future().get();
}

int64_t Batcher::waiting() const {
  std::lock_guard lock(mutex_);
  return static_cast<int64_t>(waiting_.size());
}

std::vector<Batcher::Place> Batcher::next_batch(const std::function<bool()>& should_stop) {
  std::unique_lock lock(mutex_);
  if (!came_.wait_for(lock, kLook, [&] { return !waiting_.empty(); })) return {};
  const auto most = static_cast<size_t>(options_.max_batch);
  const auto until = waiting_.front().came +
                     std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options_.max_wait_s));
  while (waiting_.size() < most && Clock::now() < until && !should_stop())
    came_.wait_until(lock, std::min(until, Clock::now() + kLook), [&] { return waiting_.size() >= most; });
  auto kind = [](const Place& place) { return is_scored_only(place.ticket->rows[place.row]); };
  const bool first = kind(waiting_.front());
  std::vector<Place> batch;
  std::deque<Place> rest;
  for (Place& place : waiting_) {
    if (batch.size() < most && kind(place) == first) batch.push_back(std::move(place));
    else rest.push_back(std::move(place));
  }
  waiting_ = std::move(rest);
  return batch;
}

void Batcher::run(const std::vector<Place>& batch, const Generate& generate) {
  std::vector<Generation> made;
  std::exception_ptr error;
  try {
    std::vector<GenerationRow> rows;
    for (const Place& place : batch) rows.push_back(place.ticket->rows[place.row]);
    made = generate(rows);
  } catch (const train::Stopped&) { error = std::make_exception_ptr(ending()); } catch (...) {
    if (batch.size() > 1) return run_each(batch, generate);
    error = std::current_exception();
  }
  settle(batch, std::move(made), error);
}

void Batcher::run_each(const std::vector<Place>& batch, const Generate& generate) {
  for (const Place& place : batch) {
    if (place.ticket->error) {  // another row of the request ended it
      settle({place}, {}, place.ticket->error);
      continue;
    }
    if (const auto& begins_anew = place.ticket->rows[place.row].begins_anew) begins_anew();
    run({place}, generate);
  }
}

// An error ends all rows of the requests that it meets.
void Batcher::settle(const std::vector<Place>& places, std::vector<Generation> made, std::exception_ptr error) {
  std::vector<std::shared_ptr<Ticket>> finished;
  {
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < places.size(); ++i) {
      Ticket& ticket = *places[i].ticket;
      if (error) ticket.error = error;
      else ticket.made[places[i].row] = std::move(made[i]);
      if (--ticket.open == 0) finished.push_back(places[i].ticket);
    }
    if (error)
      std::erase_if(waiting_, [&](const Place& place) {
        if (!place.ticket->error) return false;
        if (--place.ticket->open == 0) finished.push_back(place.ticket);
        return true;
      });
  }
  for (const std::shared_ptr<Ticket>& ticket : finished) {
    ticket->finish(std::move(ticket->made), ticket->error);
    ticket->rows.clear();
  }
}

void Batcher::work(const Generate& generate, const std::function<bool()>& should_stop) {
  struct Closing {
    Batcher& batcher;
    ~Closing() { batcher.close(); }
  } closing{*this};
  while (!should_stop())
    if (const std::vector<Place> batch = next_batch(should_stop); !batch.empty()) run(batch, generate);
}

void Batcher::close() {
  std::deque<Place> left;
  {
    std::lock_guard lock(mutex_);
    is_closed_ = true;
    left = std::move(waiting_);
    waiting_.clear();
  }
  settle({left.begin(), left.end()}, {}, std::make_exception_ptr(ending()));
}

}  // namespace weft::serve
