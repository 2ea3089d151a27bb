// Ranks as processes of MPI: collectives made of messages, so that sums are taken in the order of ranks and every wait has an end. Before
// a collective all ranks tell each other what they call. Of a reduction each rank sums its own share of the elements.
#include <algorithm>
#include <cstring>

#include "distributed/comm/mpi/link.h"
#include "distributed/comm/mpi/requests.h"
#include "distributed/comm/peers.h"
#include "distributed/comm/reduce.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft::dist {

namespace {

constexpr int64_t kMostScratchBytes = int64_t{64} << 20;  // of a reduction: the other ranks' elements

// What travels where: the tag of a message is 4 * group + channel.
enum Channel { kCalls, kData, kLabels, kMessages };

template <size_t n>
void copy_text(const std::string& text, char (&to)[n]) {
  std::memset(to, 0, n);
  std::copy_n(text.begin(), std::min(text.size(), n - 1), to);
}

// What a rank calls, for the others.
struct Call {
  uint64_t number = 0;
  int64_t count = 0;
  int32_t kind = 0, dtype = 0, root = 0, reduce = 0;
  int32_t color = 0, key = 0, next_group = 0;  // of a split
  char where[196] = {};
};

Call call_of(const Operation& o, int color, int key, int next_group) {
  Call call{o.number,
            o.count,
            static_cast<int32_t>(o.kind),
            static_cast<int32_t>(o.dtype),
            o.root,
            static_cast<int32_t>(o.reduce),
            color,
            key,
            next_group};
  copy_text(o.where, call.where);
  return call;
}

Operation operation_of(const Call& c) {
  return {.kind = static_cast<Collective>(c.kind),
          .number = c.number,
          .dtype = static_cast<DType>(c.dtype),
          .count = c.count,
          .root = c.root,
          .reduce = static_cast<Reduce>(c.reduce),
          .where = c.where};
}

bool is_same(const Call& a, const Call& b) {
  return a.number == b.number && a.count == b.count && a.kind == b.kind && a.dtype == b.dtype && a.root == b.root &&
         a.reduce == b.reduce;
}

// What a message of an exchange is, sent before it.
struct Label {
  uint64_t number = 0;  // of the messages from this rank to that one
  int64_t bytes = 0;
  int32_t dtype = 0;
  char tensor[68] = {};
};

Label label_of(uint64_t number, const Tensor& x) {
  Label label{number, static_cast<int64_t>(x.num_bytes()), static_cast<int32_t>(x.dtype())};
  copy_text(to_string(x), label.tensor);
  return label;
}

char* at(void* memory, int64_t bytes) { return static_cast<char*>(memory) + bytes; }
const char* at(const void* memory, int64_t bytes) { return static_cast<const char*>(memory) + bytes; }
void copy(void* to, const void* from, int64_t bytes) {
  if (bytes) std::memcpy(to, from, static_cast<size_t>(bytes));
}

// The ranks of a communicator, as ranks of the world.
struct Group {
  std::shared_ptr<MpiLink> link;
  std::vector<int> members;
  int rank = 0, number = 0;
  std::string name = {};
  std::vector<uint64_t> sent = {}, received = {};  // messages of exchanges with each member

  int tag(Channel channel) const { return 4 * number + channel; }
  int world_rank(int r) const { return members[static_cast<size_t>(r)]; }
};

class MpiTransfer final : public Transfer {
 public:
  MpiTransfer(std::shared_ptr<Group> group, FlightRecord* record, std::span<const Send> sends,
              std::span<const Receive> receives)
      : group_(std::move(group)), record_(record), data_(*group_->link), labels_(*group_->link) {
    wanted_.reserve(receives.size());
    came_.resize(receives.size());
    labels_sent_.reserve(sends.size());
    for (const Receive& r : receives) {
      // A tensor of a GPU arrives on the CPU first.
      Tensor here = r.tensor.is_cuda() ? Tensor::empty(r.tensor.shape(), r.tensor.dtype(), Device::cpu()) : r.tensor;
      const int from = group_->world_rank(r.peer);
      const auto expected = label_of(++group_->received[static_cast<size_t>(r.peer)], r.tensor);
      labels_.receive(&came_[wanted_.size()], sizeof(Label), from, group_->tag(kLabels));
      data_.receive(here.mutable_raw(), expected.bytes, from, group_->tag(kMessages));
      data_.keep(here);
      wanted_.push_back({r, here, expected});
    }
    for (const Send& s : sends) {
      const Tensor here = s.tensor.cpu();
      const int to = group_->world_rank(s.peer);
      labels_sent_.push_back(label_of(++group_->sent[static_cast<size_t>(s.peer)], s.tensor));
      labels_.send(&labels_sent_.back(), sizeof(Label), to, group_->tag(kLabels));
      data_.send(here.raw(), static_cast<int64_t>(here.num_bytes()), to, group_->tag(kMessages));
      data_.keep(here);
    }
    peers_ = peers_text(sends, receives);
  }

