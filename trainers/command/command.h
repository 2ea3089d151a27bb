// Commands of `weft`: each is one file with a define function, listed in table.cpp.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "weft/trainers/cli.h"

namespace weft::cli {

class Arguments;
class Console;

// What runs once the command line has been read; returns an exit code of cli.h.
using Action = std::function<int(Console&, const Extensions&)>;

struct Command {
  const char* name;
  const char* summary;
  const char* examples;              // two lines, shown by --help
  Action (*define)(Arguments& app);  // adds the command's options; --json, --quiet, --verbose are there already
};

std::span<const Command> commands();

// What the suite walks: the library's mixers, its residual streams ("residual.NAME"), and then the program's own mixers.
std::vector<MixerRow> all_mixers(const Extensions& extensions);

// The argument CONFIG, or RUN in its place, and the overrides after it.
class ConfigArguments {
 public:
  void add(Arguments& app, bool is_required);
  void add_run(Arguments& app);  // of commands that use a trained model: trainers/run/address.h says what it may be
  const std::string& file() const { return file_; }
  std::vector<std::string> overrides() const;  // path=value and --set path=value in the order they were given

 private:
  void add_overrides(Arguments& app, const char* help);

  std::shared_ptr<const Arguments> app_;
  std::string file_;
  std::vector<std::string> positional_, set_;
};

Action define_ablate(Arguments& app);
Action define_analyse(Arguments& app);
Action define_bench(Arguments& app);
Action define_boost(Arguments& app);
Action define_check(Arguments& app);
Action define_claims(Arguments& app);
Action define_compare(Arguments& app);
Action define_config(Arguments& app);
Action define_convert(Arguments& app);
Action define_data(Arguments& app);
Action define_doctor(Arguments& app);
Action define_eval(Arguments& app);
Action define_export(Arguments& app);
Action define_gradcheck(Arguments& app);
Action define_import(Arguments& app);
Action define_inspect(Arguments& app);
Action define_new(Arguments& app);
Action define_parity(Arguments& app);
Action define_plan(Arguments& app);
Action define_replay(Arguments& app);
Action define_sample(Arguments& app);
Action define_serve(Arguments& app);
Action define_task(Arguments& app);
Action define_train(Arguments& app);

}  // namespace weft::cli
