// Ranks whose tensors are on GPUs, joined by NCCL. Calls return when the work is in the stream; the calling thread's later work on the GPU
// comes after it. An exchange is one group on one communicator. Reductions are NCCL's own: the same bits in every run with the same
// NCCL_ALGO, NCCL_PROTO and topology, but not taken in the order of ranks, and bf16 is rounded as NCCL does it.
// This code has run against a test double only, never on a GPU.
#include "distributed/comm/nccl/rank.h"

#include <algorithm>
#include <map>
#include <utility>

#include "distributed/comm/nccl/world.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft::dist {

namespace {

// The work of an operation in the stream, of which the rest of the thread's work comes behind.
class NcclTransfer final : public Transfer {
 public:
  NcclTransfer(std::shared_ptr<NcclWorld> world, void* mark, std::span<const Send> sends,
               std::span<const Receive> receives)
      : world_(std::move(world)),
        mark_(mark),
        sends_(sends.begin(), sends.end()),
        receives_(receives.begin(), receives.end()) {}
  ~NcclTransfer() override { wait(); }  // the tensors' memory is used until then
  void wait() override {
    if (!mark_) return;
    world_->api().thread_waits(mark_);
    world_->done(std::exchange(mark_, nullptr));
    sends_.clear();
    receives_.clear();
  }

 private:
  std::shared_ptr<NcclWorld> world_;
  void* mark_;
  std::vector<Send> sends_;
  std::vector<Receive> receives_;
};

class NcclRank final : public Communicator {
 public:
  NcclRank(std::shared_ptr<NcclWorld> world, void* comm, Device device, int rank, int size, std::string name)
      : Communicator(rank, size, std::move(name)), world_(std::move(world)), comm_(comm), device_(device) {}
  ~NcclRank() override { world_->close(comm_); }
  void abort(std::string why) noexcept override { world_->stop(why); }

 private:
  bool takes(Device device) const override { return device == device_; }

  void run(const Operation& o, const void* from, void* to) override {
    const std::string what = str(name(), ": ", o);
    void* mark = world_->issue(comm_, what, [&] { call(o, from, to, what); });
    world_->api().thread_waits(mark);
    if (o.kind == Collective::barrier) world_->wait_until(mark);
    world_->done(mark);
  }

  std::unique_ptr<Transfer> start_run(const Operation& o, Tensor& x) override {
    const std::string what = str(name(), ": ", o);
    void* memory = x.mutable_raw();
    void* mark = world_->issue(comm_, what, [&] { call(o, memory, memory, what); });
    const Receive result{x, rank()};
    return std::make_unique<NcclTransfer>(world_, mark, std::span<const Send>(), std::span(&result, 1));
  }

  void call(const Operation& o, const void* from, void* to, const std::string& what) {
    NcclApi& api = world_->api();
    const int64_t bytes = o.count * static_cast<int64_t>(size_of(o.dtype)), part = o.count / size(),
                  of_part = bytes / size();
    auto check = [&](int code) { world_->check(code, what); };
    switch (o.kind) {
      case Collective::split: return;
      case Collective::barrier:
        if (!ticket_.defined()) ticket_ = Tensor::zeros({1}, kI32, device_);
        return check(api.all_reduce(ticket_.raw(), ticket_.mutable_raw(), 1, kI32, Reduce::sum, comm_));
      case Collective::broadcast:
        return check(api.broadcast(from, to ? to : const_cast<void*>(from), bytes, o.root, comm_));
      case Collective::all_reduce: return check(api.all_reduce(from, to, o.count, o.dtype, o.reduce, comm_));
      case Collective::all_gather: return check(api.all_gather(from, to, bytes, comm_));
      case Collective::reduce_scatter: return check(api.reduce_scatter(from, to, part, o.dtype, o.reduce, comm_));
      case Collective::all_to_all:
        for (int r = 0; r < size(); ++r) {
          check(api.send(static_cast<const char*>(from) + r * of_part, of_part, r, comm_));
          check(api.receive(static_cast<char*>(to) + r * of_part, of_part, r, comm_));
        }
    }
  }

  std::unique_ptr<Transfer> start(std::span<const Send> sends, std::span<const Receive> receives) override {
    const std::string where = Scope::path(), what = str(name(), ": exchange", where.empty() ? "" : " at " + where);
    auto bytes = [](const Tensor& x) { return static_cast<int64_t>(x.num_bytes()); };
    void* mark = world_->issue(comm_, what, [&] {
      for (const Send& s : sends)
        world_->check(world_->api().send(s.tensor.raw(), bytes(s.tensor), s.peer, comm_), what);
      for (Receive r : receives)
        world_->check(world_->api().receive(r.tensor.mutable_raw(), bytes(r.tensor), r.peer, comm_), what);
    });
    return std::make_unique<NcclTransfer>(world_, mark, sends, receives);
  }

  std::unique_ptr<Communicator> split_off(const Operation& o, int color, int key, std::string name) override {
    void* part = world_->open(str(this->name(), ": ", o),
                              [&](void** comm) { return world_->api().split(comm_, color, key, comm); });
    int rank = 0, size = 0;
    world_->check(world_->api().rank_of(part, &rank, &size), "split");
    return std::make_unique<NcclRank>(world_, part, device_, rank, size, std::move(name));
  }

  std::shared_ptr<NcclWorld> world_;
  void* comm_;
  Device device_;
  Tensor ticket_;  // what a barrier sums
};

}  // namespace

std::unique_ptr<Communicator> join_by_nccl(std::unique_ptr<NcclApi> api, int rank, int size, const GatherTexts& gather,
                                           const NcclOptions& options) {
  auto world = std::make_shared<NcclWorld>(std::move(api), options.timeout_s, options.look_s);
  NcclApi::Id id;
  if (rank == 0) world->check(world->api().get_id(&id), "the id of the ranks");
  // The text of a rank: the id, which only rank 0's counts, and its GPU.
  const std::vector<std::string> texts = gather(std::string(id.bytes, sizeof id.bytes) + world->api().gpu());
  std::map<std::string, size_t> owners;
  for (size_t r = 0; r < texts.size(); ++r) {
    const auto [owner, is_new] = owners.emplace(texts[r].substr(sizeof id.bytes), r);
    WEFT_CHECK(is_new, str("NCCL: ranks ", owner->second, " and ", r, " have one GPU: ", owner->first),
               "start at most one rank per GPU, and give each one its own (local rank -> device)");
  }
  std::copy_n(texts[0].begin(), sizeof id.bytes, id.bytes);
  void* comm = world->open("joining the ranks", [&](void** made) { return world->api().init(made, size, id, rank); });
  return std::make_unique<NcclRank>(std::move(world), comm, options.device, rank, size, "world");
}

}  // namespace weft::dist