  void wait() override {
    group_->link->require_running(group_->name);
    const MpiWait wait{group_->name,
                       [&] {
                         const std::string where = Scope::path();
                         return str("exchange", where.empty() ? "" : " at ", where, peers_);
                       },
                       record_};
    labels_.wait(wait);
    for (size_t i = 0; i < wanted_.size(); ++i) check_label(wanted_[i], came_[i]);
    data_.wait(wait);
    for (Wanted& w : wanted_)
      if (w.receive.tensor.is_cuda()) w.receive.tensor.set_bytes(w.here);
    wanted_.clear();
  }

 private:
  struct Wanted {
    Receive receive;
    Tensor here;
    Label expected;
  };

  void check_label(const Wanted& wanted, const Label& came) const {
    const Label& expected = wanted.expected;
    if (came.bytes == expected.bytes && came.dtype == expected.dtype && came.number == expected.number) return;
    group_->link->fail_all(
        str(group_->name, ": rank ", wanted.receive.peer, " sent ", came.tensor, " (message ", came.number, "), rank ",
            group_->rank, " receives ", expected.tensor, " (message ", expected.number, ")"),
        "let both ranks name the same size and dtype");
  }

  std::shared_ptr<Group> group_;
  FlightRecord* record_;
  std::vector<Wanted> wanted_;
  std::vector<Label> came_, labels_sent_;
  std::string peers_;
  MpiRequests data_, labels_;
};

class MpiRank final : public Communicator {
 public:
  explicit MpiRank(std::shared_ptr<Group> group)
      : Communicator(group->rank, static_cast<int>(group->members.size()), group->name),
        group_(std::move(group)),
        exceptions_(std::uncaught_exceptions()) {
    group_->sent.resize(group_->members.size());
    group_->received.resize(group_->members.size());
  }
  ~MpiRank() override {
    const bool is_world = group_->number == MpiLink::kWorld;
    if (is_world && std::uncaught_exceptions() > exceptions_) abort("its work ended with an exception");
  }
  void abort(std::string why) noexcept override {
    group_->link->stop(str("rank ", group_->link->rank(), " ", this_process(), ": ", why));
  }
  bool is_speaker() noexcept override { return group_->link->is_speaker(); }

 private:
  void run(const Operation& operation, const void* from, void* to) override {
    meet(operation, {});
    MpiRequests requests(*group_->link);
    const auto element = static_cast<int64_t>(size_of(operation.dtype));
    const int64_t bytes = operation.count * element, part = bytes / size();
    const int me = rank(), tag = group_->tag(kData);
    auto send = [&](const void* memory, int64_t n, int r) { requests.send(memory, n, group_->world_rank(r), tag); };
    auto receive = [&](void* memory, int64_t n, int r) { requests.receive(memory, n, group_->world_rank(r), tag); };
    switch (operation.kind) {
      case Collective::barrier:
      case Collective::split: return;
      case Collective::broadcast:
        if (me != operation.root) receive(to, bytes, operation.root);
        else for_others([&](int r) { send(from, bytes, r); });
        break;
      case Collective::all_reduce:
        reduce_share(operation, from, at(to, begin_of(operation.count, me) * element));
        for_others([&](int r) {
          const int64_t begin = begin_of(operation.count, r) * element, mine = begin_of(operation.count, me) * element;
          receive(at(to, begin), begin_of(operation.count, r + 1) * element - begin, r);
          send(at(to, mine), begin_of(operation.count, me + 1) * element - mine, r);
        });
        break;
      case Collective::all_gather:
        for_others([&](int r) { receive(at(to, r * bytes), bytes, r), send(from, bytes, r); });
        copy(at(to, me * bytes), from, bytes);
        break;
      case Collective::reduce_scatter: reduce_share(operation, from, to); return;
      case Collective::all_to_all:
        for_others([&](int r) { receive(at(to, r * part), part, r), send(at(from, r * part), part, r); });
        copy(at(to, me * part), at(from, me * part), part);
        break;
    }
    requests.wait(wait_in(operation));
  }

  // The next rank first, so that not all begin with rank 0.
  template <class F>
  void for_others(F&& f) const {
    for (int step = 1; step < size(); ++step) f((rank() + step) % size());
  }
  int64_t begin_of(int64_t count, int r) const { return count / size() * r + std::min<int64_t>(count % size(), r); }

  MpiWait wait_in(const Operation& operation) const {
    return {group_->name, [&operation] { return to_string(operation); }, record()};
  }

