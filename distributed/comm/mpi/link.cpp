#include "distributed/comm/mpi/link.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <thread>

#include "distributed/comm/mpi/guard.h"
#include "distributed/comm/mpi/requests.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft::dist {

namespace {

constexpr double kLook_s = 0.05;    // how often a rank that waits reads letters and looks who lives
constexpr double kAnswer_s = 1.0;   // how long the others have to answer before they are called silent
constexpr double kSpeaker_s = 0.3;  // how long errors of other ranks are waited for
constexpr double kListeners_s =
    1.0;  // how long the others leave the speaker: mpirun ends all when the first process ends
constexpr double kStart_s =
    20;  // at least, until all processes have come: one of them may have asked git for its commit before
constexpr const char* kHint =
    "look at that process: its own messages, the kernel's log, the scheduler; a longer time-out helps if it only works";

double rounded(double seconds) { return std::round(100 * seconds) / 100; }

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

MpiLink::MpiLink(const MpiOptions& options)
    : timeout_s_(options.timeout_s), piece_bytes_(static_cast<int>(options.piece_bytes)) {
  MpiGuard guard("the start of MPI", std::max(timeout_s_, kStart_s));
  int is_started = 0, is_ended = 0, level = 0;
  MPI_Initialized(&is_started);
  MPI_Finalized(&is_ended);
  WEFT_CHECK(!is_ended, "make_mpi_communicator: MPI has ended, and starts only once in a process",
             "keep the communicator for as long as ranks work together");
  guard.enter("MPI_Init_thread");
  if (is_started) MPI_Query_thread(&level);
  else check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &level), "MPI_Init_thread");
  is_ours_ = !is_started;
  WEFT_CHECK(level >= MPI_THREAD_SERIALIZED, str("make_mpi_communicator: MPI has thread level ", level),
             "start MPI with MPI_THREAD_SERIALIZED or above, or let Weft start it");
  guard.enter("MPI_Comm_dup");
  check(MPI_Comm_dup(MPI_COMM_WORLD, &messages_), "MPI_Comm_dup");
  check(MPI_Comm_dup(MPI_COMM_WORLD, &letters_), "MPI_Comm_dup");
  MPI_Comm_set_errhandler(messages_, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(letters_, MPI_ERRORS_RETURN);
  int size = 0, is_set = 0, *bound = nullptr;
  MPI_Comm_rank(messages_, &rank_);
  MPI_Comm_size(messages_, &size);
  MPI_Comm_get_attr(messages_, MPI_TAG_UB, &bound, &is_set);
  largest_tag_ = is_set ? *bound : 32767;
  lowest_heard_ = size;

  const Process self = this_process();
  peers_.resize(static_cast<size_t>(size));
  guard.enter("MPI_Allgather");
  check(MPI_Allgather(&self, sizeof self, MPI_BYTE, peers_.data(), sizeof self, MPI_BYTE, messages_), "MPI_Allgather");
  // All are alive here: who is not seen is in a container of its own.
  for (const Process& peer : peers_) is_watched_.push_back(life_of(peer, self) == Life::runs);
  answers_.resize(peers_.size());
  post_receive();
}

MpiLink::~MpiLink() {
  try {
    if (!stopped_) say_goodbye();
  } catch (const std::exception& error) {
    // The caller's work is done, and a destructor throws nothing: whoever started the ranks hears of it here or nowhere.
    if (is_own_error_ && is_speaker()) std::fprintf(stderr, "error: %s\n", error.what());
  }
  const auto begin = Clock::now();
  while (!is_silent_ && !outgoing_.empty() && seconds_since(begin) < kSpeaker_s) {  // letters are on their way
    auto held = lock();
    listen([] { return std::string("the end of its work"); });
  }
  if (stopped_ || is_silent_) return;  // MPI_Finalize would wait for all ranks
  MpiGuard guard("the end of MPI", timeout_s_);
  guard.enter("MPI_Finalize");
  MPI_Cancel(&incoming_request_);
  MPI_Wait(&incoming_request_, MPI_STATUS_IGNORE);
  MPI_Comm_free(&messages_);
  MPI_Comm_free(&letters_);
  if (is_ours_) MPI_Finalize();
}

