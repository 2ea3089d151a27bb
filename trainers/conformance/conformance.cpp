#include "trainers/conformance/conformance.h"

#include <map>

#include "trainers/conformance/subject.h"
#include "weft/core/error.h"

namespace weft::conformance {

namespace {

struct Check {
  std::string_view name;
  Outcome (*run)(const Subject&);
};
// `reference` stands apart: its other half comes from outside.
constexpr Check kChecks[] = {
    {"gradient", check_gradients},  {"causality", check_causality}, {"decode", check_decode},
    {"documents", check_documents}, {"order", check_order},         {"ranks", check_ranks},
    {"locality", check_locality},   {"heads", check_heads},         {"bf16", check_bf16},
    {"bf16_long", check_long_bf16}, {"devices", check_devices},     {"checkpoint", check_checkpoint},
    {"learns", check_learning},
};

// Runs the checks of one variant. A fault that shows in several of them, with other shapes and dtypes, is told in full once.
class Guard {
 public:
  Outcome run(std::string_view check, const std::function<Outcome()>& f) {
    try {
      return f();
    } catch (const Error& error) {
      return told(check, error.where(), error.what());
    } catch (const std::exception& error) { return told(check, error.what(), error.what()); }
  }

 private:
  Outcome told(std::string_view check, const std::string& place, const std::string& text) {
    auto [first, is_new] = checks_.emplace(place, check);
    return {Verdict::failed, is_new ? text : str("the same error as in ", first->second)};
  }
  std::map<std::string, std::string_view> checks_;  // by place in module and source
};

}  // namespace

std::string_view name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::passed: return "passed";
    case Verdict::failed: return "failed";
    case Verdict::unsupported: break;
  }
  return "unsupported";
}

std::vector<std::string> check_names() {
  std::vector<std::string> names{"reference"};
  for (const Check& check : kChecks) names.emplace_back(check.name);
  return names;
}

std::vector<Result> check_option_pairs(std::span<const MixerRow> rows, const Options& options) {
  std::vector<Result> results;
  for (const MixerRow& row : rows) {
    try {
      row(Subject::test_args(16), Rng(1));
    } catch (const Error& error) {
      results.push_back({row.name, "together", Verdict::unsupported, error.problem()});
      continue;
    }
    for (std::string_view check : {"reference", "gradient", "causality", "decode", "documents", "bf16"}) {
      if (options.check != "all" && options.check != check) continue;
      Options one = options;
      one.check = check;
      one.variant = row.name;
      std::vector<Result> part = check_mixers({&row, 1}, one);
      results.insert(results.end(), part.begin(), part.end());
    }
  }
  return results;
}

std::vector<Result> check_mixers(std::span<const MixerRow> rows, const Options& options) {
  std::vector<Result> results;
  Guard guard;
  auto add = [&](const MixerRow& row, std::string_view check, const std::function<Outcome()>& run) {
    if (options.check != "all" && options.check != check) return;
    Outcome outcome = guard.run(check, run);
    results.push_back({row.name, std::string(check), outcome.verdict, outcome.reason, std::move(outcome.spreads)});
    if (options.on_result) options.on_result(results.back());
  };
  for (const MixerRow& row : rows) {
    if (options.variant != "all" && options.variant != row.name) continue;
    guard = {};
    Subject subject(row);
    subject.covers_product = options.covers_product;
    auto reference = options.references.find(row.name);
    add(row, "reference",
        [&] { return check_reference(subject, reference == options.references.end() ? nullptr : &reference->second); });
    for (const Check& check : kChecks) add(row, check.name, [&] { return check.run(subject); });
  }
  return results;
}

}  // namespace weft::conformance
