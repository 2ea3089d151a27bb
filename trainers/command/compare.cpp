// weft compare A B [--rules FILE] [--rtol R] [--atol A]: the tensors of two files, checkpoints or runs, one by one in layer order.
// weft compare RUN RUN RUN... [--out DIR]: a study's report of runs that are finished.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/run/address.h"
#include "trainers/study/comparison.h"
#include "trainers/study/study_report.h"
#include "weft/autograd/functions.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string a, b, rules, out;
  std::vector<std::string> more, metrics;
  double rtol = 0, atol = 0;
};

// How much the tensors whose names match may differ; the first rule that matches a name holds for it.
struct Rule {
  std::string pattern;
  bool is_ignored = false;
  double rtol = 0, atol = 0;
};

// `*` stands for any characters.
bool matches(std::string_view name, std::string_view pattern) {
  if (pattern.empty()) return name.empty();
  if (pattern[0] != '*') return !name.empty() && name[0] == pattern[0] && matches(name.substr(1), pattern.substr(1));
  for (size_t skip = 0; skip <= name.size(); ++skip)
    if (matches(name.substr(skip), pattern.substr(1))) return true;
  return false;
}

bool is_tolerance(double x) { return std::isfinite(x) && x >= 0; }

// Lines "PATTERN ignore" or "PATTERN rtol=R atol=A"; # begins a comment.
std::vector<Rule> read_rules(const std::string& file) {
  std::vector<Rule> rules;
  if (file.empty()) return rules;
  if (!io::file_exists(file))
    throw config::ConfigError("--rules " + file + ": no such file.", "Name a file of rules: see weft compare --help.");
  std::istringstream lines(io::read_file(file));
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::istringstream words(line.substr(0, line.find('#')));
    Rule rule;
    if (!(words >> rule.pattern)) continue;
    bool is_good = true, is_given = false;
    for (std::string word; words >> word; is_given = true) {
      double* value = word.starts_with("rtol=") ? &rule.rtol : word.starts_with("atol=") ? &rule.atol : nullptr;
      if (word == "ignore") rule.is_ignored = true;
      else if (value) {
        auto [end, code] = std::from_chars(word.data() + 5, word.data() + word.size(), *value);
        is_good = is_good && code == std::errc() && end == word.data() + word.size() && is_tolerance(*value);
      } else is_good = false;
    }
    if (!is_good || !is_given)
      throw config::ConfigError(fmt::format("{}:{}: not a rule: {}", file, number, line),
                                "Write PATTERN ignore, or PATTERN rtol=R atol=A, where * stands for any characters.");
    rules.push_back(rule);
  }
  return rules;
}

// A safetensors file, or a checkpoint as in trainers/run/address.h.
io::SafetensorsFile open_weights(const std::string& path, Console& console) {
  if (!io::file_exists(path) && path.find('@') == std::string::npos)
    throw config::ConfigError(
        path + ": no such file or folder.",
        "Name a *.safetensors file, a run, RUN@STEP, RUN@best, RUN@latest or a checkpoint's folder.");
  if (io::file_exists(path) && !io::is_folder(path)) return io::SafetensorsFile::open(path);
  if (io::file_exists(path + "/manifest")) return io::load_checkpoint(path).model;
  std::string run = path;
  if (!io::file_exists(path)) {
    const train::RunAddress found = train::find_run(path);
    if (!found.checkpoint.empty()) return io::load_checkpoint(found.checkpoint).model;
    run = found.folder;
  }
  std::vector<std::string> messages;
  std::optional<io::Checkpoint> checkpoint = io::load_latest_checkpoint(run + "/checkpoints", messages);
  for (const std::string& message : messages) console.message(message);
  if (!checkpoint)
    throw config::ConfigError(path + ": holds no checkpoint.", "Name a *.safetensors file, a checkpoint or a run.");
  console.message(path + ": step " + std::to_string(checkpoint->info.step));
  return std::move(checkpoint->model);
}

// Layer order: what comes before the layers, the layers by their numbers, the rest.
struct LayerOrder {
  static int group(std::string_view name) {
    auto digit = [](char c) { return c >= '0' && c <= '9'; };
    if (std::any_of(name.begin(), name.end(), digit) && name.find('.') != std::string_view::npos) return 1;
    return name.find("embed") != std::string_view::npos || name.starts_with("positions") ? 0 : 2;
  }
  // Runs of digits compare as numbers, so that layer 10 comes after layer 9.
  bool operator()(const std::string& a, const std::string& b) const {
    if (group(a) != group(b)) return group(a) < group(b);
    auto digit = [](char c) { return c >= '0' && c <= '9'; };
    size_t i = 0, j = 0;
    while (i < a.size() && j < b.size()) {
      if (!digit(a[i]) || !digit(b[j])) {
        if (a[i] != b[j]) return a[i] < b[j];
        ++i, ++j;
        continue;
      }
      size_t m = i, n = j;
      while (m < a.size() && digit(a[m])) ++m;
      while (n < b.size() && digit(b[n])) ++n;
      std::string x = a.substr(i, m - i), y = b.substr(j, n - j);
      if (x.size() != y.size()) return x.size() < y.size();
      if (x != y) return x < y;
      i = m, j = n;
    }
    return a.size() - i < b.size() - j;
  }
};

