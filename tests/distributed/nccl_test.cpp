// The NCCL communicator against a double of the library: which calls it makes, in which order and groups, and how it ends.
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "distributed/comm/nccl/rank.h"
#include "tests/support/errors.h"
#include "weft/core/scope.h"

namespace weft::dist {
namespace {

// What the double was asked, and how it answers.
struct Script {
  std::mutex mutex;
  std::vector<std::string> calls;
  std::atomic<int> busy_answers = 0;     // how often async_error says that a call is in progress
  std::atomic<int> failure = 0;          // what async_error says otherwise
  std::atomic<bool> never_ends = false;  // no mark is reached
  int rank = 1, size = 3;                // of communicators

  void add(const std::string& call) {
    std::lock_guard lock(mutex);
    calls.push_back(call);
  }
  std::vector<std::string> taken() {
    std::lock_guard lock(mutex);
    return std::exchange(calls, {});
  }
  bool has(const std::string& call) {
    std::lock_guard lock(mutex);
    return std::find(calls.begin(), calls.end(), call) != calls.end();
  }
};

class Double final : public NcclApi {
 public:
  explicit Double(Script& script) : s_(script) {}
  int get_id(Id* id) override { return id->bytes[0] = 42, said("get_id"); }
  int init(void** comm, int size, const Id& id, int rank) override {
    *comm = new_comm();
    said(str("init ", rank, " of ", size, " id ", static_cast<int>(id.bytes[0])));
    return kInProgress;
  }
  int split(void*, int color, int key, void** part) override {
    *part = new_comm();
    said(str("split ", color, " ", key));
    return kInProgress;
  }
  int rank_of(void*, int* rank, int* size) override { return *rank = s_.rank, *size = s_.size, kSuccess; }
  int async_error(void*, int* state) override {
    *state = s_.busy_answers > 0 ? (--s_.busy_answers, kInProgress) : s_.failure.load();
    return kSuccess;
  }
  int finalize(void* comm) override { return said(str("finalize ", number(comm))), kInProgress; }
  int destroy(void* comm) override { return said(str("destroy ", number(comm))); }
  int abort(void* comm) override { return said(str("abort ", number(comm))); }
  int group_start() override { return said("group {"); }
  int group_end() override { return said("}"), kInProgress; }
  int send(const void*, int64_t bytes, int peer, void*) override { return said(str("send ", bytes, " to ", peer)); }
  int receive(void*, int64_t bytes, int peer, void*) override { return said(str("receive ", bytes, " from ", peer)); }
  int broadcast(const void* from, void* to, int64_t bytes, int root, void*) override {
    return said(str("broadcast ", bytes, " root ", root, from && to ? "" : " without memory"));
  }
  int all_gather(const void*, void*, int64_t bytes, void*) override { return said(str("all_gather ", bytes)); }
  int all_reduce(const void*, void*, int64_t count, DType dtype, Reduce reduce, void*) override {
    return said(str("all_reduce ", count, " ", dtype, " ", reduce));
  }
  int reduce_scatter(const void*, void*, int64_t part, DType dtype, Reduce reduce, void*) override {
    return said(str("reduce_scatter ", part, " ", dtype, " ", reduce));
  }
  std::string gpu() override { return "GPU 1"; }
  std::string error_text(int code) override { return str("code ", code); }
  void follow_thread() override { said("follow"); }
  void* mark() override { return said("mark"), new_comm(); }
  void thread_waits(void*) override { said("thread waits"); }
  bool is_reached(void*) override { return !s_.never_ends; }
  void drop(void*) noexcept override {}

 private:
  int said(const std::string& call) { return s_.add(call), kSuccess; }
  void* new_comm() { return reinterpret_cast<void*>(++last_); }
  static int64_t number(void* comm) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(comm)); }

  Script& s_;
  intptr_t last_ = 0;
};

// A communicator of three ranks, of which this is rank 1; the others are never there.
std::unique_ptr<Communicator> join(Script& script, NcclOptions options = {.device = Device::cpu()}) {
  auto gather = [](const std::string& mine) {  // the id of rank 0
    return std::vector<std::string>{std::string(1, 42) + std::string(127, 0) + "GPU 0", mine, mine + "b"};
  };
  return join_by_nccl(std::make_unique<Double>(script), 1, 3, gather, options);
}

using Calls = std::vector<std::string>;

