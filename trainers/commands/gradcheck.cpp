// weft gradcheck [--mixer NAME|all] [--shapes fuzz:N|TxD,TxD]: gradients of mixers against differences in float64.
#include <fmt/format.h>

#include <CLI/App.hpp>
#include <charconv>
#include <nlohmann/json.hpp>

#include "trainers/commands/command.h"
#include "trainers/config_error.h"
#include "trainers/console.h"
#include "weft/autograd/gradient_check.h"
#include "weft/nn/mixers.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

// The mixers that can be named: the published points of softmax attention and its options.
struct Named {
  const char* name;
  SoftmaxOptions options;
};
std::vector<Named> named_mixers() {
  return {{"mha", {.heads = 4}},
          {"gqa", {.heads = 4, .kv_heads = 2}},
          {"mqa", {.heads = 4, .kv_heads = 1}},
          {"qk_norm", {.heads = 2, .qk_norm = true}},
          {"window", {.heads = 2, .window = 3}},
          {"soft_cap", {.heads = 2, .softcap = 4}},
          {"dropout", {.heads = 2, .dropout = 0.2}},
          {"bias_nope", {.heads = 2, .has_bias = true, .rotary = std::nullopt}}};
}

struct Case {
  int64_t batch, tokens, dim;
};

struct Options {
  std::string mixer = "all", shapes = "fuzz:3";
};

std::vector<Case> cases_of(const std::string& text) {
  auto refuse = [&]() -> std::vector<Case> {
    throw config::ConfigError("--shapes " + text + ": not a list of shapes.",
                              "Use fuzz:N, or TOKENSxDIM,TOKENSxDIM with a dim that is a multiple of 8.");
  };
  auto number = [](std::string_view digits, int64_t& value) {
    auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return code == std::errc() && end == digits.data() + digits.size() && value >= 1;
  };
  std::vector<Case> cases;
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
    Case c{.batch = 1, .tokens = 0, .dim = 0};
    if (x == std::string_view::npos || !number(item.substr(0, x), c.tokens) || !number(item.substr(x + 1), c.dim) ||
        c.dim % 8 != 0)
      return refuse();
    cases.push_back(c);
    begin = end + 1;
  }
  return cases;
}

GradientCheck check(const Named& named, const Case& c) {
  SoftmaxOptions options = named.options;
  options.dim = c.dim;
  options.std = 0.4;
  auto mixer = make_softmax(options, Rng(7));
  mixer->set_compute(kF64);
  std::vector<Var*> variables;
  GradientCheckOptions how{.max_elements = 12, .names = {"x"}};
  for (const NamedParam& p : mixer->params()) {
    variables.push_back(&p.param->var());
    how.names.push_back(p.name);
  }
  Tensor x = Tensor::empty({c.batch, c.tokens, c.dim}, kF64);
  for (int64_t i = 0; i < x.num_elements(); ++i) x.mutable_data<double>()[i] = Rng(3).normal(static_cast<uint64_t>(i));
  auto f = [&](std::span<const Var> in) {
    Tokens tokens(plain_tokens(c.batch, c.tokens), {.is_training = true, .rng = Rng(11)});
    return mixer->forward(in[0], tokens);
  };
  return check_gradients(f, {&x, 1}, variables, how);
}

int run(const Options& options, Console& console) {
  auto rows = nlohmann::ordered_json::array();
  std::string text, names;
  bool found = false, passed = true;
  for (const Named& named : named_mixers()) {
    names += (names.empty() ? "" : ", ") + std::string(named.name);
    if (options.mixer != "all" && options.mixer != named.name) continue;
    found = true;
    for (const Case& c : cases_of(options.shapes)) {
      GradientCheck result = check(named, c);
      passed = passed && result.passed;
      std::string shape = fmt::format("B{} T{} D{}", c.batch, c.tokens, c.dim);
      text += fmt::format("{:<10} {:<12} {}  {} elements, worst {:.2g} of the bound{}\n", named.name, shape,
                          result.passed ? "passed" : "FAILED", result.num_checked, result.worst_error,
                          result.passed ? "" : ": " + result.report);
      rows.push_back({{"mixer", named.name},
                      {"shape", shape},
                      {"passed", result.passed},
                      {"elements", result.num_checked},
                      {"worst", result.worst_error},
                      {"report", result.report}});
    }
  }
  if (!found)
    throw config::ConfigError("--mixer " + options.mixer + ": no such mixer.", "Use all, or one of: " + names + ".");
  console.result(console.is_json() ? nlohmann::ordered_json{{"passed", passed}, {"rows", rows}}.dump(2) + "\n" : text);
  return passed ? kSuccess : kCheckFailed;
}

}  // namespace

Action define_gradcheck(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("--mixer", options->mixer, "Which mixer, or all")->type_name("NAME");
  app.add_option("--shapes", options->shapes, "fuzz:N for N random shapes, or TOKENSxDIM,...")->type_name("LIST");
  return [options](Console& console, const Extensions&) { return run(*options, console); };
}

}  // namespace weft::cli