struct Compared {
  enum class Verdict { equal, close, differs, ignored } verdict = Verdict::equal;
  std::string name = {}, what = {};  // what: the tensor, or why nothing could be compared
  double largest = 0;                // |a - b|
  double relative = 0;               // |a - b| / |b| in the Euclidean norm
  int64_t num_beyond = 0, at = 0;  // elements beyond the tolerance; index of the largest difference, in row-major order
};

std::string_view name_of(Compared::Verdict verdict) {
  switch (verdict) {
    case Compared::Verdict::equal: return "equal";
    case Compared::Verdict::close: return "close";
    case Compared::Verdict::differs: return "DIFFERS";
    case Compared::Verdict::ignored: break;
  }
  return "ignored";
}

std::string text_of(const io::TensorEntry& entry) {
  return fmt::format("{} [{}]", entry.dtype, fmt::join(entry.shape, ", "));
}

std::vector<double> numbers_of(const io::SafetensorsFile& file, const std::string& name) {
  NoGrad no_grad;
  return cast(Var(file.map(name)), kF64).value().to_vector<double>();
}

// Two NaNs are equal, as are infinities of one sign.
Compared compare_values(const io::SafetensorsFile& a, const io::SafetensorsFile& b, Compared row, const Rule& rule) {
  std::vector<double> x = numbers_of(a, row.name), y = numbers_of(b, row.name);
  double squares = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]))) {
      size += std::isfinite(y[i]) ? y[i] * y[i] : 0;
      continue;
    }
    double difference = std::abs(x[i] - y[i]);
    if (std::isnan(difference)) difference = HUGE_VAL;
    squares += difference * difference;
    size += std::isfinite(y[i]) ? y[i] * y[i] : 0;
    if (!(difference <= rule.atol + rule.rtol * std::abs(y[i])) || std::isinf(difference)) ++row.num_beyond;
    if (difference > row.largest) row.largest = difference, row.at = static_cast<int64_t>(i);
  }
  row.relative = squares == 0 ? 0 : std::sqrt(squares / size);
  row.verdict = row.num_beyond > 0 ? Compared::Verdict::differs
                : row.largest > 0  ? Compared::Verdict::close
                                   : Compared::Verdict::equal;
  return row;
}

Compared compare_tensor(const io::SafetensorsFile& a, const io::SafetensorsFile& b, const std::string& name,
                        const Rule& rule) {
  const io::TensorEntry *in_a = a.find(name), *in_b = b.find(name);
  Compared row{.verdict = Compared::Verdict::differs, .name = name};
  if (!in_a || !in_b) {
    row.what = fmt::format("only in {}: {}", in_a ? "A" : "B", text_of(in_a ? *in_a : *in_b));
  } else if (in_a->shape != in_b->shape) {
    row.what = fmt::format("{} in A, {} in B", text_of(*in_a), text_of(*in_b));
  } else {
    row.what = in_a->dtype == in_b->dtype ? text_of(*in_a) : fmt::format("{} and {}", text_of(*in_a), in_b->dtype);
    if (rule.is_ignored) row.verdict = Compared::Verdict::ignored;
    else return compare_values(a, b, row, rule);
  }
  if (rule.is_ignored) row.verdict = Compared::Verdict::ignored;
  return row;
}

std::string line_of(const Compared& row) {
  std::string text = fmt::format("{:<8} {:<40} {}", name_of(row.verdict), row.name, row.what);
  if (row.largest > 0)
    text += fmt::format("  largest {:.3g} at {}, relative {:.3g}", row.largest, row.at, row.relative);
  if (row.num_beyond > 0) text += fmt::format(", {} beyond the tolerance", row.num_beyond);
  return text + "\n";
}

Json json_of(const std::vector<Compared>& rows, bool is_same) {
  Json list = Json::array();
  for (const Compared& r : rows)
    list.push_back({{"name", r.name},
                    {"result", r.verdict == Compared::Verdict::differs ? "differs" : name_of(r.verdict)},
                    {"tensor", r.what},
                    {"largest", std::isfinite(r.largest) ? Json(r.largest) : Json("inf")},
                    {"relative", std::isfinite(r.relative) ? Json(r.relative) : Json("inf")},
                    {"beyond", r.num_beyond}});
  return {{"same", is_same}, {"tensors", list}};
}

