// Ranks as threads of one process. A collective is a meeting: each rank shows where its tensors are, reads the others' and leaves when all
// have read. Of a reduction each rank sums its own share of the elements, in the order of ranks.
#include <algorithm>
#include <cstring>
#include <thread>

#include "distributed/comm/thread_group.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/core/scope.h"

namespace weft::dist {

namespace {

template <class T>
auto reduced(Reduce reduce, std::span<const T* const> inputs, int64_t i) {
  using Sum = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;
  Sum result = static_cast<Sum>(inputs[0][i]);
  for (size_t r = 1; r < inputs.size(); ++r) {
    const Sum x = static_cast<Sum>(inputs[r][i]);
    switch (reduce) {
      case Reduce::sum: result = static_cast<Sum>(result + x); break;
      case Reduce::max: result = std::max(result, x); break;
      case Reduce::min: result = std::min(result, x); break;
    }
  }
  return static_cast<T>(result);
}

// to[i - begin] of the elements begin .. end - 1 of all ranks' tensors.
void reduce_range(DType dtype, Reduce reduce, const std::vector<Visit>& visits, int64_t begin, int64_t end, void* to) {
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t, bool>(dtype, "all_reduce", [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<const T*> inputs;
    for (const Visit& visit : visits) inputs.push_back(static_cast<const T*>(visit.from));
    for (int64_t i = begin; i < end; ++i)
      static_cast<T*>(to)[i - begin] = reduced<T>(reduce, std::span<const T* const>(inputs), i);
  });
}

const char* at(const void* memory, int64_t bytes) { return static_cast<const char*>(memory) + bytes; }
char* at(void* memory, int64_t bytes) { return static_cast<char*>(memory) + bytes; }
void copy(void* to, const void* from, int64_t bytes) {
  if (bytes) std::memcpy(to, from, static_cast<size_t>(bytes));
}

class ThreadTransfer final : public Transfer {
 public:
  ThreadTransfer(ThreadGroup& group, int rank, std::span<const Send> sends, std::span<const Receive> receives)
      : group_(group), rank_(rank), receives_(receives.begin(), receives.end()) {
    for (const Send& s : sends) sent_.emplace_back(s.peer, group.send(rank, s.peer, s.tensor));
  }
  void wait() override {
    for (Receive& r : receives_) group_.receive(r.peer, rank_, r.tensor);
    for (const auto& [peer, message] : sent_) group_.wait_until_taken(rank_, peer, *message);
    receives_.clear();
    sent_.clear();
  }

 private:
  ThreadGroup& group_;
  int rank_;
  std::vector<Receive> receives_;
  std::vector<std::pair<int, std::shared_ptr<Message>>> sent_;
};

class ThreadRank final : public Communicator {
 public:
  ThreadRank(std::shared_ptr<ThreadGroup> group, int rank)
      : Communicator(rank, group->size(), group->name()), group_(std::move(group)) {}
  void abort(std::string why) noexcept override { group_->abort(why); }

 private:
  void run(const Operation& operation, const void* from, void* to) override {
    const std::vector<Visit>& visits = group_->meet(rank(), {operation, from, to});
    const auto bytes = static_cast<int64_t>(size_of(operation.dtype));
    const int64_t count = operation.count, part = count / size();
    switch (operation.kind) {
      case Collective::barrier:
      case Collective::split: break;
      case Collective::broadcast:
        if (rank() != operation.root) copy(to, visits[static_cast<size_t>(operation.root)].from, count * bytes);
        break;
      case Collective::all_reduce: all_reduce(operation, visits, to); break;
      case Collective::all_gather:
        for (int r = 0; r < size(); ++r)
          copy(at(to, r * count * bytes), visits[static_cast<size_t>(r)].from, count * bytes);
        break;
      case Collective::reduce_scatter:
        reduce_range(operation.dtype, operation.reduce, visits, rank() * part, (rank() + 1) * part, to);
        break;
      case Collective::all_to_all:
        for (int r = 0; r < size(); ++r)
          copy(at(to, r * part * bytes), at(visits[static_cast<size_t>(r)].from, rank() * part * bytes), part * bytes);
        break;
    }
    group_->leave(rank());
  }

  // In place: rank r writes the sums of its share into its own tensor, where no other rank reads them before all are done.
  void all_reduce(const Operation& operation, const std::vector<Visit>& visits, void* to) {
    const int64_t count = operation.count, bytes = static_cast<int64_t>(size_of(operation.dtype));
    auto begin_of = [&](int r) { return count * r / size(); };
    const int64_t begin = begin_of(rank()), end = begin_of(rank() + 1);
    std::vector<char> sums(static_cast<size_t>((end - begin) * bytes));
    reduce_range(operation.dtype, operation.reduce, visits, begin, end, sums.data());
    copy(at(to, begin * bytes), sums.data(), (end - begin) * bytes);
    group_->wait_for_all(rank());
    for (int r = 0; r < size(); ++r)
      if (r != rank())
        copy(at(to, begin_of(r) * bytes), at(visits[static_cast<size_t>(r)].from, begin_of(r) * bytes),
             (begin_of(r + 1) - begin_of(r)) * bytes);
  }

  std::unique_ptr<Transfer> start(std::span<const Send> sends, std::span<const Receive> receives) override {
    return std::make_unique<ThreadTransfer>(*group_, rank(), sends, receives);
  }

  std::unique_ptr<Communicator> split_off(const Operation& operation, int color, int key, std::string name) override {
    const std::vector<Visit>& visits = group_->meet(rank(), {operation, nullptr, nullptr, color, key});
    std::vector<std::pair<int, int>> members;  // key, rank
    for (int r = 0; r < size(); ++r)
      if (visits[static_cast<size_t>(r)].color == color) members.emplace_back(visits[static_cast<size_t>(r)].key, r);
    std::sort(members.begin(), members.end());
    const auto me = std::find(members.begin(), members.end(), std::pair(key, rank())) - members.begin();
    auto child = group_->child(operation.number, color, static_cast<int>(members.size()), name);
    group_->leave(rank());
    return std::make_unique<ThreadRank>(std::move(child), static_cast<int>(me));
  }

  std::shared_ptr<ThreadGroup> group_;
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
  auto group = std::make_shared<ThreadGroup>(num_ranks, "world", options.timeout_s);
  std::mutex mutex;
  std::exception_ptr first;
  auto run_rank = [&](int rank) {
    set_rank_label({.rank = rank, .size = num_ranks});
    set_num_threads(threads);
    try {
      ThreadRank comm(group, rank);
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
