// Results of commands that are kept in the run's folder too.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace weft::cli {

class Console;

// Prints `json` or `text` as the console wants it, and then writes `json` to `run`/eval/`name`. A folder that cannot be written
// (another user's run, a full disk) costs a warning: the result has been printed.
void print_and_store(Console& console, const nlohmann::ordered_json& json, const std::string& text,
                     const std::string& run, const std::string& name);

}  // namespace weft::cli
