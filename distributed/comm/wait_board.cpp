#include "distributed/comm/wait_board.h"

#include "weft/core/error.h"

namespace weft::dist {

namespace {

std::string path_of(const Scope* innermost) {
  std::string path;
  for (const Scope* scope = innermost; scope; scope = scope->outer())
    if (!scope->name().empty()) path = path.empty() ? std::string(scope->name()) : str(scope->name(), ".", path);
  return path;
}

}  // namespace

std::string WaitBoard::others(int rank) const {
  std::lock_guard lock(mutex_);
  std::string text;
  for (size_t r = 0; r < waits_.size(); ++r) {
    const Wait& wait = waits_[r];
    if (static_cast<int>(r) == rank) continue;
    text += str("; rank ", r, " of the world");
    if (!wait.is_waiting) text += " is in no call: it is busy, or has ended";
    else if (wait.collective) text += str(" is in ", *wait.collective);
    else text += str(" is in an exchange with rank ", wait.peer);
    if (const std::string path = path_of(wait.scope); wait.is_waiting && !wait.collective && !path.empty())
      text += str(" at ", path);
  }
  return text;
}

}  // namespace weft::dist
