#include "trainers/conformance/ranks_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

namespace weft::conformance {

namespace {

struct Counts {
  size_t spreads = 0;
  std::map<dist::LayoutKind, size_t> layouts = {};
  std::map<dist::Scheme, size_t> schemes = {};
  std::map<int, size_t> ranks = {};
  std::set<std::string> refused = {};

  void add(const Result& result) {
    for (const Spread& spread : result.spreads) {
      if (!spread.refused.empty()) {
        refused.insert(spread.refused);
        continue;
      }
      ++spreads, ++layouts[spread.of.layout], ++schemes[spread.of.scheme], ++ranks[spread.of.ranks];
    }
    if (result.verdict == Verdict::unsupported) refused.insert(result.reason);
  }
};

// cell(count) of every layout, scheme and number of ranks.
template <class Cell>
void for_each_count(Counts& counts, Cell cell) {
  for (dist::LayoutKind layout : kSpreadLayouts) cell(to_string(layout), counts.layouts[layout]);
  for (dist::Scheme scheme : dist::all_schemes()) cell(to_string(scheme), counts.schemes[scheme]);
  for (int ranks : kSpreadRanks) cell(fmt::format("{} ranks", ranks), counts.ranks[ranks]);
}

}  // namespace

std::string ranks_table(std::span<const Result> results) {
  Counts none;
  std::string text = "| mixers |", rule = "|---|";
  for_each_count(none, [&](std::string_view name, size_t) { text += fmt::format(" {} |", name), rule += "---|"; });
  std::vector<std::string> lines;                         // what follows the names, in the order of the table
  std::map<std::string, std::vector<std::string>> names;  // by that
  for (const Result& result : results) {
    if (result.check != "ranks") continue;
    Counts counts;
    counts.add(result);
    std::string line;
    for_each_count(counts, [&](std::string_view, size_t count) {
      line += result.verdict == Verdict::failed ? " FAILED |" : count > 0 ? fmt::format(" {} |", count) : " - |";
    });
    for (std::string separator = " "; const std::string& reason : counts.refused)
      line += std::exchange(separator, "; ") + reason;
    line += " |";
    if (std::ranges::find(lines, line) == lines.end()) lines.push_back(line);
    names[line].push_back(result.variant);
  }
  text += " refused |\n" + rule + "---|\n";
  for (const std::string& line : lines) {
    text += fmt::format("| {} of them: `", names[line].size());
    for (std::string separator; const std::string& name : names[line]) text += std::exchange(separator, "`, `") + name;
    text += "` |" + line + "\n";
  }
  return text;
}

std::string ranks_summary(std::span<const Result> results) {
  Counts all;
  std::map<std::string, std::vector<std::string>> refusals;  // by reason: who
  size_t variants = 0;
  for (const Result& result : results) {
    if (result.check != "ranks") continue;
    Counts counts;
    counts.add(result);
    all.add(result);
    variants += counts.spreads > 0;
    for (const std::string& reason : counts.refused) refusals[reason].push_back(result.variant);
  }
  if (variants == 0 && refusals.empty()) return "";
  std::string text = fmt::format("conformance: ranks: {} variants in {} spreads:", variants, all.spreads);
  for_each_count(all, [&, separator = " "](std::string_view name, size_t count) mutable {
    text += fmt::format("{}{} {}", separator, name, count);
    separator = ", ";
  });
  text += "\n";
  for (const auto& [reason, who] : refusals) {
    text += fmt::format("conformance: ranks: refused by {}:", reason);
    for (const std::string& name : who) text += " " + name;
    text += "\n";
  }
  return text;
}

}  // namespace weft::conformance
