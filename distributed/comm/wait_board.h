// What the ranks of a process wait for. A rank whose time is up names the one that is behind, which may be another than the one it waits for.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "weft/comm/communicator.h"
#include "weft/core/scope.h"

namespace weft::dist {

class WaitBoard {
 public:
  explicit WaitBoard(int ranks) : waits_(static_cast<size_t>(ranks)) {}

  // A wait of a rank of the world, for as long as this object lives. No text is made.
  class Entry {
   public:
    Entry(WaitBoard& board, int rank, const Operation* collective, int peer) : board_(board), rank_(rank) {
      board_.set(rank, {true, collective, peer, Scope::innermost()});
    }
    ~Entry() { board_.set(rank_, {}); }
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

   private:
    WaitBoard& board_;
    int rank_;
  };

  // "; rank 1 of the world is in all_reduce ...; rank 2 of the world is in no call: it is busy, or has ended": of all ranks but one.
  std::string others(int rank) const;

 private:
  struct Wait {
    bool is_waiting = false;
    const Operation* collective = nullptr;  // or a message
    int peer = 0;
    const Scope* scope = nullptr;  // of the waiting thread; it stands still
  };
  void set(int rank, const Wait& wait) {
    std::lock_guard lock(mutex_);
    waits_[static_cast<size_t>(rank)] = wait;
  }

  mutable std::mutex mutex_;
  std::vector<Wait> waits_;
};

}  // namespace weft::dist
