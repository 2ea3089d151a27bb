#include "tools/bench/bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/core/stream.h"

namespace weft::bench {

namespace {

Row make_row(std::string name, std::string shape, DType dtype, double value, std::string unit, double limit,
             double ratio) {
  return {std::move(name),
          std::move(shape),
          std::string(to_string(dtype)),
          num_threads(),
          value,
          std::move(unit),
          limit,
          ratio};
}

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, std::abs(x) >= 100 ? "%.0f" : std::abs(x) >= 10 ? "%.1f" : "%.3f", x);
  return text;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

std::string json_number(double x) {
  if (!std::isfinite(x)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", x);
  return text;
}

}  // namespace

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

Row rate_row(std::string name, std::string shape, DType dtype, double value, std::string unit, double limit) {
  return make_row(std::move(name), std::move(shape), dtype, value, std::move(unit), limit, value / limit);
}

Row time_row(std::string name, std::string shape, DType dtype, double value, std::string unit, double limit) {
  return make_row(std::move(name), std::move(shape), dtype, value, std::move(unit), limit, limit / value);
}

std::vector<Timing> time_in_turn(std::span<const std::function<void()>> functions, double budget_s, int min_rounds) {
  const double min_sample_s = default_device().is_cuda() ? 1e-2 : 1e-3;
  std::vector<int> repeats(functions.size(), 1);
  std::vector<std::vector<double>> samples(functions.size());
  auto sample = [&](size_t i) {
    double begin = now_s();
    for (int r = 0; r < repeats[i]; ++r) functions[i]();
    synchronize(default_device());
    return (now_s() - begin) / repeats[i];
  };
  for (size_t i = 0; i < functions.size(); ++i) {
    double once = sample(i);  // fills caches, creates primitives
    if (once < 20 * min_sample_s) once = sample(i);
    while (once * repeats[i] < min_sample_s) {
      repeats[i] *= 4;
      once = sample(i);
    }
  }
  double end = now_s() + budget_s;
  for (int round = 0; round < min_rounds || now_s() < end; ++round)
    for (size_t j = 0; j < functions.size(); ++j) {
      size_t i = (j + static_cast<size_t>(round)) % functions.size();  // no one is always first
      samples[i].push_back(sample(i));
    }
  std::vector<Timing> timings;
  for (auto& s : samples) {
    std::sort(s.begin(), s.end());
    timings.push_back({s.front(), s[s.size() / 2]});
  }
  return timings;
}

std::vector<double> ratios_in_turn(std::span<const std::function<void()>> functions, int rounds) {
  std::vector<std::vector<double>> samples(functions.size());
  for (const auto& f : functions) f();  // fills caches, creates primitives
  for (int round = 0; round < rounds; ++round) {
    std::vector<double> seconds(functions.size());
    for (size_t j = 0; j < functions.size(); ++j) {
      size_t i = (j + static_cast<size_t>(round)) % functions.size();
      double begin = now_s();
      functions[i]();
      synchronize(default_device());
      seconds[i] = now_s() - begin;
    }
    for (size_t i = 0; i < functions.size(); ++i) samples[i].push_back(i == 0 ? seconds[0] : seconds[i] / seconds[0]);
  }
  std::vector<double> medians;
  for (auto& s : samples) {
    std::sort(s.begin(), s.end());
    medians.push_back(s[s.size() / 2]);
  }
  return medians;
}

const Family& family(std::string_view name) {
  std::string names;
  for (const Family& f : families()) {
    if (f.name == name) return f;
    names += (names.empty() ? "" : ", ") + std::string(f.name);
  }
  fail(str("bench: no benchmark is called '", name, "'"), str("use one of: ", names));
}

std::vector<Row> middle_rows(std::span<const std::vector<Row>> runs) {
  std::vector<Row> rows;
  for (size_t i = 0; i < runs[0].size(); ++i) {
    std::vector<const Row*> same;
    for (const std::vector<Row>& run : runs) {
      const Row& first = runs[0][i];
      const bool is_same = run.size() == runs[0].size() && run[i].name == first.name && run[i].shape == first.shape &&
                           run[i].dtype == first.dtype;
      WEFT_CHECK(is_same, str("bench: another run has no row ", first.name, " ", first.shape, " ", first.dtype),
                 "please report this");
      same.push_back(&run[i]);
    }
    auto ratio = [](const Row* row) { return std::isfinite(row->ratio) ? row->ratio : 0; };
    std::stable_sort(same.begin(), same.end(), [&](const Row* a, const Row* b) { return ratio(a) < ratio(b); });
    rows.push_back(*same[(same.size() - 1) / 2]);
    if (ratio(same.back()) <= 0) continue;  // says why it was not measured
    const std::pair<std::string, std::string> spread[] = {{"lowest", number(ratio(same.front()))},
                                                          {"highest", number(ratio(same.back()))}};
    rows.back().extra.insert(rows.back().extra.begin(), std::begin(spread), std::end(spread));
  }
  return rows;
}

void print_table(std::span<const Row> rows, const Facts& facts, std::FILE* to) {
  std::string head;
  for (const auto& [name, text] : facts) head += str(head.empty() ? "" : "; ", name, " ", text);
  if (!head.empty()) std::fprintf(to, "%s\n\n", head.c_str());
  std::vector<std::vector<std::string>> lines = {
      {"name", "shape", "dtype", "threads", "value", "unit", "limit", "ratio"}};
  const size_t num_fixed = lines[0].size();
  for (const Row& row : rows)
    for (const auto& [heading, text] : row.extra)
      if (std::find(lines[0].begin(), lines[0].end(), heading) == lines[0].end()) lines[0].push_back(heading);
  for (const Row& row : rows) {
    lines.push_back({row.name, row.shape, row.dtype, std::to_string(row.threads), number(row.value), row.unit,
                     number(row.limit), number(row.ratio)});
    lines.back().resize(lines[0].size());
    for (const auto& [heading, text] : row.extra)
      lines.back()[static_cast<size_t>(std::find(lines[0].begin(), lines[0].end(), heading) - lines[0].begin())] = text;
  }
  std::vector<size_t> widths(lines[0].size(), 0);
  for (const auto& line : lines)
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  for (const auto& line : lines) {
    std::string text;
    for (size_t i = 0; i < line.size(); ++i) {
      bool is_number = i == 3 || i == 4 || i == 6 || i == 7;
      std::string pad(widths[i] - line[i].size(), ' ');
      text +=
          (i ? "  " : "") + (is_number ? pad + line[i] : line[i] + (i + 1 < line.size() || i < num_fixed ? pad : ""));
    }
    std::fprintf(to, "%s\n", text.c_str());
  }
}

void print_json(std::span<const Row> rows, const Facts& facts, std::FILE* to) {
  std::string text = "{\"facts\": {";
  for (const auto& [name, value] : facts)
    text += str(text.ends_with('{') ? "" : ", ", quoted(name), ": ", quoted(value));
  text += "},\n\"rows\": [";
  for (const Row& row : rows) {
    text += &row == rows.data() ? "\n" : ",\n";
    text +=
        str("  {\"name\": ", quoted(row.name), ", \"shape\": ", quoted(row.shape), ", \"dtype\": ", quoted(row.dtype),
            ", \"threads\": ", row.threads, ", \"value\": ", json_number(row.value), ", \"unit\": ", quoted(row.unit),
            ", \"limit\": ", json_number(row.limit), ", \"ratio\": ", json_number(row.ratio));
    for (const auto& [heading, value] : row.extra) text += str(", ", quoted(heading), ": ", quoted(value));
    text += "}";
  }
  std::fprintf(to, "%s\n]}\n", text.c_str());
}

}  // namespace weft::bench