TEST(Nccl, JoinsWithTheIdOfRankZeroAndLeavesInOrder) {
  Script script;
  script.busy_answers = 5;
  auto comm = join(script);
  EXPECT_EQ(comm->rank(), 1);
  EXPECT_EQ(comm->size(), 3);
  EXPECT_EQ(script.taken(), (Calls{"init 1 of 3 id 42"}));
  script.busy_answers = 3;
  comm.reset();
  EXPECT_EQ(script.taken(), (Calls{"finalize 1", "destroy 1"}));
}

TEST(Nccl, AnOperationIsOneGroupBetweenTheThreadsWorkBeforeAndAfter) {
  Script script;
  auto comm = join(script);
  script.taken();
  auto expect = [&](const Calls& calls) {
    Calls all{"follow", "group {"};
    all.insert(all.end(), calls.begin(), calls.end());
    for (const char* after : {"}", "mark", "thread waits"}) all.push_back(after);
    EXPECT_EQ(script.taken(), all);
  };
  Tensor x = Tensor::zeros({6}), y = Tensor::zeros({4}, kBF16);
  comm->all_reduce(x);
  expect({"all_reduce 6 f32 sum"});
  comm->all_reduce(y, Reduce::max);
  expect({"all_reduce 4 bf16 max"});
  comm->broadcast(x, 2);
  expect({"broadcast 24 root 2"});
  comm->broadcast(x, 1);
  expect({"broadcast 24 root 1"});
  EXPECT_EQ(comm->all_gather(y).num_elements(), 12);
  expect({"all_gather 8"});
  EXPECT_EQ(comm->reduce_scatter(x).num_elements(), 2);
  expect({"reduce_scatter 2 f32 sum"});
  comm->all_to_all(x);
  expect({"send 8 to 0", "receive 8 from 0", "send 8 to 1", "receive 8 from 1", "send 8 to 2", "receive 8 from 2"});
  comm->barrier();
  expect({"all_reduce 1 i32 sum"});
}

TEST(Nccl, AHopIsOneGroupAndTheThreadWaitsOnlyWhenItAsks) {
  Script script;
  auto comm = join(script);
  script.taken();
  Tensor k = Tensor::zeros({6}), dk = Tensor::zeros({6}, kF64), to_k = Tensor::zeros({6}),
         to_dk = Tensor::zeros({6}, kF64);
  auto transfer = comm->start_exchange(std::vector<Send>{{k, 2}, {dk, 2}}, std::vector<Receive>{{to_k, 0}, {to_dk, 0}});
  EXPECT_EQ(script.taken(), (Calls{"follow", "group {", "send 24 to 2", "send 48 to 2", "receive 24 from 0",
                                   "receive 48 from 0", "}", "mark"}));
  transfer->wait();
  EXPECT_EQ(script.taken(), (Calls{"thread waits"}));
  transfer.reset();
  EXPECT_EQ(script.taken(), Calls{});
  comm->start_exchange(std::vector<Send>{{k, 2}}, {}).reset();  // dropped: its memory may still be read
  EXPECT_EQ(script.taken().back(), "thread waits");
}

// A bucket of gradients is summed while backward goes on.
TEST(Nccl, ASumThatIsStartedIsWaitedForOnlyWhenItIsAsked) {
  Script script;
  auto comm = join(script);
  script.taken();
  Tensor first = Tensor::zeros({6}), second = Tensor::zeros({4}, kF64);
  auto of_first = comm->start_all_reduce(first);
  auto of_second = comm->start_all_reduce(second, Reduce::max);
  EXPECT_EQ(script.taken(), (Calls{"follow", "group {", "all_reduce 6 f32 sum", "}", "mark", "follow", "group {",
                                   "all_reduce 4 f64 max", "}", "mark"}));
  of_first->wait();
  of_first->wait();
  EXPECT_EQ(script.taken(), (Calls{"thread waits"}));
  of_second.reset();
  EXPECT_EQ(script.taken(), (Calls{"thread waits"}));
}

TEST(Nccl, PartsAreCommunicatorsOfTheirOwnAndEndBeforeTheWorld) {
  Script script;
  auto comm = join(script);
  script.taken();
  script.rank = 0, script.size = 2, script.busy_answers = 2;
  auto part = comm->split(7, -1, "part");
  EXPECT_EQ(part->rank(), 0);
  EXPECT_EQ(part->size(), 2);
  EXPECT_EQ(part->name(), "part");
  part.reset();
  EXPECT_EQ(script.taken(), (Calls{"split 7 -1", "finalize 2", "destroy 2"}));
}

