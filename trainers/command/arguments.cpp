#include "trainers/command/arguments.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include "trainers/config/config_error.h"
#include "trainers/config/scalar.h"
#include "weft/core/error.h"

namespace weft::cli {

Argument& Argument::type_name(const char* name) {
  option_->type_name(name);
  return *this;
}
Argument& Argument::required(bool is_required) {
  option_->required(is_required);
  return *this;
}
Argument& Argument::hidden() {
  option_->group("");
  return *this;
}
Argument& Argument::capture_default_str() {
  option_->capture_default_str();
  return *this;
}
Argument& Argument::delimiter(char separator) {
  option_->delimiter(separator)->allow_extra_args(false);
  return *this;
}
Argument& Argument::one_word() {
  option_->allow_extra_args(false);
  return *this;
}
Argument& Argument::repeated() {
  option_->take_all()->expected(1)->allow_extra_args(false);
  return *this;
}
Argument& Argument::excludes(const Argument& other) {
  option_->excludes(other.option_);
  return *this;
}

Argument& Argument::takes_size() {
  option_->transform(CLI::Validator(
      [name = option_->get_name()](std::string& text) {
        try {
          text = str(config::size_of_text(text, name));
          return std::string();
        } catch (const config::ConfigError& error) {
          const std::string problem = error.problem(), prefix = name + ": ";  // which the parser puts before it, too
          return (problem.starts_with(prefix) ? problem.substr(prefix.size()) : problem) + " " + error.fix();
        }
      },
      ""));
  return *this;
}
Argument& Argument::range(int64_t lowest, int64_t highest) {
  option_->check(CLI::Range(lowest, highest));
  return *this;
}
Argument& Argument::range(double lowest, double highest) {
  option_->check(CLI::Range(lowest, highest));
  return *this;
}
Argument& Argument::one_of(std::initializer_list<int> values) {
  option_->check(CLI::IsMember(values));
  return *this;
}
Argument& Argument::check(std::function<std::string(const std::string&)> problem) {
  option_->check(std::move(problem));
  return *this;
}

Argument Arguments::add_option(const std::string& names, std::string& to, const std::string& help) {
  return Argument(app_->add_option(names, to, help));
}
Argument Arguments::add_option(const std::string& names, int& to, const std::string& help) {
  return Argument(app_->add_option(names, to, help));
}
Argument Arguments::add_option(const std::string& names, std::optional<int>& to, const std::string& help) {
  return Argument(app_->add_option(names, to, help));
}
Argument Arguments::add_option(const std::string& names, int64_t& to, const std::string& help) {
  return Argument(app_->add_option(names, to, help));
}
Argument Arguments::add_option(const std::string& names, uint64_t& to, const std::string& help) {
  return Argument(app_->add_option(names, to, help));
}
Argument Arguments::add_option(const std::string& names, double& to, const std::string& help) {
  return Argument(app_->add_option(names, to, help));
}
Argument Arguments::add_option(const std::string& names, std::vector<std::string>& to, const std::string& help) {
  return Argument(app_->add_option(names, to, help));
}
Argument Arguments::add_option(const std::string& names, std::vector<int64_t>& to, const std::string& help) {
  return Argument(app_->add_option(names, to, help));
}
Argument Arguments::add_flag(const std::string& names, bool& to, const std::string& help) {
  return Argument(app_->add_flag(names, to, help));
}

Arguments Arguments::add_subcommand(const std::string& name, const std::string& help) {
  return Arguments(app_->add_subcommand(name, help));
}
void Arguments::require_subcommand() { app_->require_subcommand(1); }
bool Arguments::is_named() const { return app_->parsed(); }

std::vector<std::string> Arguments::order_of(std::initializer_list<const char*> names) const {
  std::vector<std::string> order;
  for (const CLI::Option* option : app_->parse_order())
    for (const char* name : names)
      if (option == app_->get_option_no_throw(name)) order.emplace_back(name);
  return order;
}

}  // namespace weft::cli
