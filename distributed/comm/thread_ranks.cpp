// Ranks as threads of one process. A collective is a meeting: each rank shows where its tensors are, reads the others' and leaves when all
// have read. Of a reduction each rank sums its own share of the elements, in the order of ranks.
#include <algorithm>
#include <cstring>
#include <thread>

#include "distributed/comm/reduce.h"
#include "distributed/comm/thread_group.h"
#include "src/core/rank_memory.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/core/scope.h"

namespace weft::dist {

namespace {

const char* at(const void* memory, int64_t bytes) { return static_cast<const char*>(memory) + bytes; }
char* at(void* memory, int64_t bytes) { return static_cast<char*>(memory) + bytes; }
void copy(void* to, const void* from, int64_t bytes) {
  if (bytes) std::memcpy(to, from, static_cast<size_t>(bytes));
}

class ThreadTransfer final : public Transfer {
 public:
  ThreadTransfer(ThreadGroup& group, int rank, std::span<const Send> sends, std::span<const Receive> receives)
      : group_(group), rank_(rank) {
    for (const Receive& r : receives) receives_.emplace_back(r, group.expect(r.peer, rank));
    for (const Send& s : sends) sent_.emplace_back(s.peer, group.send(rank, s.peer, s.tensor));
  }
  void wait() override {
    for (auto& [receive, number] : receives_) group_.receive(receive.peer, rank_, number, receive.tensor);
    for (const auto& [peer, message] : sent_) group_.wait_until_taken(rank_, peer, *message);
    receives_.clear();
    sent_.clear();
  }

 private:
  ThreadGroup& group_;
  int rank_;
  std::vector<std::pair<Receive, uint64_t>> receives_;  // with the numbers of their messages
  std::vector<std::pair<int, std::shared_ptr<Message>>> sent_;
};

class ThreadRank final : public Communicator {
 public:
  ThreadRank(std::shared_ptr<ThreadGroup> group, std::shared_ptr<ThreadGroup> world, int rank)
      : Communicator(rank, group->size(), group->name()), group_(std::move(group)), world_(std::move(world)) {}
  void abort(std::string why) noexcept override { world_->abort(why); }

 private:
  void run(const Operation& operation, const void* from, void* to) override {
    Meeting meeting(*group_, rank(), {operation, from, to});
    const std::vector<Visit>& visits = meeting.visits();
    const auto bytes = static_cast<int64_t>(size_of(operation.dtype));
    const int64_t count = operation.count, part = count / size();
    switch (operation.kind) {
      case Collective::barrier:
      case Collective::split: break;
      case Collective::broadcast:
        if (rank() != operation.root) copy(to, visits[static_cast<size_t>(operation.root)].from, count * bytes);
        break;
      case Collective::all_reduce: all_reduce(operation, meeting, to); break;
      case Collective::all_gather:
        for (int r = 0; r < size(); ++r)
          copy(at(to, r * count * bytes), visits[static_cast<size_t>(r)].from, count * bytes);
        break;
      case Collective::reduce_scatter: reduce_share(operation, visits, rank() * part, (rank() + 1) * part, to); break;
      case Collective::all_to_all:
        for (int r = 0; r < size(); ++r)
          copy(at(to, r * part * bytes), at(visits[static_cast<size_t>(r)].from, rank() * part * bytes), part * bytes);
        break;
    }
    meeting.leave();
  }

  // The elements begin .. end - 1 of the result.
  void reduce_share(const Operation& operation, const std::vector<Visit>& visits, int64_t begin, int64_t end,
                    void* to) {
    std::vector<const void*> inputs;
    for (const Visit& visit : visits)
      inputs.push_back(at(visit.from, begin * static_cast<int64_t>(size_of(operation.dtype))));
    reduce_in_order(operation.dtype, operation.reduce, inputs, end - begin, to);
  }

  // In place: rank r reduces its share into its own tensor, where no other rank reads it before all are done.
  void all_reduce(const Operation& operation, Meeting& meeting, void* to) {
    const std::vector<Visit>& visits = meeting.visits();
    const int64_t count = operation.count, bytes = static_cast<int64_t>(size_of(operation.dtype));
    auto begin_of = [&](int r) { return count * r / size(); };
    const int64_t begin = begin_of(rank());
    reduce_share(operation, visits, begin, begin_of(rank() + 1), at(to, begin * bytes));
    meeting.wait_for_all();
    for (int r = 0; r < size(); ++r)
      if (r != rank())
        copy(at(to, begin_of(r) * bytes), at(visits[static_cast<size_t>(r)].from, begin_of(r) * bytes),
             (begin_of(r + 1) - begin_of(r)) * bytes);
  }

  std::unique_ptr<Transfer> start(std::span<const Send> sends, std::span<const Receive> receives) override {
    return std::make_unique<ThreadTransfer>(*group_, rank(), sends, receives);
  }

  std::unique_ptr<Communicator> split_off(const Operation& operation, int color, int key, std::string name) override {
    Meeting meeting(*group_, rank(), {operation, nullptr, nullptr, color, key});
    const std::vector<Visit>& visits = meeting.visits();
    std::vector<std::pair<int, int>> members;  // key, rank
    for (int r = 0; r < size(); ++r)
      if (visits[static_cast<size_t>(r)].color == color) members.emplace_back(visits[static_cast<size_t>(r)].key, r);
    std::sort(members.begin(), members.end());
    const auto me = std::find(members.begin(), members.end(), std::pair(key, rank())) - members.begin();
    std::vector<int> ranks;
    for (const auto& [member_key, r] : members) ranks.push_back(r);
    auto child = group_->child(operation.number, color, ranks, name);
    meeting.leave();
    return std::make_unique<ThreadRank>(std::move(child), world_, static_cast<int>(me));
  }

  std::shared_ptr<ThreadGroup> group_, world_;
};

std::string reason(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) { return e.problem(); } catch (const std::exception& e) {
    return e.what();
  } catch (...) { return "an unknown exception was thrown"; }
}

}  // namespace

void run_thread_ranks(int num_ranks, const std::function<void(Communicator&)>& f, ThreadRanksOptions options) {
  WEFT_CHECK(num_ranks >= 1, str("run_thread_ranks: ", num_ranks, " ranks"), "use at least one");
  WEFT_CHECK(options.timeout_s > 0, str("run_thread_ranks: time-out of ", options.timeout_s, " s"), "use more than 0");
  const int threads = options.threads_per_rank > 0 ? options.threads_per_rank : std::max(1, num_threads() / num_ranks);
  std::vector<int> all;
  for (int r = 0; r < num_ranks; ++r) all.push_back(r);
  auto group = std::make_shared<ThreadGroup>(all, "world", options.timeout_s, std::make_shared<WaitBoard>(num_ranks));
  const Device device = default_device();
  std::mutex mutex;
  std::exception_ptr first;
  auto run_rank = [&](int rank) {
    set_rank_label({.rank = rank, .size = num_ranks});
    set_num_threads(threads);
    set_default_device(device);
    set_memory_rank(rank + 1);
    allocator(Device::cpu()).reset_peak();
    if (device.is_cuda()) allocator(device).reset_peak();
    try {
      ThreadRank comm(group, group, rank);
      f(comm);
    } catch (...) {
      {
        std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
      group->abort(str("rank ", rank, " failed: ", reason(std::current_exception())));
    }
  };
  std::vector<std::thread> ranks;
  for (int r = 0; r < num_ranks; ++r) ranks.emplace_back(run_rank, r);
  for (std::thread& rank : ranks) rank.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace weft::dist
