// What ranks say to each other: one contract for one rank, ranks as threads of a process, MPI and NCCL.
//   comm.all_reduce(grad);                      // every rank: the sum of all ranks' grad, to the same bits
//   Tensor all = comm.all_gather(mine);         // [P n, ...] from [n, ...]
// All ranks of a communicator call the same operations in the same order. A rank that calls another one is an Error on all ranks, which
// names both. A rank that does not come is an Error after the time-out, which names it. P: number of ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "weft/core/tensor.h"

namespace weft::dist {

class FlightRecord;

enum class Reduce { sum, max, min };
enum class Collective { barrier, broadcast, all_reduce, all_gather, reduce_scatter, all_to_all, split };
std::string_view to_string(Collective kind);
std::string_view to_string(Reduce reduce);

// One collective call of one rank: what must agree among the ranks, and where the rank is.
struct Operation {
  Collective kind = Collective::barrier;
  uint64_t number = 0;  // 1, 2, ... of this communicator
  DType dtype = kF32;
  int64_t count = 0;  // elements that this rank gives
  int root = 0;
  Reduce reduce = Reduce::sum;
  std::string where = {};  // module path
};
std::string to_string(const Operation& operation);  // "all_reduce sum of 12 f32 (number 7) at model.layers.0"

// One message of an exchange. A message to the rank itself is allowed.
struct Send {
  Tensor tensor;
  int peer;
};
struct Receive {
  Tensor tensor;
  int peer;
};

// Messages on their way. wait() returns when all have arrived and the sent tensors may be written again.
class Transfer {
 public:
  virtual ~Transfer() = default;
  virtual void wait() = 0;
};

class Communicator {
 public:
  virtual ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::string& name() const { return name_; }  // "world", "data", ...: for errors

  // Tensors are row-major, of one shape and dtype on all ranks. Sums are taken in the order of ranks, those of bf16 in f32 and rounded once,
  // so that all ranks have the same bits, the same in every run. With one rank nothing is copied: what is returned is the argument. Tensors
  // of a GPU pass through the CPU, unless the communicator takes them itself (NCCL).
  void barrier();
  void broadcast(Tensor& x, int root);
  void all_reduce(Tensor& x, Reduce reduce = Reduce::sum);
  // x is the sum after wait(). With NCCL the thread's work on the GPU goes on meanwhile; else the sum is there at once.
  std::unique_ptr<Transfer> start_all_reduce(Tensor& x, Reduce reduce = Reduce::sum);
  Tensor all_gather(const Tensor& mine);     // [n, ...] -> [P n, ...], in the order of ranks
  Tensor reduce_scatter(const Tensor& all);  // [P n, ...] -> [n, ...]: this rank's part of the sum
  Tensor all_to_all(const Tensor& parts);    // [P n, ...]: part r goes to rank r, and part r of the result came from it

  // Messages between ranks, all at once: whatever the order in which ranks send and receive, none waits for another one's turn. Messages from
  // one rank to another arrive in the order in which they were sent.
  std::unique_ptr<Transfer> start_exchange(std::span<const Send> sends, std::span<const Receive> receives);
  void exchange(std::span<const Send> sends, std::span<const Receive> receives) {
    start_exchange(sends, receives)->wait();
  }

  // A communicator of the ranks with the same color, in the order of `key` and then of ranks. Every rank calls it.
  std::unique_ptr<Communicator> split(int color, int key, std::string name);

  // Ends all work of all ranks: those that wait, and those that call later, throw an Error that says `why`. From any thread; never waits.
  virtual void abort(std::string why) noexcept = 0;
  // After an Error: whether this rank is the one that tells the user. The others have the same to say, or know less.
  virtual bool is_speaker() noexcept { return true; }

  // Writes the last operations of this communicator, and of those that are split from it later, to the file flight-RANK.txt in the folder:
  // state, seconds, bytes, number, module path. The file is whole however the process ends. The rank that is behind is the one to look at.
  void record_to(const std::string& folder);

 protected:
  Communicator(int rank, int size, std::string name);
  // `from` and `to` are row-major; for all_reduce and broadcast they are the same memory.
  virtual void run(const Operation& operation, const void* from, void* to) = 0;
  // The same, begun; `x` is the memory of both. Where it is done when this returns: null.
  virtual std::unique_ptr<Transfer> start_run(const Operation& operation, Tensor& x);
  virtual std::unique_ptr<Transfer> start(std::span<const Send> sends, std::span<const Receive> receives) = 0;
  virtual std::unique_ptr<Communicator> split_off(const Operation& operation, int color, int key, std::string name) = 0;
  virtual bool takes(Device device) const { return device.is_cpu(); }  // without a copy through the CPU
  FlightRecord* record() const { return record_.get(); }

 private:
  bool passes_cpu(const Tensor& x) const { return x.is_cuda() && size_ > 1 && !takes(x.device()); }
  static Tensor on_device_of(const Tensor& x, const Tensor& result);
  void run_recorded(const Operation& operation, const void* from, void* to);
  Operation reduction(const Tensor& x, Reduce reduce) const;
  Operation next(Collective kind, const Tensor& x = {}) const;
  const Tensor& checked(const Tensor& x, std::string_view call) const;
  void check_parts(const Tensor& x, std::string_view call) const;

  int rank_, size_;
  std::string name_;
  mutable uint64_t number_ = 0;
  uint64_t exchange_ = 0;
  std::shared_ptr<FlightRecord> record_;
  int ring_ = 0;  // of the record
};

// The only rank: every operation is done when it is called.
std::unique_ptr<Communicator> make_self_communicator();

struct ThreadRanksOptions {
  double timeout_s = 600;    // how long a rank waits for the others
  int threads_per_rank = 0;  // of its parallel loops; 0: this thread's number divided by the ranks
};
// Calls f(comm) on `num_ranks` threads, each a rank, with this thread's default device and with memory statistics of its own
// (Allocator::stats). If a rank throws, the others stop at their next operation, and the error of the rank that was first is thrown here.
void run_thread_ranks(int num_ranks, const std::function<void(Communicator&)>& f, ThreadRanksOptions options = {});

bool has_mpi();  // whether this build has MPI

struct MpiOptions {
  double timeout_s = 600;                  // how long a rank waits for the others
  int64_t piece_bytes = int64_t{1} << 30;  // longer messages travel in pieces
};
// This process as a rank of those that `mpirun` started. It starts MPI, once in a process, and ends it with the last communicator. Each wait
// looks whether the other ranks live: an Error names the rank, host and process that is gone or does not answer.
std::unique_ptr<Communicator> make_mpi_communicator(MpiOptions options = {});

}  // namespace weft::dist