void MpiLink::check(int code, const char* call) const {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail(str(call, ": ", text), "see the messages of mpirun");
}

std::string MpiLink::name_of(int rank) const { return str("rank ", rank, " ", peers_[static_cast<size_t>(rank)]); }

void MpiLink::post_receive() {
  if (!is_silent_) MPI_Irecv(&incoming_, sizeof incoming_, MPI_BYTE, MPI_ANY_SOURCE, 0, letters_, &incoming_request_);
}

void MpiLink::send_letter(int to, int32_t kind, const std::string& text) {
  if (is_silent_ || to == rank_) return;
  auto& [letter, request] = outgoing_.emplace_back();
  letter.kind = kind;
  letter.from = rank_;
  std::copy_n(text.begin(), std::min(text.size(), sizeof letter.text - 1), letter.text);
  request = MPI_REQUEST_NULL;
  MPI_Isend(&letter, sizeof letter, MPI_BYTE, to, 0, letters_, &request);
}

void MpiLink::send_to_all(int32_t kind, const std::string& text) {
  for (int r = 0; r < size(); ++r) send_letter(r, kind, text);
}

void MpiLink::listen(const std::function<std::string()>& doing) {
  while (!is_silent_) {
    int is_here = 0;
    if (MPI_Test(&incoming_request_, &is_here, MPI_STATUS_IGNORE) != MPI_SUCCESS || !is_here) break;
    const MpiLetter letter = incoming_;
    post_receive();
    switch (letter.kind) {
      case MpiLetter::stop:
        lowest_heard_ = std::min(lowest_heard_, letter.from);
        if (!stopped_) stopped_ = letter.text;
        break;
      case MpiLetter::question: send_letter(letter.from, MpiLetter::answer, doing()); break;
      default: answers_[static_cast<size_t>(letter.from)] = letter.text;
    }
  }
  outgoing_.remove_if([&](auto& sent) {
    int is_sent = 0;
    return !is_silent_ && MPI_Test(&sent.second, &is_sent, MPI_STATUS_IGNORE) == MPI_SUCCESS && is_sent;
  });
}

void MpiLink::require_running_locked(const std::string& group) const {
  if (stopped_) fail(str(group, ": stopped, because ", *stopped_), "see the error of the rank that was first");
}

void MpiLink::require_running(const std::string& group) {
  std::lock_guard held(mutex_);
  require_running_locked(group);
}

void MpiLink::stop(const std::string& why) noexcept {
  std::lock_guard held(mutex_);
  if (stopped_) return;
  stopped_ = why;
  is_own_error_ = true;
  send_to_all(MpiLetter::stop, why);
}

void MpiLink::fail_all(const std::string& problem, const std::string& fix) {
  stop(problem);
  fail(problem, fix);
}

void MpiLink::look_around(const MpiWait& wait, double waited_s, const std::vector<int>& absent) {
  {
    std::lock_guard held(mutex_);
    if (seconds_since(last_look_) < kLook_s) return;
    last_look_ = Clock::now();
    listen(wait.doing);
    require_running_locked(wait.group);
  }
  if (wait.record) wait.record->update_times();
  if (waited_s > kLook_s) look_for_the_dead(wait, waited_s);
  if (!wait.has_end) look_for_the_stopped(wait, waited_s, absent);
  else if (waited_s > timeout_s_) fail_late(wait, waited_s, absent);
}

bool MpiLink::is_stopped(int rank) const {
  const auto peer = static_cast<size_t>(rank);
  return is_watched_[peer] && life_of(peers_[peer], peers_[static_cast<size_t>(rank_)]) == Life::stopped;
}

// Who works is waited for, however long that takes; who is stopped (SIGSTOP, or a debugger) for the time-out.
void MpiLink::look_for_the_stopped(const MpiWait& wait, double waited_s, const std::vector<int>& absent) {
  if (std::none_of(absent.begin(), absent.end(), [&](int r) { return is_stopped(r); })) return stopped_since_.reset();
  if (!stopped_since_) stopped_since_ = Clock::now();
  if (seconds_since(*stopped_since_) > timeout_s_) fail_late(wait, waited_s, absent);
}

