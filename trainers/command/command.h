// Commands of `weft`: each is one file with a define function, listed in table.cpp.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "weft/trainers/cli.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace weft::cli {

class Console;

// What runs once the command line has been read; returns an exit code of cli.h.
using Action = std::function<int(Console&, const Extensions&)>;

struct Command {
  const char* name;
  const char* summary;
  const char* examples;             // two lines, shown by --help
  Action (*define)(CLI::App& app);  // adds the command's options; --json, --quiet, --verbose are there already
};

std::span<const Command> commands();

// What the suite walks: the library's mixers, its residual streams ("residual.NAME"), and then the program's own mixers.
std::vector<MixerRow> all_mixers(const Extensions& extensions);

// The argument CONFIG, or RUN in its place, and the overrides after it.
class ConfigArguments {
 public:
  void add(CLI::App& app, bool is_required);
  void add_run(CLI::App& app);  // of commands that use a trained model: trainers/run/address.h says what it may be
  const std::string& file() const { return file_; }
  std::vector<std::string> overrides() const;  // path=value and --set path=value in the order they were given

 private:
  void add_overrides(CLI::App& app, const char* help);

  CLI::App* app_ = nullptr;
  std::string file_;
  std::vector<std::string> positional_, set_;
};

// The option takes sizes as overrides do: 2k, 1e6, 64KiB.
void takes_size(CLI::Option& option);

Action define_analyse(CLI::App& app);
Action define_bench(CLI::App& app);
Action define_check(CLI::App& app);
Action define_compare(CLI::App& app);
Action define_config(CLI::App& app);
Action define_data(CLI::App& app);
Action define_doctor(CLI::App& app);
Action define_eval(CLI::App& app);
Action define_gradcheck(CLI::App& app);
Action define_inspect(CLI::App& app);
Action define_parity(CLI::App& app);
Action define_sample(CLI::App& app);
Action define_task(CLI::App& app);
Action define_train(CLI::App& app);

}  // namespace weft::cli
