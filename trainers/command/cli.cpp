#include "weft/trainers/cli.h"

#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <array>
#include <csignal>
#include <map>
#include <new>
#include <string_view>

#include "src/training/diverged.h"
#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/standard_streams.h"
#include "trainers/run/rank_launch.h"
#include "weft/core/error.h"

namespace weft::cli {

namespace {

using config::ConfigError;

struct Flags {
  bool is_quiet = false, is_verbose = false, is_json = false;
};

// "error: problem" and the fix under it, for what is wrong with the user's own words; library errors bring their own
// layout.
std::string text_of(const ConfigError& error) {
  return error.problem() + (error.fix().empty() ? "" : "\n       " + error.fix());
}

std::vector<std::string> command_names() {
  std::vector<std::string> out;
  for (const Command& command : commands()) out.emplace_back(command.name);
  return out;
}

// CLI11 would call a misspelt command an unexpected argument.
void check_command_name(int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return;
  std::vector<std::string> names = command_names();
  if (std::find(names.begin(), names.end(), argv[1]) != names.end()) return;
  throw ConfigError(str("weft has no command '", argv[1], "'. ", config::suggestion(argv[1], names, "Commands")),
                    "See weft --help.");
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> out;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) out.push_back("--" + name);
  return out;
}

// The parser's words, with the option that was meant.
[[noreturn]] void fail_usage(const CLI::App& app, const CLI::ParseError& error) {
  std::string text = error.what();
  std::string name = "weft";
  std::vector<std::string> options = app.get_subcommands().empty() ? option_names(app) : std::vector<std::string>();
  for (const CLI::App* command = &app; !command->get_subcommands().empty();) {  // weft data pack
    command = command->get_subcommands().back();
    name += " " + command->get_name();
    for (std::string& option : option_names(*command))
      if (std::find(options.begin(), options.end(), option) == options.end()) options.push_back(std::move(option));
  }
  size_t dashes = text.rfind("--");
  if (dynamic_cast<const CLI::ExtrasError*>(&error) && dashes != std::string::npos) {
    std::string word = text.substr(dashes, text.find_first_of(" =", dashes) - dashes);
    throw ConfigError(str(name, " has no option '", word, "'. ", config::suggestion(word, options, "Options")),
                      str("See ", name, " --help."));
  }
  throw ConfigError(str(name, ": ", text), str("See ", name, " --help."));
}

std::map<std::string, Action> define_commands(CLI::App& app, Flags& flags) {
  app.set_help_flag("--help,-h", "Show this help");
  app.set_version_flag("--version", "weft " WEFT_VERSION);
  app.require_subcommand(0, 1);
  std::map<std::string, Action> actions;
  for (const Command& command : commands()) {
    CLI::App& sub = *app.add_subcommand(command.name, command.summary);
    sub.set_help_flag("--help,-h", "Show this help");
    sub.footer(str("\nExamples:\n", command.examples));
    CLI::Option* quiet = sub.add_flag("--quiet", flags.is_quiet, "No messages, only results and errors");
    sub.add_flag("--verbose", flags.is_verbose, "More messages")->excludes(quiet);
    sub.add_flag("--json", flags.is_json, "One JSON document on stdout");
    Arguments arguments(&sub);
    actions[command.name] = command.define(arguments);
    for (CLI::App* nested : sub.get_subcommands({})) nested->fallthrough();  // weft data info FILE --json
  }
  return actions;
}

// What all processes of a launcher say alike, one of them says. A launch that contradicts itself is for the command to refuse.
bool is_first_process() {
  try {
    return train::is_first_process();
  } catch (const Error&) { return true; }
}

// Commands whose ranks meet; of all others the first process of a launcher does the work alone.
constexpr std::array<std::string_view, 5> kOfAllRanks = {"train", "eval", "analyse", "parity", "sample"};

int run(int argc, char** argv, const Extensions& extensions) {
  CLI::App app("Weft trains language models whose attention is exchangeable, and compares the variants.", "weft");
  Flags flags;
  std::map<std::string, Action> actions = define_commands(app, flags);
  const bool speaks = is_first_process();
  if (!speaks && (argc < 2 || std::ranges::find(kOfAllRanks, std::string_view(argv[1])) == kOfAllRanks.end()))
    return kSuccess;
  Console plain(Verbosity::normal, false);
  try {
    check_command_name(argc, argv);
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    if (speaks) plain.result(app.help());  // of the command that is named, if one is
    return kSuccess;
  } catch (const CLI::CallForVersion& version) {
    plain.result(str(version.what(), "\n"));
    return kSuccess;
  } catch (const CLI::ParseError& error) {
    if (!speaks) return kUsageError;
    fail_usage(app, error);
  }
  if (app.get_subcommands().empty()) {
    plain.message(app.help());
    return kUsageError;
  }
  Verbosity verbosity = flags.is_quiet ? Verbosity::quiet : flags.is_verbose ? Verbosity::verbose : Verbosity::normal;
  Console console(verbosity, flags.is_json);
  return actions.at(app.get_subcommands().back()->get_name())(console, extensions);
}

}  // namespace

int main(int argc, char** argv, const Extensions& extensions) {
  open_standard_streams();
  std::signal(SIGPIPE, SIG_IGN);  // a reader that left is an error of one write, not the end of a training
  std::signal(SIGXFSZ, SIG_IGN);  // and so is a file that reached the limit on sizes (ulimit -f)
  Console console(Verbosity::normal, false);
  try {
    return run(argc, argv, extensions);
  } catch (const ConfigError& error) {
    console.error(text_of(error));
    return kUsageError;
  } catch (const Diverged& error) {
    console.error(error.what());
    return kDiverged;
  } catch (const std::bad_alloc&) {
    console.error("out of memory");
  } catch (const std::exception& error) {  // weft::Error brings where and fix in its text
    console.error(error.what());
  }
  return kFailure;
}

}  // namespace weft::cli
