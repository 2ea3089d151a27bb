// What every communicator checks before its ranks meet.
#include "weft/comm/communicator.h"

#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft::dist {

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
  WEFT_CHECK(x.is_contiguous(), str(call, ": strides ", x.strides(), " of ", x), "call ops::contiguous first");
  return x;
}

void Communicator::check_parts(const Tensor& x, std::string_view call) const {
  checked(x, call);
  WEFT_CHECK(x.num_dims() >= 1 && x.size(0) % size_ == 0,
             str(call, ": ", x, " does not divide into ", size_, " parts along its first dimension"),
             "pad it to a multiple of the number of ranks");
}

void Communicator::barrier() {
  Operation operation = next(Collective::barrier);
  if (size_ > 1) run(operation, nullptr, nullptr);
}

void Communicator::broadcast(Tensor& x, int root) {
  WEFT_CHECK(root >= 0 && root < size_, str("broadcast: root ", root, " of ", size_, " ranks"), "name a rank");
  Operation operation = next(Collective::broadcast, checked(x, "broadcast"));
  operation.root = root;
  if (size_ > 1) run(operation, x.raw(), root == rank_ ? nullptr : x.mutable_raw());
}

void Communicator::all_reduce(Tensor& x, Reduce reduce) {
  Operation operation = next(Collective::all_reduce, checked(x, "all_reduce"));
  operation.reduce = reduce;
  WEFT_CHECK(x.dtype() != kBool || reduce != Reduce::sum, str("all_reduce: sum of ", x),
             "use max for 'any' and min for 'all'");
  if (size_ > 1) run(operation, x.raw(), x.mutable_raw());
}

Tensor Communicator::all_gather(const Tensor& mine) {
  checked(mine, "all_gather");
  WEFT_CHECK(mine.num_dims() >= 1, str("all_gather: ", mine, " has no first dimension"), "reshape it to {1}");
  Operation operation = next(Collective::all_gather, mine);
  if (size_ == 1) return mine;
  Shape shape = mine.shape();
  shape[0] *= size_;
  Tensor all = Tensor::empty(shape, mine.dtype(), mine.device());
  run(operation, mine.raw(), all.mutable_raw());
  return all;
}

Tensor Communicator::reduce_scatter(const Tensor& all) {
  check_parts(all, "reduce_scatter");
  Operation operation = next(Collective::reduce_scatter, all);
  if (size_ == 1) return all;
  Shape shape = all.shape();
  shape[0] /= size_;
  Tensor mine = Tensor::empty(shape, all.dtype(), all.device());
  run(operation, all.raw(), mine.mutable_raw());
  return mine;
}

Tensor Communicator::all_to_all(const Tensor& parts) {
  check_parts(parts, "all_to_all");
  Operation operation = next(Collective::all_to_all, parts);
  if (size_ == 1) return parts;
  Tensor result = Tensor::empty(parts.shape(), parts.dtype(), parts.device());
  run(operation, parts.raw(), result.mutable_raw());
  return result;
}

std::unique_ptr<Transfer> Communicator::start_exchange(std::span<const Send> sends, std::span<const Receive> receives) {
  auto check_peer = [&](int peer) {
    WEFT_CHECK(peer >= 0 && peer < size_, str("exchange: peer ", peer, " of ", size_, " ranks"), "name a rank");
  };
  for (const Send& s : sends) checked(s.tensor, "exchange"), check_peer(s.peer);
  for (const Receive& r : receives) checked(r.tensor, "exchange"), check_peer(r.peer);
  return start(sends, receives);
}

std::unique_ptr<Communicator> Communicator::split(int color, int key, std::string name) {
  return split_off(next(Collective::split), color, key, std::move(name));
}

}  // namespace weft::dist