  // Every rank has what all of them call. Error on all of them if they differ.
  std::vector<Call> meet(const Operation& operation, std::pair<int, int> color_key) {
    group_->link->require_running(group_->name);
    std::vector<Call> calls(static_cast<size_t>(size()));
    Call& mine = calls[static_cast<size_t>(rank())];
    mine = call_of(operation, color_key.first, color_key.second, group_->link->next_group);
    {
      MpiRequests requests(*group_->link);
      for_others([&](int r) {
        const int peer = group_->world_rank(r);
        requests.receive(&calls[static_cast<size_t>(r)], sizeof(Call), peer, group_->tag(kCalls));
        requests.send(&mine, sizeof(Call), peer, group_->tag(kCalls));
      });
      requests.wait(wait_in(operation));
    }
    for (size_t r = 1; r < calls.size(); ++r)
      if (!is_same(calls[0], calls[r]))
        group_->link->fail_all(str(group_->name, ": ranks disagree: rank 0 calls ", operation_of(calls[0]), ", rank ",
                                   r, " calls ", operation_of(calls[r])),
                               "let all ranks call the same operations in the same order, with the same shapes");
    return calls;
  }

  // This rank's share of the result, to `to`. The others' elements come in parts of bounded size.
  void reduce_share(const Operation& operation, const void* from, void* to) {
    const auto element = static_cast<int64_t>(size_of(operation.dtype));
    const int64_t scratch_bytes = std::min<int64_t>(kMostScratchBytes, group_->link->piece_bytes());
    const int64_t most = std::max<int64_t>(1, scratch_bytes / element / size());
    const int64_t longest = begin_of(operation.count, 1);  // the first share is as long as any
    std::vector<char> scratch(static_cast<size_t>(std::min(most, longest) * element * (size() - 1)));
    for (int64_t done = 0; done < longest; done += most) {
      MpiRequests requests(*group_->link);
      auto length = [&](int r) {
        return std::clamp<int64_t>(begin_of(operation.count, r + 1) - begin_of(operation.count, r) - done, 0, most);
      };
      auto first = [&](int r) { return at(from, (begin_of(operation.count, r) + done) * element); };
      std::vector<const void*> inputs(static_cast<size_t>(size()));
      char* free = scratch.data();
      for_others([&](int r) {
        const int peer = group_->world_rank(r);
        requests.receive(free, length(rank()) * element, peer, group_->tag(kData));
        requests.send(first(r), length(r) * element, peer, group_->tag(kData));
        inputs[static_cast<size_t>(r)] = free;
        free += length(rank()) * element;
      });
      inputs[static_cast<size_t>(rank())] = first(rank());
      requests.wait(wait_in(operation));
      reduce_in_order(operation.dtype, operation.reduce, inputs, length(rank()), at(to, done * element));
    }
  }

  std::unique_ptr<Transfer> start(std::span<const Send> sends, std::span<const Receive> receives) override {
    group_->link->require_running(group_->name);
    return std::make_unique<MpiTransfer>(group_, record(), sends, receives);
  }

  std::unique_ptr<Communicator> split_off(const Operation& operation, int color, int key, std::string name) override {
    const std::vector<Call> calls = meet(operation, {color, key});
    MpiLink& link = *group_->link;
    std::vector<std::pair<int, int>> members;  // key, rank
    int number = 0;
    for (size_t r = 0; r < calls.size(); ++r) {
      number = std::max(number, calls[r].next_group);
      if (calls[r].color == color) members.emplace_back(calls[r].key, static_cast<int>(r));
    }
    link.next_group = number + 1;
    WEFT_CHECK(4 * number + kMessages <= link.largest_tag(),
               str("split: ", number, " groups are more than MPI has tags for"),
               "split once and keep the communicators");
    std::sort(members.begin(), members.end());
    auto part = std::make_shared<Group>(Group{group_->link, {}, 0, number, std::move(name)});
    for (const auto& [member_key, r] : members) {
      if (r == rank()) part->rank = static_cast<int>(part->members.size());
      part->members.push_back(group_->world_rank(r));
    }
    return std::make_unique<MpiRank>(std::move(part));
  }

  std::shared_ptr<Group> group_;
  int exceptions_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(MpiOptions options) {
  WEFT_CHECK(options.timeout_s > 0, str("make_mpi_communicator: time-out of ", options.timeout_s, " s"),
             "use more than 0");
  WEFT_CHECK(options.piece_bytes >= 1 && options.piece_bytes <= (int64_t{1} << 30),
             str("make_mpi_communicator: pieces of ", options.piece_bytes, " bytes"), "use 1 to 2^30");
  auto link = std::make_shared<MpiLink>(options);
  set_rank_label({.rank = link->rank(), .size = link->size()});
  std::vector<int> all;
  for (int r = 0; r < link->size(); ++r) all.push_back(r);
  const int rank = link->rank();
  return std::make_unique<MpiRank>(
      std::make_shared<Group>(Group{std::move(link), std::move(all), rank, MpiLink::kWorld, "world"}));
}

}  // namespace weft::dist