int report_runs(const Options& options, Console& console, const Extensions& extensions) {
  std::vector<std::string> runs{options.a, options.b};
  runs.insert(runs.end(), options.more.begin(), options.more.end());
  const study::Comparison c = study::compare_runs(runs, options.metrics, extensions);
  const study::StudyData data{
      .folder = options.out, .grid = c.grid, .arms = c.arms, .cells = c.cells, .results = c.results};
  study::require_known_metrics(data);
  const study::StudyReport report = study::report_of(data);
  if (!options.out.empty()) {
    io::make_folders(options.out);
    io::write_file_atomically(options.out + "/report.txt", report.text);
    io::write_file_atomically(options.out + "/report.json", report.json);
    for (const std::string& warning : study::write_study_page(data, report)) console.message(warning);
  }
  console.result(console.is_json() ? report.json : report.text);
  return report.num_lost > 0 ? kFailure : kSuccess;
}

int compare_weights(const Options& options, Console& console) {
  if (!is_tolerance(options.rtol) || !is_tolerance(options.atol))
    throw config::ConfigError(fmt::format("--rtol {} --atol {}: not tolerances.", options.rtol, options.atol),
                              "Use numbers of 0 or more.");
  std::vector<Rule> rules = read_rules(options.rules);
  rules.push_back({"*", false, options.rtol, options.atol});
  io::SafetensorsFile a = open_weights(options.a, console), b = open_weights(options.b, console);
  std::map<std::string, bool, LayerOrder> names;
  for (const io::SafetensorsFile* file : {&a, &b})
    for (const io::TensorEntry& entry : file->tensors()) names[entry.name] = true;
  std::vector<Compared> rows;
  std::map<Compared::Verdict, int64_t> counts;
  std::string text, first;
  for (const auto& [name, seen] : names) {
    auto rule =
        std::find_if(rules.begin(), rules.end(), [&, &n = name](const Rule& r) { return matches(n, r.pattern); });
    rows.push_back(compare_tensor(a, b, name, *rule));
    ++counts[rows.back().verdict];
    if (rows.back().verdict == Compared::Verdict::differs && first.empty()) first = name;
    text += line_of(rows.back());
  }
  using enum Compared::Verdict;
  text += fmt::format("{} tensors: {} equal, {} close, {} differ, {} ignored{}\n", rows.size(), counts[equal],
                      counts[close], counts[differs], counts[ignored],
                      first.empty() ? "" : "; the first that differs is " + first);
  const bool has_compared = counts[equal] + counts[close] + counts[differs] > 0;
  const bool is_same = has_compared && counts[differs] == 0;
  console.result(console.is_json() ? json_text(json_of(rows, is_same)) : text);
  if (!has_compared)
    console.error(rows.empty() ? "weft compare: nothing was compared, since neither file has a tensor."
                               : fmt::format("weft compare: nothing was compared, since {} ignores all {} tensors.\n"
                                             "       Leave a name out of its rules that ignore.",
                                             options.rules, rows.size()));
  return is_same ? kSuccess : kCheckFailed;
}

}  // namespace

Action define_compare(Arguments& app) {
  auto options = std::make_shared<Options>();
  app.add_option("A", options->a, "Safetensors file, run, RUN@STEP, RUN@best, RUN@latest, or a checkpoint's folder")
      .required();
  app.add_option("B", options->b, "The same, to compare with").required();
  app.add_option("--rtol", options->rtol, "Allowed difference in parts of B's number; default 0").type_name("R");
  app.add_option("--atol", options->atol, "Allowed difference beside that; default 0").type_name("A");
  app.add_option("RUNS", options->more, "More finished runs: then the report of a study of all of them is printed")
      .type_name("RUN");
  app.add_option("--out", options->out, "Writes that report into this folder; also of two runs").type_name("DIR");
  app.add_option("--metric", options->metrics, "What that report compares; default val/loss")
      .repeated()
      .type_name("KEY");
  app.add_option(
         "--rules", options->rules,
         "File with a rule a line, the first that matches a name holds: PATTERN rtol=R atol=A, or PATTERN ignore")
      .type_name("FILE");
  return [options](Console& console, const Extensions& extensions) {
    const bool is_report = !options->more.empty() || !options->out.empty() || !options->metrics.empty();
    return is_report ? report_runs(*options, console, extensions) : compare_weights(*options, console);
  };
}

}  // namespace weft::cli
