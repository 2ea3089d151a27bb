// One exception type for everything a user can cause, and the two check macros.
// WEFT_CHECK(condition, what, fix) is always on; WEFT_ASSERT(condition) is for our own invariants, off in release.
// `what` and `fix` are built only on failure; str(a, b, ...) joins values, shapes, dtypes and devices into a text.
#pragma once

#include <concepts>
#include <cstdint>
#include <exception>
#include <source_location>
#include <string>
#include <string_view>

namespace weft {

// What went wrong (with the values), where (module path, rank, file and line), and what to do about it.
class Error : public std::exception {
 public:
  Error(std::string problem, std::string where, std::string fix);
  const char* what() const noexcept override { return message_.c_str(); }  // all three parts, one per line
  const std::string& problem() const { return problem_; }
  const std::string& where() const { return where_; }
  const std::string& fix() const { return fix_; }

 private:
  std::string problem_, where_, fix_, message_;
};

// Throws Error; `where` is made of the current Scope path, the rank if there are several, and the source location.
[[noreturn]] void fail(std::string problem, std::string fix,
                       std::source_location location = std::source_location::current());

namespace detail {
void append(std::string& out, std::string_view text);
void append(std::string& out, int64_t number);
void append(std::string& out, uint64_t number);
void append(std::string& out, double number);

template <class T>
void append_any(std::string& out, const T& value) {
  if constexpr (std::convertible_to<const T&, std::string_view>) append(out, std::string_view(value));
  else if constexpr (std::same_as<T, bool>) append(out, std::string_view(value ? "true" : "false"));
  else if constexpr (std::same_as<T, char>) append(out, std::string_view(&value, 1));
  else if constexpr (std::signed_integral<T>) append(out, static_cast<int64_t>(value));
  else if constexpr (std::unsigned_integral<T>) append(out, static_cast<uint64_t>(value));
  else if constexpr (std::floating_point<T>) append(out, static_cast<double>(value));
  else append(out, std::string_view(to_string(value)));
}
}  // namespace detail

// Joins its arguments: texts, numbers, bools, and every type with a to_string() beside it.
template <class... T>
std::string str(const T&... parts) {
  std::string out;
  (detail::append_any(out, parts), ...);
  return out;
}

}  // namespace weft

#define WEFT_CHECK(condition, what, fix) \
  do {                                   \
    if (!(condition)) [[unlikely]]       \
      ::weft::fail((what), (fix));       \
  } while (0)

#ifdef NDEBUG
#define WEFT_ASSERT(condition) ((void)0)
#else
#define WEFT_ASSERT(condition)                                                            \
  do {                                                                                    \
    if (!(condition)) [[unlikely]]                                                        \
      ::weft::fail("internal error: " #condition " does not hold", "please report this"); \
  } while (0)
#endif