void MpiLink::look_for_the_dead(const MpiWait& wait, double waited_s) {
  std::string dead;
  for (int r = 0; r < size(); ++r)
    if (is_watched_[static_cast<size_t>(r)] &&
        life_of(peers_[static_cast<size_t>(r)], peers_[static_cast<size_t>(rank_)]) == Life::gone)
      dead += (dead.empty() ? "" : ", ") + name_of(r);
  if (dead.empty()) return;
  fail_all(str(wait.group, ": ", dead, " is gone; rank ", rank_, " waited ", rounded(waited_s), " s in ", wait.doing()),
           "see what ended it: its own messages, the kernel's log (out of memory), the scheduler");
}

// The rank that is waited for may wait itself. All ranks are asked what they do; who does not answer is the one to look at.
void MpiLink::fail_late(const MpiWait& wait, double waited_s, const std::vector<int>& absent) {
  {
    std::lock_guard held(mutex_);
    std::fill(answers_.begin(), answers_.end(), std::nullopt);
    send_to_all(MpiLetter::question, "");
  }
  const auto begin = Clock::now();
  size_t answers = 0;
  while (answers + 1 < peers_.size() && seconds_since(begin) < kAnswer_s) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::lock_guard held(mutex_);
    listen(wait.doing);
    require_running_locked(wait.group);
    answers =
        static_cast<size_t>(std::count_if(answers_.begin(), answers_.end(), [](auto& a) { return a.has_value(); }));
  }
  std::string problem =
      str(wait.group, ": rank ", rank_, " waited ", rounded(waited_s), " s in ", wait.doing(), ", for ");
  for (size_t i = 0; i < absent.size(); ++i) problem += (i ? ", " : "") + name_of(absent[i]);
  for (int r = 0; r < size(); ++r) {
    const auto peer = static_cast<size_t>(r);
    if (r == rank_) continue;
    if (answers_[peer]) problem += str("; rank ", r, ": ", *answers_[peer]);
    else if (is_stopped(r)) problem += str("; ", name_of(r), " is stopped (SIGSTOP, or a debugger)");
    else problem += str("; ", name_of(r), " does not answer: it is busy, stopped or gone");
  }
  fail_all(problem, kHint);
}

bool MpiLink::is_speaker() noexcept {
  const auto begin = Clock::now();
  while (seconds_since(begin) < (is_own_error_ && lowest_heard_ > rank_ ? kSpeaker_s : kListeners_s)) {
    {
      std::lock_guard held(mutex_);
      listen([] { return std::string("an error"); });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return is_own_error_ && lowest_heard_ > rank_;
}

void MpiLink::drop(std::vector<MPI_Request>& sends, std::vector<MPI_Request>& receives,
                   std::vector<Tensor>& kept) noexcept {
  std::lock_guard held(mutex_);
  if (is_silent_) return;
  kept_.insert(kept_.end(), kept.begin(), kept.end());
  for (MPI_Request& send : sends) MPI_Request_free(&send);
  for (MPI_Request& receive : receives) MPI_Cancel(&receive);
  const auto begin = Clock::now();
  for (MPI_Request& receive : receives)
    for (int is_done = 0; !is_done && seconds_since(begin) < kSpeaker_s;)
      if (MPI_Test(&receive, &is_done, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
  const bool are_all_done =
      std::all_of(receives.begin(), receives.end(), [](MPI_Request r) { return r == MPI_REQUEST_NULL; });
  if (!are_all_done && kept.empty()) is_silent_ = true;
}

// All ranks come here before any of them ends MPI. Who has done its work waits for as long as others work.
void MpiLink::say_goodbye() {
  const std::string group = "the end of the run";
  char mine = 0;
  std::vector<char> theirs(peers_.size());
  MpiRequests requests(*this);
  for (int r = 0; r < size(); ++r)
    if (r != rank_) requests.receive(&theirs[static_cast<size_t>(r)], 1, r, 0), requests.send(&mine, 1, r, 0);
  requests.wait({group, [] { return std::string("the end of its work"); }, nullptr, false});
}

}  // namespace weft::dist
