// What every communicator checks before its ranks meet.
#include "weft/comm/communicator.h"

#include "distributed/comm/flight_record.h"
#include "distributed/comm/peers.h"
#include "distributed/comm/sent_bytes.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft::dist {

namespace {

class DoneTransfer final : public Transfer {
 public:
  void wait() override {}
};

class RecordedTransfer final : public Transfer {
 public:
  RecordedTransfer(std::shared_ptr<FlightRecord> record, std::unique_ptr<FlightEntry> entry,
                   std::unique_ptr<Transfer> transfer)
      : record_(std::move(record)), entry_(std::move(entry)), transfer_(std::move(transfer)) {}
  void wait() override {
    transfer_->wait();
    entry_->done();
  }

 private:
  std::shared_ptr<FlightRecord> record_;
  std::unique_ptr<FlightEntry> entry_;
  std::unique_ptr<Transfer> transfer_;
};

}  // namespace

Communicator::Communicator(int rank, int size, std::string name) : rank_(rank), size_(size), name_(std::move(name)) {}
Communicator::~Communicator() = default;

std::string_view to_string(Collective kind) {
  switch (kind) {
    case Collective::barrier: return "barrier";
    case Collective::broadcast: return "broadcast";
    case Collective::all_reduce: return "all_reduce";
    case Collective::all_gather: return "all_gather";
    case Collective::reduce_scatter: return "reduce_scatter";
    case Collective::all_to_all: return "all_to_all";
    case Collective::split: return "split";
  }
  return "?";
}

std::string_view to_string(Reduce reduce) {
  switch (reduce) {
    case Reduce::sum: return "sum";
    case Reduce::max: return "max";
    case Reduce::min: return "min";
  }
  return "?";
}

std::string to_string(const Operation& o) {
  std::string text(to_string(o.kind));
  if (o.kind == Collective::all_reduce) text += str(" ", o.reduce);
  if (o.kind != Collective::barrier && o.kind != Collective::split) text += str(" of ", o.count, " ", o.dtype);
  if (o.kind == Collective::broadcast) text += str(" from rank ", o.root);
  text += str(" (number ", o.number, ")");
  return o.where.empty() ? text : text + " at " + o.where;
}

Operation Communicator::next(Collective kind, const Tensor& x) const {
  Operation operation{.kind = kind, .number = ++number_, .where = Scope::path()};
  if (x.defined()) operation.dtype = x.dtype(), operation.count = x.num_elements();
  return operation;
}

const Tensor& Communicator::checked(const Tensor& x, std::string_view call) const {
  WEFT_CHECK(x.defined(), str(call, ": the tensor is undefined"), "give every rank a tensor of the same shape");
  WEFT_CHECK(x.is_cuda() || takes(x.device()),
             str(call, ": ", x, " is on the CPU, the ranks of ", name_, " are on GPUs"),
             "move it to the GPU, or use a communicator of MPI or threads");
  WEFT_CHECK(x.is_contiguous(), str(call, ": strides ", x.strides(), " of ", x), "call ops::contiguous first");
  return x;
}

void Communicator::check_parts(const Tensor& x, std::string_view call) const {
  checked(x, call);
  WEFT_CHECK(x.num_dims() >= 1 && x.size(0) % size_ == 0,
             str(call, ": ", x, " does not divide into ", size_, " parts along its first dimension"),
             "pad it to a multiple of the number of ranks");
}

Tensor Communicator::on_device_of(const Tensor& x, const Tensor& result) {
  Tensor moved = Tensor::empty(result.shape(), result.dtype(), x.device());
  moved.set_bytes(result);
  return moved;
}

void Communicator::barrier() {
  Operation operation = next(Collective::barrier);
  if (size_ > 1) run_recorded(operation, nullptr, nullptr);
}

void Communicator::broadcast(Tensor& x, int root) {
  WEFT_CHECK(root >= 0 && root < size_, str("broadcast: root ", root, " of ", size_, " ranks"), "name a rank");
  if (passes_cpu(x)) {
    Tensor here = checked(x, "broadcast").cpu();
    broadcast(here, root);
    return x.set_bytes(here);
  }
  Operation operation = next(Collective::broadcast, checked(x, "broadcast"));
  operation.root = root;
  if (size_ > 1) run_recorded(operation, x.raw(), root == rank_ ? nullptr : x.mutable_raw());
}

void Communicator::all_reduce(Tensor& x, Reduce reduce) {
  if (passes_cpu(x)) {
    Tensor here = checked(x, "all_reduce").cpu();
    all_reduce(here, reduce);
    return x.set_bytes(here);
  }
  const Operation operation = reduction(x, reduce);
  if (size_ > 1) run_recorded(operation, x.raw(), x.mutable_raw());
}

Operation Communicator::reduction(const Tensor& x, Reduce reduce) const {
  Operation operation = next(Collective::all_reduce, checked(x, "all_reduce"));
  operation.reduce = reduce;
  WEFT_CHECK(x.dtype() != kBool || reduce != Reduce::sum, str("all_reduce: sum of ", x),
             "use max for 'any' and min for 'all'");
  return operation;
}

