#include "weft/core/error.h"

#include <charconv>
#include <cmath>
#include <utility>

#include "weft/core/scope.h"

namespace weft {

namespace {

// "/long/path/ops/matmul.cpp" -> "ops/matmul.cpp": the last two parts name the file well enough.
std::string_view short_file(std::string_view path) {
  size_t last = path.rfind('/');
  if (last == std::string_view::npos || last == 0) return path;
  size_t before = path.rfind('/', last - 1);
  return before == std::string_view::npos ? path : path.substr(before + 1);
}

}  // namespace

Error::Error(std::string problem, std::string where, std::string fix)
    : problem_(std::move(problem)), where_(std::move(where)), fix_(std::move(fix)) {
  message_ = problem_;
  if (!where_.empty()) message_ += "\n  where: " + where_;
  if (!fix_.empty()) message_ += "\n  fix: " + fix_;
}

void fail(std::string problem, std::string fix, std::source_location location) {
  std::string where = Scope::path();
  RankLabel rank = rank_label();
  if (rank.size > 1) where += str(where.empty() ? "" : ", ", "rank ", rank.rank, " of ", rank.size);
  where += str(where.empty() ? "" : " ", "(", short_file(location.file_name()), ":", location.line(), ")");
  throw Error(std::move(problem), std::move(where), std::move(fix));
}

namespace detail {

template <class T>
static void append_number(std::string& out, T number) {
  char buffer[32];
  auto [end, code] = std::to_chars(buffer, buffer + sizeof buffer, number);
  out.append(buffer, code == std::errc() ? end : buffer);
}

void append(std::string& out, std::string_view text) { out += text; }
void append(std::string& out, int64_t number) { append_number(out, number); }
void append(std::string& out, uint64_t number) { append_number(out, number); }
void append(std::string& out, double number) {
  if (std::isnan(number)) return append(out, std::string_view("nan"));  // its sign means nothing
  char buffer[32];
  auto [end, code] = std::to_chars(buffer, buffer + sizeof buffer, number, std::chars_format::general, 9);
  out.append(buffer, code == std::errc() ? end : buffer);
}

}  // namespace detail
}  // namespace weft
