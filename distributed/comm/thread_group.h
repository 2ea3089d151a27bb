// Where ranks that are threads of one process meet.
#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "distributed/comm/wait_board.h"
#include "weft/comm/communicator.h"

namespace weft::dist {

// What one rank brings to a collective.
struct Visit {
  Operation operation;
  const void* from = nullptr;
  void* to = nullptr;
  int color = 0, key = 0;  // of a split
};

// A message that a rank has sent. The receiver copies it: each rank has the memory that it would have as a process.
struct Message {
  Tensor tensor;
  bool is_taken = false;
};

class ThreadGroup {
 public:
  // `members`: the group's ranks as ranks of the world.
  ThreadGroup(std::vector<int> members, std::string name, double timeout_s, std::shared_ptr<WaitBoard> board);

  int size() const { return static_cast<int>(visits_.size()); }
  const std::string& name() const { return name_; }
  double timeout_s() const { return timeout_s_; }

  std::shared_ptr<Message> send(int from, int to, const Tensor& tensor);
  // The number of the next message of `from` that nobody else has asked for, and the wait for it. So messages are taken in the order in which
  // exchanges were started, whichever of them is waited for first.
  uint64_t expect(int from, int to);
  void receive(int from, int to, uint64_t number, Tensor& into);
  void wait_until_taken(int rank, int to, const Message& message);

  // The group of the ranks with `color`, made by the first of them.
  std::shared_ptr<ThreadGroup> child(uint64_t number, int color, const std::vector<int>& ranks,
                                     const std::string& name);

  void abort(const std::string& why) noexcept;

 private:
  friend class Meeting;
  void come(int rank, Visit visit);
  // Until all ranks have come to it as often. `reads_then`: the rank counts as reading from then on.
  void gather(int rank, const char* doing, bool reads_then);
  void end_reading();
  void wait_for_readers();
  void require_running() const;  // under mutex_
  // Until `ready`. waiting_for() is called when that takes too long, for the text of the Error. The rank is in a collective, or in an
  // exchange with `peer`.
  template <class Ready, class Says>
  void wait(std::unique_lock<std::mutex>& lock, int rank, const Operation* collective, int peer, Ready ready,
            Says waiting_for);

  const std::vector<int> members_;
  const std::string name_;
  const double timeout_s_;
  const std::shared_ptr<WaitBoard> board_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Visit> visits_;
  std::vector<uint64_t> arrivals_;  // how often each rank has come to gather()
  int num_reading_ = 0;             // ranks that may be reading what others have shown
  struct Mail {
    uint64_t num_sent = 0, num_expected = 0;
    std::map<uint64_t, std::shared_ptr<Message>> messages = {};  // by number, those that are not taken
  };
  std::map<std::pair<int, int>, Mail> mail_;  // from, to
  std::map<std::pair<uint64_t, int>, std::shared_ptr<ThreadGroup>> children_;
  std::optional<std::string> aborted_;
};

// A collective on one rank. All ranks come with their visits, and each sees those of all; an Error on every rank if the operations differ.
// The visits, and the memory that they show, may be read until leave(), or until the Meeting ends because something was thrown: no rank goes
// on, and frees what it has shown, while another one may be reading. That holds after an abort too.
class Meeting {
 public:
  Meeting(ThreadGroup& group, int rank, Visit visit);

  const std::vector<Visit>& visits() const { return group_.visits_; }
  void wait_for_all();  // all ranks call it: what the others wrote before is seen after it
  void leave();         // when all ranks have called it

 private:
  // A member of its own, whose end is reached also when the Meeting cannot begin.
  class Reading {
   public:
    Reading(ThreadGroup& group, int rank) : group_(group), rank_(rank) {}
    ~Reading();
    Reading(const Reading&) = delete;
    Reading& operator=(const Reading&) = delete;
    void begin_after(const char* doing);
    void pause(const char* doing);
    void end_before(const char* doing);

   private:
    ThreadGroup& group_;
    const int rank_;
    bool is_on_ = false, have_all_ended_ = false;
  };
  void require_agreement();

  ThreadGroup& group_;
  Reading reading_;
};

}  // namespace weft::dist
