#include "distributed/comm/thread_group.h"

#include "weft/core/error.h"

namespace weft::dist {

ThreadGroup::ThreadGroup(int size, std::string name, double timeout_s)
    : name_(std::move(name)),
      timeout_s_(timeout_s),
      visits_(static_cast<size_t>(size)),
      arrivals_(static_cast<size_t>(size)) {}

void ThreadGroup::require_running() const {
  if (aborted_) fail(str(name_, ": stopped, because ", *aborted_), "see the error of the rank that was first");
}

template <class Ready>
void ThreadGroup::wait(std::unique_lock<std::mutex>& lock, const std::string& for_what, Ready ready) {
  const bool came = changed_.wait_for(lock, std::chrono::duration<double>(timeout_s_),
                                      [&] { return aborted_.has_value() || ready(); });
  require_running();
  if (came) return;
  const std::string problem = str(name_, ": ", for_what, " for ", timeout_s_, " s");
  aborted_ = problem;
  changed_.notify_all();
  fail(problem, "look where that rank is; a longer time-out helps if it only works");
}

void ThreadGroup::gather(int rank, const std::string& doing) {
  std::unique_lock lock(mutex_);
  require_running();
  const uint64_t round = ++arrivals_[static_cast<size_t>(rank)];
  changed_.notify_all();
  auto absent = [&] {
    std::string ranks;
    for (size_t r = 0; r < arrivals_.size(); ++r)
      if (arrivals_[r] < round) ranks += str(ranks.empty() ? "" : ", ", r);
    return ranks;
  };
  if (absent().empty()) return;
  const Operation mine = visits_[static_cast<size_t>(rank)].operation;
  // The text is made for the time-out alone; it names who is absent then.
  const bool came = changed_.wait_for(lock, std::chrono::duration<double>(timeout_s_),
                                      [&] { return aborted_.has_value() || absent().empty(); });
  require_running();
  if (came) return;
  const std::string problem =
      str(name_, ": rank ", rank, " waited ", timeout_s_, " s for rank ", absent(), ", ", doing, ": ", mine);
  aborted_ = problem;
  changed_.notify_all();
  fail(problem, "look where that rank is; a longer time-out helps if it only works");
}

const std::vector<Visit>& ThreadGroup::meet(int rank, Visit visit) {
  {
    std::lock_guard lock(mutex_);
    visits_[static_cast<size_t>(rank)] = std::move(visit);
  }
  gather(rank, "coming to a collective");
  const Operation& first = visits_.front().operation;
  for (size_t r = 1; r < visits_.size(); ++r) {
    const Operation& other = visits_[r].operation;
    if (other.kind == first.kind && other.number == first.number && other.dtype == first.dtype &&
        other.count == first.count && other.root == first.root && other.reduce == first.reduce)
      continue;
    const std::string problem = str(name_, ": ranks disagree: rank 0 calls ", first, ", rank ", r, " calls ", other);
    abort(problem);
    fail(problem, "let all ranks call the same operations in the same order, with the same shapes");
  }
  return visits_;
}

std::shared_ptr<Message> ThreadGroup::send(int from, int to, const Tensor& tensor) {
  std::lock_guard lock(mutex_);
  require_running();
  auto message = std::make_shared<Message>(Message{tensor});
  mail_[{from, to}].push_back(message);
  changed_.notify_all();
  return message;
}

void ThreadGroup::receive(int from, int to, Tensor& into) {
  std::shared_ptr<Message> message;
  {
    std::unique_lock lock(mutex_);
    std::deque<std::shared_ptr<Message>>& box = mail_[{from, to}];
    wait(lock, str("rank ", to, " waited to receive ", into, " from rank ", from), [&] { return !box.empty(); });
    message = box.front();
    box.pop_front();
  }
  const Tensor& sent = message->tensor;
  if (sent.dtype() != into.dtype() || sent.num_elements() != into.num_elements()) {
    const std::string problem = str(name_, ": rank ", from, " sent ", sent, ", rank ", to, " receives ", into);
    abort(problem);
    fail(problem, "let both ranks name the same size and dtype");
  }
  into.set_bytes(sent.shape() == into.shape() ? sent : sent.reshape(into.shape()));
  std::lock_guard lock(mutex_);
  message->is_taken = true;
  changed_.notify_all();
}

void ThreadGroup::wait_until_taken(int rank, int to, const Message& message) {
  std::unique_lock lock(mutex_);
  wait(lock, str("rank ", rank, " waited for rank ", to, " to receive ", message.tensor),
       [&] { return message.is_taken; });
}

std::shared_ptr<ThreadGroup> ThreadGroup::child(uint64_t number, int color, int size, const std::string& name) {
  std::lock_guard lock(mutex_);
  require_running();
  std::shared_ptr<ThreadGroup>& child = children_[{number, color}];
  if (!child) child = std::make_shared<ThreadGroup>(size, name, timeout_s_);
  return child;
}

void ThreadGroup::abort(const std::string& why) noexcept {
  std::vector<std::shared_ptr<ThreadGroup>> children;
  {
    std::lock_guard lock(mutex_);
    if (!aborted_) aborted_ = why;
    for (const auto& [key, child] : children_) children.push_back(child);
    changed_.notify_all();
  }
  for (const auto& child : children) child->abort(why);
}

}  // namespace weft::dist
