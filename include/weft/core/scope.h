// The path of the module that is running on this thread ("model.layers.3.mixer.q"), for errors, traces and anomaly mode.
// A Scope costs two pointer writes. The text of the path is made only when path() is called.
#pragma once

#include <string>
#include <string_view>

namespace weft {

// Pushes a name for its lifetime. The text behind `name` must outlive the Scope.
class Scope {
 public:
  explicit Scope(std::string_view name);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  static std::string path();        // names from outermost to innermost, joined by dots; "" outside any
  static const Scope* innermost();  // nullptr outside any
  static bool is_watched();         // whether a Profile of this thread or a tool records scopes
  const Scope* outer() const { return outer_; }
  std::string_view name() const { return name_; }

 private:
  std::string_view name_;
  const Scope* outer_;
};

// Hides all outer names for its lifetime. For code that does the work of another module than the one that calls it.
class ScopeRoot {
 public:
  ScopeRoot();
  ~ScopeRoot();
  ScopeRoot(const ScopeRoot&) = delete;
  ScopeRoot& operator=(const ScopeRoot&) = delete;

 private:
  const Scope* hidden_;
};

// The rank that errors of this thread name, and the number of ranks. The communicator sets it; by default it is 0 of 1.
struct RankLabel {
  int rank = 0;
  int size = 1;
};
RankLabel rank_label();
void set_rank_label(RankLabel label);

}  // namespace weft
