#include "distributed/comm/thread_group.h"

#include <algorithm>
#include <utility>

#include "weft/core/error.h"
#include "weft/core/scope.h"
#include "weft/core/stream.h"

namespace weft::dist {

namespace {
// Where the module runs that waits: other ranks print it too.
std::string at_path() {
  const std::string path = Scope::path();
  return path.empty() ? "" : " at " + path;
}
}  // namespace

ThreadGroup::ThreadGroup(std::vector<int> members, std::string name, double timeout_s, std::shared_ptr<WaitBoard> board)
    : members_(std::move(members)),
      name_(std::move(name)),
      timeout_s_(timeout_s),
      board_(std::move(board)),
      visits_(members_.size()),
      arrivals_(members_.size()) {}

void ThreadGroup::require_running() const {
  if (aborted_) fail(str(name_, ": stopped, because ", *aborted_), "see the error of the rank that was first");
}

template <class Ready, class Says>
void ThreadGroup::wait(std::unique_lock<std::mutex>& lock, int rank, const Operation* collective, int peer, Ready ready,
                       Says waiting_for) {
  require_running();
  if (ready()) return;
  const int of_world = members_[static_cast<size_t>(rank)];
  WaitBoard::Entry entry(*board_, of_world, collective, members_[static_cast<size_t>(peer)]);
  const bool came = changed_.wait_for(lock, std::chrono::duration<double>(timeout_s_),
                                      [&] { return aborted_.has_value() || ready(); });
  require_running();
  if (came) return;
  const std::string problem = str(name_, ": ", waiting_for(), board_->others(of_world));
  aborted_ = problem;
  changed_.notify_all();
  fail(problem, "look where the rank is that is in no call; a longer time-out helps if it only works");
}

void ThreadGroup::come(int rank, Visit visit) {
  std::lock_guard lock(mutex_);
  visits_[static_cast<size_t>(rank)] = std::move(visit);
}

void ThreadGroup::gather(int rank, const char* doing, bool reads_then) {
  std::unique_lock lock(mutex_);
  require_running();
  const uint64_t round = ++arrivals_[static_cast<size_t>(rank)];
  changed_.notify_all();
  auto are_all_here = [&] {
    return std::all_of(arrivals_.begin(), arrivals_.end(), [&](uint64_t arrived) { return arrived >= round; });
  };
  const Operation& mine = visits_[static_cast<size_t>(rank)].operation;
  wait(lock, rank, &mine, 0, are_all_here, [&] {
    std::string absent;
    for (size_t r = 0; r < arrivals_.size(); ++r)
      if (arrivals_[r] < round) absent += str(absent.empty() ? "" : ", ", r);
    return str("rank ", rank, " waited ", timeout_s_, " s for rank ", absent, ", ", doing, ": ", mine);
  });
  if (reads_then) ++num_reading_;
}

void ThreadGroup::end_reading() {
  std::lock_guard lock(mutex_);
  --num_reading_;
  changed_.notify_all();
}

// They copy and add, and wait for nobody.
void ThreadGroup::wait_for_readers() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return num_reading_ == 0; });
}

Meeting::Reading::~Reading() {
  if (have_all_ended_) return;
  if (is_on_) group_.end_reading();
  group_.wait_for_readers();
}

void Meeting::Reading::begin_after(const char* doing) {
  group_.gather(rank_, doing, true);
  is_on_ = true;
}

void Meeting::Reading::pause(const char* doing) {
  is_on_ = false;
  group_.end_reading();
  begin_after(doing);
}

void Meeting::Reading::end_before(const char* doing) {
  is_on_ = false;
  group_.end_reading();
  group_.gather(rank_, doing, false);
  have_all_ended_ = true;
}

Meeting::Meeting(ThreadGroup& group, int rank, Visit visit) : group_(group), reading_(group, rank) {
  group.come(rank, std::move(visit));
  reading_.begin_after("coming to a collective");
  require_agreement();
}

void Meeting::require_agreement() {
  const Operation& first = visits().front().operation;
  for (size_t r = 1; r < visits().size(); ++r) {
    const Operation& other = visits()[r].operation;
    if (other.kind == first.kind && other.number == first.number && other.dtype == first.dtype &&
        other.count == first.count && other.root == first.root && other.reduce == first.reduce)
      continue;
    const std::string problem =
        str(group_.name(), ": ranks disagree: rank 0 calls ", first, ", rank ", r, " calls ", other);
    group_.abort(problem);
    fail(problem, "let all ranks call the same operations in the same order, with the same shapes");
  }
}

void Meeting::wait_for_all() { reading_.pause("in a collective"); }
void Meeting::leave() { reading_.end_before("leaving a collective"); }

std::shared_ptr<Message> ThreadGroup::send(int from, int to, const Tensor& tensor) {
  synchronize(tensor.device());  // another thread will read it on a stream of its own
  std::lock_guard lock(mutex_);
  require_running();
  auto message = std::make_shared<Message>(Message{tensor});
  Mail& mail = mail_[{from, to}];
  mail.messages.emplace(mail.num_sent++, message);
  changed_.notify_all();
  return message;
}

uint64_t ThreadGroup::expect(int from, int to) {
  std::lock_guard lock(mutex_);
  return mail_[{from, to}].num_expected++;
}

void ThreadGroup::receive(int from, int to, uint64_t number, Tensor& into) {
  std::shared_ptr<Message> message;
  {
    std::unique_lock lock(mutex_);
    std::map<uint64_t, std::shared_ptr<Message>>& messages = mail_[{from, to}].messages;
    wait(
        lock, to, nullptr, from, [&] { return messages.contains(number); },
        [&] {
          return str("rank ", to, " waited ", timeout_s_, " s to receive ", into, " from rank ", from, at_path());
        });
    message = std::move(messages.extract(number).mapped());
  }
  const Tensor& sent = message->tensor;
  if (sent.dtype() != into.dtype() || sent.num_elements() != into.num_elements()) {
    const std::string problem = str(name_, ": rank ", from, " sent ", sent, ", rank ", to, " receives ", into);
    abort(problem);
    fail(problem, "let both ranks name the same size and dtype");
  }
  into.set_bytes(sent.shape() == into.shape() ? sent : sent.reshape(into.shape()));
  synchronize(into.device());  // before the sender may write what was sent
  std::lock_guard lock(mutex_);
  message->is_taken = true;
  changed_.notify_all();
}

void ThreadGroup::wait_until_taken(int rank, int to, const Message& message) {
  std::unique_lock lock(mutex_);
  wait(
      lock, rank, nullptr, to, [&] { return message.is_taken; },
      [&] {
        return str("rank ", rank, " waited ", timeout_s_, " s for rank ", to, " to receive ", message.tensor,
                   at_path());
      });
}

std::shared_ptr<ThreadGroup> ThreadGroup::child(uint64_t number, int color, const std::vector<int>& ranks,
                                                const std::string& name) {
  std::lock_guard lock(mutex_);
  require_running();
  std::shared_ptr<ThreadGroup>& child = children_[{number, color}];
  if (!child) {
    std::vector<int> members;
    for (int r : ranks) members.push_back(members_[static_cast<size_t>(r)]);
    child = std::make_shared<ThreadGroup>(std::move(members), name, timeout_s_, board_);
  }
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
