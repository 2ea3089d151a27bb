// weft gradcheck [--mixer NAME|all] [--shapes fuzz:N|TxD,TxD]: gradients of mixers against differences in float64.
#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/conformance/conformance.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

using conformance::InputSize;

struct Options {
  std::string mixer = "all", shapes = "fuzz:3";
};

std::vector<InputSize> cases_of(const std::string& text) {
  auto refuse = [&]() -> std::vector<InputSize> {
    throw config::ConfigError("--shapes " + text + ": not a list of shapes.",
                              "Use fuzz:N, or TOKENSxDIM,TOKENSxDIM with a dim that is a multiple of 8.");
  };
  auto number = [](std::string_view digits, int64_t& value) {
    auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return code == std::errc() && end == digits.data() + digits.size() && value >= 1;
  };
  std::vector<InputSize> cases;
  if (text.starts_with("fuzz:")) {
    int64_t count = 0;
    if (!number(std::string_view(text).substr(5), count) || count > 1000) return refuse();
    Rng rng = Rng(1)["gradcheck"];
    for (uint64_t i = 0; i < static_cast<uint64_t>(count); ++i)
      cases.push_back({static_cast<int64_t>(1 + rng.below(2, 3 * i)),
                       static_cast<int64_t>(1 + rng.below(11, 3 * i + 1)),
                       static_cast<int64_t>(8 + 8 * rng.below(3, 3 * i + 2))});
    return cases;
  }
  for (size_t begin = 0; begin <= text.size();) {
    size_t end = std::min(text.find(',', begin), text.size());
    std::string_view item = std::string_view(text).substr(begin, end - begin);
    size_t x = item.find('x');
    InputSize c{.batch = 1, .tokens = 0, .dim = 0};
    if (x == std::string_view::npos || !number(item.substr(0, x), c.tokens) || !number(item.substr(x + 1), c.dim) ||
        c.dim % 8 != 0)
      return refuse();
    cases.push_back(c);
    begin = end + 1;
  }
  return cases;
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  auto rows = nlohmann::ordered_json::array();
  std::string text;
  bool passed = true;
  int64_t num_checked = 0;
  std::vector<std::string> names{"all"};
  for (const MixerRow& row : all_mixers(extensions)) names.push_back(row.name);
  config::check_choice("--mixer", options.mixer, names, "mixer");
  for (const MixerRow& row : all_mixers(extensions)) {
    if (options.mixer != "all" && options.mixer != row.name) continue;
    if (std::string_view reason = row.lacks.gradient; !reason.empty()) {
      text += fmt::format("{:<10} unsupported: {}\n", row.name, reason);
      rows.push_back({{"mixer", row.name}, {"unsupported", reason}});
      continue;
    }
    for (const InputSize& c : cases_of(options.shapes)) {
      GradientCheck result = conformance::check_gradients_of(row, c);
      passed = passed && result.passed;
      num_checked += result.num_checked;
      std::string shape = fmt::format("B{} T{} D{}", c.batch, c.tokens, c.dim);
      text += fmt::format("{:<10} {:<12} {}  {} elements, worst {:.2g} of the bound{}\n", row.name, shape,
                          result.passed ? "passed" : "FAILED", result.num_checked, result.worst_error,
                          result.passed ? "" : ": " + result.report);
      rows.push_back({{"mixer", row.name},
                      {"shape", shape},
                      {"passed", result.passed},
                      {"elements", result.num_checked},
                      {"worst", result.worst_error},
                      {"report", result.report}});
    }
  }
  passed = passed && num_checked > 0;  // a check of nothing shows nothing
  console.result(console.is_json() ? json_text(nlohmann::ordered_json{{"passed", passed}, {"rows", rows}}) : text);
  if (num_checked == 0)
    console.error(fmt::format(
        "weft gradcheck: nothing was checked: --mixer {} does not support it.\n       Name another --mixer.",
        options.mixer));
  return passed ? kSuccess : kCheckFailed;
}

}  // namespace

Action define_gradcheck(Arguments& app) {
  auto options = std::make_shared<Options>();
  app.add_option("--mixer", options->mixer, "Which mixer, or all").type_name("NAME");
  app.add_option("--shapes", options->shapes, "fuzz:N for N random shapes, or TOKENSxDIM,...").type_name("LIST");
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
