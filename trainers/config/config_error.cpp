#include "trainers/config/config_error.h"

#include <algorithm>
#include <numeric>

namespace weft::config {

namespace {

// Levenshtein distance, with a swap of neighbours counted once.
int edit_distance(std::string_view a, std::string_view b) {
  std::vector<int> before, last(b.size() + 1), row(b.size() + 1);
  std::iota(last.begin(), last.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    row[0] = static_cast<int>(i) + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      row[j + 1] = std::min({row[j] + 1, last[j + 1] + 1, last[j] + (a[i] != b[j])});
      if (i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j]) row[j + 1] = std::min(row[j + 1], before[j - 1] + 1);
    }
    before = last;
    last = row;
  }
  return last.back();
}

size_t shared_prefix(std::string_view a, std::string_view b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

}  // namespace

std::string nearest(std::string_view word, std::span<const std::string> candidates) {
  std::string best;
  int best_distance = 3;
  for (const std::string& candidate : candidates) {
    int distance = edit_distance(word, candidate);
    // Two edits turn any word of two letters into any other: that says nothing.
    bool says_something = distance < static_cast<int>(std::min(word.size(), candidate.size()));
    if (distance < best_distance && says_something) {
      best = candidate;
      best_distance = distance;
    }
  }
  if (!best.empty()) return best;
  size_t longest = 2;
  for (const std::string& candidate : candidates) {
    size_t shared = shared_prefix(word, candidate);
    if (shared > longest) {
      best = candidate;
      longest = shared;
    }
  }
  return best;
}

std::string suggestion(std::string_view word, std::span<const std::string> candidates, std::string_view label) {
  std::string near = nearest(word, candidates);
  if (!near.empty()) return "Did you mean '" + near + "'?";
  return std::string(label) + ": " + join(candidates, ", ");
}

void check_choice(std::string_view argument, std::string_view name, std::span<const std::string> names,
                  std::string_view what) {
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  std::string near = nearest(name, names);
  throw ConfigError(
      str(argument, " ", name, ": no such ", what, ".", near.empty() ? "" : " Did you mean '" + near + "'?"),
      "Use one of: " + join(names, ", ") + ".");
}

std::string join(std::span<const std::string> words, std::string_view separator) {
  std::string out;
  for (const std::string& word : words) {
    if (!out.empty()) out += separator;
    out += word;
  }
  return out;
}

}  // namespace weft::config
