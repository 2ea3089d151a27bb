// weft new NAME [--out DIR]: a project outside the tree that builds against the installed package: one mixer, a config, a study.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "weft/io/files.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

using config::ConfigError;

// @NAME@ is the project and its mixer.
constexpr const char* kCMake = R"(cmake_minimum_required(VERSION 3.25)
project(@NAME@ LANGUAGES CXX)
find_package(weft REQUIRED)
add_executable(@NAME@ main.cpp)
target_link_libraries(@NAME@ PRIVATE weft::weft)
)";

constexpr const char* kMain =
    R"(// A mixer of your own in the `weft` command: this program has every command, and all of them know the mixer.
//   @NAME@ check --mixer @NAME@           the conformance suite, with the plain loops below
//   @NAME@ train run.txtpb                one training
//   @NAME@ ablate study.txtpb --jobs 2    the study: this mixer beside plain attention
#include <cmath>

)"
    "#include \"weft/weft.h\""  // not an include of this file
    R"(
using namespace weft;

namespace {

// softmax(q_i . k_j / sqrt(K) + u . x_j) v, with u per head: every token says how much attention it wants, whoever asks.
class Mine final : public ProjectedMixer {
 public:
  Mine(const MixerArgs& args, int64_t heads, Rng rng)
      : ProjectedMixer("@NAME@", {.heads = heads}, args, rng), loudness_(args.dim, heads, rng["loudness"]) {
    name_parts({{"loudness", loudness_}});
  }
  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Var q = rotated(queries(x_BTD), args_, tokens), k = rotated(keys(x_BTD), args_, tokens);
    auto [y, lse] = tokens.attend(q, k, values(x_BTD), {}, {}, {.key = loudness_(x_BTD)});
    return written(y, tokens);
  }
  double flops_per_token(double keys) const override { return 12 * static_cast<double>(s_.heads * s_.head_dim) * keys; }

 private:
  Linear loudness_;
};

// The same in plain float64 loops.
std::vector<double> plain_loops(const MixerArgs& args, const reference::Parameters& p, const Tensor& x_BTD,
                                const TokenData& data) {
  namespace ref = reference;
  const ref::Sequence s(x_BTD, data);
  const auto H = static_cast<int64_t>(args.numbers.at("heads")), K = s.D / H;
  ref::Numbers x = ref::values(x_BTD), loudness = ref::linear(x, s.D, p, "loudness");
  ref::Numbers q = ref::linear(x, s.D, p, "q"), k = ref::linear(x, s.D, p, "k"), v = ref::linear(x, s.D, p, "v");
  ref::rotate(q, s, H, K);
  ref::rotate(k, s, H, K);
  ref::Numbers y = ref::mix(s, H, H, K, v, [&](int64_t b, int64_t i, int64_t h) {
    ref::Numbers scores = ref::scores(s, H, H, K, q, k, 1 / std::sqrt(static_cast<double>(K)), 0, b, i, h);
    for (int64_t j = 0; j < s.T; ++j)
      scores[static_cast<size_t>(j)] += loudness[static_cast<size_t>((b * s.T + j) * H + h)];
    return ref::softmax(scores);
  });
  return ref::linear(y, H * K, p, "out");
}

}  // namespace

int main(int argc, char** argv) {
  const MixerRow mine{
      .name = "@NAME@",
      .make = [](const MixerArgs& args,
                 Rng rng) { return std::make_unique<Mine>(args, static_cast<int64_t>(args.numbers.at("heads")), rng); },
      .equation = "softmax(s + u . x_j) v",
      .numbers = {{"heads", 2}}};
  return cli::main(argc, argv, {.mixers = {mine}, .references = {{"@NAME@", plain_loops}}});
}
)";

constexpr const char* kRun =
    R"(# A small model with the mixer of main.cpp, on a task of recall. A text in place of the task:
#   data { tokenizer { bytes {} } train { path: "text.txt" } val { fraction: 0.1 } }
name: "@NAME@"
seed: 1
model {
  dim: 32
  layers: 2
  context: 64
  norm { rms {} }
  position { rope {} }
  mixer { custom { type: "@NAME@" number { key: "heads" value: 2 } } }
  ffn { swiglu { hidden: 64 } }
}
data { task { mqar { vocab: 64 pairs: 4 } } }
optim {
  group { match: "*" adamw { lr: 3e-3 betas: 0.9 betas: 0.95 weight_decay: 0.01 } }
  schedule { cosine { warmup: 20 floor: 0 } }
}
train {
  tokens: 409600
  tokens_per_step: 2048
  micro_batch: 32
  threads: 1
}
eval { every: 0 }
log { every: 20 sample_tokens: 1 }
checkpoint { every: 0 keep_last: 1 }
)";

