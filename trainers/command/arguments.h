// The arguments of a command: CLI11 behind functions that are compiled once. CLI11 is its headers alone, and a file that includes them
// takes some 3 s longer to compile.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace weft::cli {

// One option or positional argument.
class Argument {
 public:
  explicit Argument(CLI::Option* option) : option_(option) {}

  Argument& type_name(const char* name);  // what help calls its value
  Argument& required(bool is_required = true);
  Argument& hidden();                   // from help
  Argument& capture_default_str();      // help shows the value that the variable has
  Argument& delimiter(char separator);  // of a list's values in one word; the words after it are not of the list
  Argument& one_word();                 // of a list: takes the next word, and not those after it
  Argument& repeated();                 // of a list: one value each time
  Argument& excludes(const Argument& other);

  // In any order. A size may be written as overrides may: 2k, 1e6, 64KiB.
  Argument& takes_size();
  Argument& range(int64_t lowest, int64_t highest);
  Argument& range(double lowest, double highest);
  Argument& one_of(std::initializer_list<int> values);
  Argument& check(std::function<std::string(const std::string& text)> problem);  // "" where there is none

 private:
  CLI::Option* option_;
};

// The arguments of a command or of one that stands below it. What is filled in must live until the command has run.
class Arguments {
 public:
  explicit Arguments(CLI::App* app) : app_(app) {}

  Argument add_option(const std::string& names, std::string& to, const std::string& help = "");
  Argument add_option(const std::string& names, int& to, const std::string& help = "");
  Argument add_option(const std::string& names, std::optional<int>& to, const std::string& help = "");
  Argument add_option(const std::string& names, int64_t& to, const std::string& help = "");
  Argument add_option(const std::string& names, uint64_t& to, const std::string& help = "");
  Argument add_option(const std::string& names, double& to, const std::string& help = "");
  Argument add_option(const std::string& names, std::vector<std::string>& to, const std::string& help = "");
  Argument add_option(const std::string& names, std::vector<int64_t>& to, const std::string& help = "");
  Argument add_flag(const std::string& names, bool& to, const std::string& help = "");

  Arguments add_subcommand(const std::string& name, const std::string& help);
  void require_subcommand();
  bool is_named() const;  // the command line names this command

  // Those of these names that were given, in their order, once per value.
  std::vector<std::string> order_of(std::initializer_list<const char*> names) const;

 private:
  CLI::App* app_;
};

}  // namespace weft::cli