TEST(Nccl, AnOperationThatDoesNotEndIsAbortedByTheWatchdogAndNamed) {
  Script script;
  auto comm = join(script, {.timeout_s = 0.05, .look_s = 0.01, .device = Device::cpu()});
  Tensor x = Tensor::zeros({6});
  script.never_ends = true;
  auto part = comm->split(0, 0, "part");
  {
    Scope model("model");
    comm->all_reduce(x);
  }
  while (!script.has("abort 1")) std::this_thread::yield();
  EXPECT_EQ(test::error_of([&] { part->all_reduce(x); },
                           {"world: all_reduce sum of 6 f32 (number 2) at model has not ended for 0.05 s"}),
            "");
  script.taken();
  part.reset(), comm.reset();
  EXPECT_EQ(script.taken(), Calls{});  // neither finalised nor destroyed: that could wait for ever
}

TEST(Nccl, AnErrorThatArrivesLateAbortsAllCommunicators) {
  Script script;
  auto comm = join(script, {.look_s = 0.01, .device = Device::cpu()});
  auto part = comm->split(0, 0, "part");
  script.failure = 3;
  while (!script.has("abort 1")) std::this_thread::yield();
  Tensor x = Tensor::zeros({6});
  EXPECT_EQ(test::error_of([&] { comm->all_reduce(x); }, {"NCCL: stopped", "code 3"}), "");
  while (script.taken().empty()) std::this_thread::yield();
}

TEST(Nccl, ABarrierThatOthersDoNotReachEndsWithTheWatchdog) {
  Script script;
  auto comm = join(script, {.timeout_s = 0.05, .look_s = 0.01, .device = Device::cpu()});
  script.never_ends = true;
  EXPECT_EQ(test::error_of([&] { comm->barrier(); }, {"barrier (number 1) has not ended for 0.05 s"}), "");
}

TEST(Nccl, RanksThatDoNotJoinAreATimeOut) {
  Script script;
  script.busy_answers = 1 << 30;
  EXPECT_EQ(test::error_of([&] { join(script, {.timeout_s = 0.05, .device = Device::cpu()}); },
                           {"joining the ranks has not begun for 0.05 s"}),
            "");
  EXPECT_TRUE(script.has("abort 1"));
}

TEST(Nccl, AbortEndsAllCommunicatorsAtOnceAndLaterCallsSayWhy) {
  Script script;
  auto comm = join(script);
  auto part = comm->split(0, 0, "part");
  script.taken();
  part->abort("the user stopped the run");
  EXPECT_EQ(script.taken(), (Calls{"abort 1", "abort 2"}));
  EXPECT_EQ(test::error_of([&] { comm->barrier(); }, {"the user stopped the run"}), "");
}

TEST(Nccl, WithoutItTheCommunicatorIsRefusedWithTheFix) {
  if (has_nccl()) GTEST_SKIP() << "this build has NCCL";
  auto alone = make_self_communicator();
  EXPECT_EQ(test::error_of([&] { make_nccl_communicator(*alone); }, {"no NCCL", "preset cuda", "mpirun"}), "");
  EXPECT_EQ(test::error_of([&] { make_nccl_communicator("host:1", 0, 2); }, {"no NCCL"}), "");
}

TEST(Nccl, RankZeroMakesTheId) {
  Script script;
  auto comm = join_by_nccl(std::make_unique<Double>(script), 0, 1,
                           [](const std::string& mine) { return std::vector{mine}; }, {});
  EXPECT_EQ(script.taken(), (Calls{"get_id", "init 0 of 1 id 42"}));
}

TEST(Nccl, TwoRanksOnOneGpuAreRefused) {
  Script script;
  auto join_twice = [&] {
    join_by_nccl(std::make_unique<Double>(script), 1, 2,
                 [](const std::string& mine) {
                   return std::vector{mine, mine};
                 },
                 {});
  };
  EXPECT_EQ(test::error_of(join_twice, {"ranks 0 and 1 have one GPU: GPU 1", "one rank per GPU"}), "");
}

TEST(Nccl, TensorsOnTheCpuAreRefused) {
  Script script;
  auto comm = join(script, {.device = Device::cuda(0)});
  script.taken();
  Tensor x = Tensor::zeros({6});
  EXPECT_EQ(
      test::error_of([&] { comm->all_reduce(x); }, {"all_reduce: [6] f32 cpu is on the CPU", "move it to the GPU"}),
      "");
  EXPECT_EQ(test::error_of(
                [&] {
                  comm->start_exchange(std::vector<Send>{{x, 0}}, {});
                },
                {"exchange", "on the CPU"}),
            "");
  EXPECT_EQ(script.taken(), Calls{});
}

}  // namespace
}  // namespace weft::dist
