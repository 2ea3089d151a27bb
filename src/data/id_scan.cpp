// Looking at every id of shards before a model does: on all cores for a command, beside a training for a run.
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/data/shards.h"

namespace weft::data {

namespace {

constexpr int64_t kScanPiece = int64_t{1} << 20;

}  // namespace

int64_t check_ids(const Shard& shard, int64_t vocab) {
  int64_t pieces = (shard.num_tokens() + kScanPiece - 1) / kScanPiece;
  std::vector<int64_t> largest(static_cast<size_t>(pieces));
  std::atomic<int64_t> first_bad{pieces};
  auto scan = [&](int64_t piece) {
    int64_t begin = piece * kScanPiece;
    return shard.largest_id(begin, std::min(kScanPiece, shard.num_tokens() - begin), vocab);
  };
  parallel_items(pieces, [&](int64_t piece) {
    if (piece > first_bad) return;
    try {
      largest[static_cast<size_t>(piece)] = scan(piece);
    } catch (const Error&) {
      for (int64_t known = first_bad; piece < known && !first_bad.compare_exchange_weak(known, piece);) {}
    }
  });
  if (first_bad < pieces) scan(first_bad);  // again, for its error: the first bad id whatever the threads did
  return *std::max_element(largest.begin(), largest.end());
}

struct IdScan::State {
  std::vector<Shard> shards;
  int64_t vocab = 0;
  std::atomic<bool> stops{false}, has_failed{false};
  std::exception_ptr error;  // written before has_failed
  std::once_flag joined;
  std::thread thread;

  void join() {
    std::call_once(joined, [this] { thread.join(); });
  }

  void run() {
    ::setpriority(PRIO_PROCESS, 0, 19);  // of this thread alone
    try {
      for (const Shard& shard : shards)
        for (int64_t begin = 0; begin < shard.num_tokens() && !stops; begin += kScanPiece)
          shard.largest_id(begin, std::min(kScanPiece, shard.num_tokens() - begin), vocab);
    } catch (...) {
      error = std::current_exception();
      has_failed = true;
    }
  }
};

IdScan::IdScan(std::vector<Shard> shards, int64_t vocab) : state_(std::make_unique<State>()) {
  state_->shards = std::move(shards);
  state_->vocab = vocab;
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

IdScan::~IdScan() {
  state_->stops = true;
  state_->join();
}

void IdScan::look() const {
  if (state_->has_failed) std::rethrow_exception(state_->error);
}

void IdScan::wait() const {
  state_->join();
  look();
}

}  // namespace weft::data