std::unique_ptr<Transfer> Communicator::start_all_reduce(Tensor& x, Reduce reduce) {
  if (passes_cpu(x) || size_ == 1) {
    all_reduce(x, reduce);
    return std::make_unique<DoneTransfer>();
  }
  const Operation operation = reduction(x, reduce);
  std::unique_ptr<FlightEntry> entry;
  if (record_) {
    entry = std::make_unique<FlightEntry>(record_.get(), ring_, name_, static_cast<int64_t>(x.num_bytes()),
                                          to_string(operation));
    record_->note_sent(sent_bytes(operation, size_));
  }
  std::unique_ptr<Transfer> transfer = start_run(operation, x);
  if (!transfer) transfer = std::make_unique<DoneTransfer>();
  return record_ ? std::make_unique<RecordedTransfer>(record_, std::move(entry), std::move(transfer))
                 : std::move(transfer);
}

std::unique_ptr<Transfer> Communicator::start_run(const Operation& operation, Tensor& x) {
  run(operation, x.raw(), x.mutable_raw());
  return nullptr;
}

Tensor Communicator::all_gather(const Tensor& mine) {
  checked(mine, "all_gather");
  if (passes_cpu(mine)) return on_device_of(mine, all_gather(mine.cpu()));
  WEFT_CHECK(mine.num_dims() >= 1, str("all_gather: ", mine, " has no first dimension"), "reshape it to {1}");
  Operation operation = next(Collective::all_gather, mine);
  if (size_ == 1) return mine;
  Shape shape = mine.shape();
  shape[0] *= size_;
  Tensor all = Tensor::empty(shape, mine.dtype(), mine.device());
  run_recorded(operation, mine.raw(), all.mutable_raw());
  return all;
}

Tensor Communicator::reduce_scatter(const Tensor& all) {
  check_parts(all, "reduce_scatter");
  if (passes_cpu(all)) return on_device_of(all, reduce_scatter(all.cpu()));
  Operation operation = next(Collective::reduce_scatter, all);
  if (size_ == 1) return all;
  Shape shape = all.shape();
  shape[0] /= size_;
  Tensor mine = Tensor::empty(shape, all.dtype(), all.device());
  run_recorded(operation, all.raw(), mine.mutable_raw());
  return mine;
}

Tensor Communicator::all_to_all(const Tensor& parts) {
  check_parts(parts, "all_to_all");
  if (passes_cpu(parts)) return on_device_of(parts, all_to_all(parts.cpu()));
  Operation operation = next(Collective::all_to_all, parts);
  if (size_ == 1) return parts;
  Tensor result = Tensor::empty(parts.shape(), parts.dtype(), parts.device());
  run_recorded(operation, parts.raw(), result.mutable_raw());
  return result;
}

std::unique_ptr<Transfer> Communicator::start_exchange(std::span<const Send> sends, std::span<const Receive> receives) {
  auto check_peer = [&](int peer) {
    WEFT_CHECK(peer >= 0 && peer < size_, str("exchange: peer ", peer, " of ", size_, " ranks"), "name a rank");
  };
  for (const Send& s : sends) checked(s.tensor, "exchange"), check_peer(s.peer);
  for (const Receive& r : receives) checked(r.tensor, "exchange"), check_peer(r.peer);
  ++exchange_;
  if (!record_ || size_ == 1) return start(sends, receives);
  // Lines are cut at their end, and the module says more than the last of many peers.
  const std::string where = Scope::path();
  const std::string text =
      str("exchange (number ", exchange_, ")", where.empty() ? "" : " at ", where, peers_text(sends, receives));
  int64_t bytes = 0;
  for (const Send& s : sends) bytes += static_cast<int64_t>(s.tensor.num_bytes());
  record_->note_sent(sent_bytes(sends, rank_));
  auto entry = std::make_unique<FlightEntry>(record_.get(), ring_, name_, bytes, text);
  return std::make_unique<RecordedTransfer>(record_, std::move(entry), start(sends, receives));
}

std::unique_ptr<Communicator> Communicator::split(int color, int key, std::string name) {
  Operation operation = next(Collective::split);
  if (!record_) return split_off(operation, color, key, std::move(name));
  FlightEntry entry(record_.get(), ring_, name_, 0, to_string(operation));
  auto part = split_off(operation, color, key, std::move(name));
  entry.done();
  part->record_ = record_;
  part->ring_ = record_->add_ring();
  return part;
}

void Communicator::run_recorded(const Operation& operation, const void* from, void* to) {
  if (!record_) return run(operation, from, to);
  const int64_t bytes = operation.count * static_cast<int64_t>(size_of(operation.dtype));
  FlightEntry entry(record_.get(), ring_, name_, bytes, to_string(operation));
  record_->note_sent(sent_bytes(operation, size_));
  run(operation, from, to);
  entry.done();
}

void Communicator::record_to(const std::string& folder) {
  record_ = std::make_shared<FlightRecord>(folder, rank_, size_);
  ring_ = record_->add_ring();
}

}  // namespace weft::dist