constexpr const char* kStudy =
    R"(# The mixer of main.cpp beside plain attention, at equal parameters: @NAME@ ablate study.txtpb --jobs 2
name: "@NAME@"
base: "run.txtpb"
seeds: 1 seeds: 2 seeds: 3
axis {
  name: "mixer"
  arm { name: "plain" set: "model.mixer[0]={softmax{heads:2}}" }
  arm { name: "@NAME@" }
}
baseline: "mixer=plain"
compare { metric: "val/loss" metric: "task/mqar/accuracy" }
match { parameters: 0.02 multiple: 1 }
eval { task: "mqar" }
)";

std::string filled(const std::string& text, const std::string& name) {
  const std::string mark = "@NAME@";
  std::string out;
  for (size_t begin = 0;;) {
    const size_t end = text.find(mark, begin);
    out += text.substr(begin, end - begin);
    if (end == std::string::npos) return out;
    out += name;
    begin = end + mark.size();
  }
}

// It is the name of a target, a program and a mixer beside the library's.
void check_name(const std::string& name) {
  const bool is_plain =
      !name.empty() && name.size() <= 40 && name[0] >= 'a' && name[0] <= 'z' &&
      std::ranges::all_of(name, [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; });
  if (!is_plain)
    throw ConfigError("weft new: '" + name + "' is not a name of a project.",
                      "Use up to 40 lower case letters, digits and '_', a letter first.");
  // CMake keeps these for targets of its own, some of them where CTest or CPack are included.
  constexpr std::string_view kTargets[] = {
      "all",     "clean",          "edit_cache", "help",          "install", "list_install_components",
      "package", "package_source", "preinstall", "rebuild_cache", "test"};
  const bool is_mixer = std::ranges::any_of(mixer_table(), [&](const MixerRow& row) { return row.name == name; });
  if (is_mixer || std::ranges::find(kTargets, name) != std::end(kTargets))
    throw ConfigError("weft new: '" + name + "' is the name of a " + (is_mixer ? "mixer." : "target of CMake."),
                      "Choose a name that no mixer and no target of CMake has.");
}

int run(const std::string& name, const std::string& out, Console& console) {
  check_name(name);
  const std::string folder = out.empty() ? name : out;
  if (io::file_exists(folder) && (!io::is_folder(folder) || !io::list_folder(folder).empty()))
    throw ConfigError("weft new: " + folder + " is there already.", "Choose another name, or --out with a new folder.");
  io::make_folders(folder);
  auto files = nlohmann::ordered_json::array();
  for (const auto& [file, text] :
       {std::pair("CMakeLists.txt", kCMake), {"main.cpp", kMain}, {"run.txtpb", kRun}, {"study.txtpb", kStudy}}) {
    io::write_file_atomically(folder + "/" + file, filled(text, name));
    files.push_back(file);
  }
  if (console.is_json()) {
    console.result(
        json_text(nlohmann::ordered_json{{"project", name}, {"folder", folder}, {"files", std::move(files)}}));
    return kSuccess;
  }
  console.result(fmt::format(
      "{0}: CMakeLists.txt, main.cpp, run.txtpb, study.txtpb\n"
      "cd {0} && cmake -S . -B build -DCMAKE_PREFIX_PATH=PREFIX -DCMAKE_BUILD_TYPE=Release && cmake --build build\n"
      "build/{1} check --mixer {1} && build/{1} ablate study.txtpb\n",
      folder, name));
  return kSuccess;
}

}  // namespace

Action define_new(Arguments& app) {
  auto name = std::make_shared<std::string>(), out = std::make_shared<std::string>();
  app.add_option("NAME", *name, "Of the project, its program and its mixer").type_name("NAME").required();
  app.add_option("--out", *out, "Its folder; default NAME").type_name("DIR");
  return [name, out](Console& console, const Extensions&) { return run(*name, *out, console); };
}

}  // namespace weft::cli
