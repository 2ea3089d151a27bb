// The processes that mpirun started, as far as they must know of each other when something goes wrong: who lives, who has stopped the run
// and why, and what each waits for. Nothing here waits inside MPI but its start and its end, which end the process after the time-out. One thread
// at a time calls MPI: it holds lock().
#pragma once

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "distributed/comm/flight_record.h"
#include "distributed/comm/mpi/process.h"
#include "weft/comm/communicator.h"

namespace weft::dist {

// What a rank waits in: for the texts of Errors, and for its flight record.
struct MpiWait {
  const std::string& group;
  std::function<std::string()> doing;  // "all_reduce sum of 12 f32 (number 7) at model.layers.0"
  FlightRecord* record = nullptr;
  bool has_end = true;  // with the time-out; else for as long as the others run
};

// A letter to another rank, beside the messages of the communicators.
struct MpiLetter {
  enum Kind : int32_t { stop, question, answer };
  int32_t kind = stop, from = 0;
  char text[1016] = {};
};

class MpiLink {
 public:
  static constexpr int kWorld = 1;  // the number of the group of all ranks; 0 is the link's own

  explicit MpiLink(const MpiOptions& options);
  ~MpiLink();  // ends MPI if all ranks come to their end, else leaves that to the end of the process
  MpiLink(const MpiLink&) = delete;
  MpiLink& operator=(const MpiLink&) = delete;

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(peers_.size()); }
  MPI_Comm messages() const { return messages_; }
  int piece_bytes() const { return piece_bytes_; }
  double timeout_s() const { return timeout_s_; }
  std::unique_lock<std::mutex> lock() { return std::unique_lock(mutex_); }
  int largest_tag() const { return largest_tag_; }
  int next_group = kWorld + 1;  // no rank that was in a group with this one has used this number

  void require_running(const std::string& group);
  // Called again and again by a rank that has waited `waited_s` for `absent`: answers the others, and throws when that is hopeless.
  void look_around(const MpiWait& wait, double waited_s, const std::vector<int>& absent);
  // Error on all ranks.
  [[noreturn]] void fail_all(const std::string& problem, const std::string& fix);
  void stop(const std::string& why) noexcept;
  bool is_speaker() noexcept;

  // Messages that are not waited for any more. MPI may use their memory as long as it is called: `kept` holds it; without it, and with a
  // receive that cannot be called back, MPI is not called again.
  void drop(std::vector<MPI_Request>& sends, std::vector<MPI_Request>& receives, std::vector<Tensor>& kept) noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  void check(int code, const char* call) const;
  std::string name_of(int rank) const;
  void post_receive();  // these under mutex_
  void send_letter(int to, int32_t kind, const std::string& text);
  void send_to_all(int32_t kind, const std::string& text);
  void listen(const std::function<std::string()>& doing);
  void require_running_locked(const std::string& group) const;
  bool is_stopped(int rank) const;
  void look_for_the_dead(const MpiWait& wait, double waited_s);
  void look_for_the_stopped(const MpiWait& wait, double waited_s, const std::vector<int>& absent);
  [[noreturn]] void fail_late(const MpiWait& wait, double waited_s, const std::vector<int>& absent);
  void say_goodbye();

  std::mutex mutex_;
  const double timeout_s_;
  const int piece_bytes_;
  MPI_Comm messages_ = MPI_COMM_NULL, letters_ = MPI_COMM_NULL;
  int rank_ = 0, largest_tag_ = 0;
  bool is_ours_ = false;    // this object started MPI
  bool is_silent_ = false;  // MPI is not called again
  std::vector<Process> peers_;
  std::vector<bool> is_watched_;
  MpiLetter incoming_;
  MPI_Request incoming_request_ = MPI_REQUEST_NULL;
  std::list<std::pair<MpiLetter, MPI_Request>> outgoing_;
  std::vector<std::optional<std::string>> answers_;
  std::optional<std::string> stopped_;
  bool is_own_error_ = false;
  int lowest_heard_ = 0;  // the lowest rank that has said that the run stops
  Clock::time_point last_look_;
  std::optional<Clock::time_point> stopped_since_;  // where a wait has no end: one that is waited for
  std::vector<Tensor> kept_;
};

}  // namespace weft::dist
