// Results of commands that are kept in the run's folder too.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "weft/io/report.h"

namespace weft::cli {

class Console;

// A name for a result in `run`/eval. The result of the run as it is has the name `stem`. With `arguments` (overrides, options) it is another
// result, with a name of its own: "step-00000040-5f1c93a0".
std::string result_name(const std::string& stem, const std::vector<std::string>& arguments);

// Prints `json` or `text` as the console wants it, and then writes `json` to `run`/eval/`name`.json, with `arguments` if there are any. A
// folder that cannot be written (another user's run, a full disk) costs a warning: the result has been printed.
void print_and_store(Console& console, nlohmann::ordered_json json, const std::string& text, const std::string& run,
                     const std::string& name, const std::vector<std::string>& arguments);

// Draws `run`/eval/`name`.svg. Returns its path, or "" where there is nothing to draw or it fails: without gnuplot a line of advice in its
// place, since the numbers are all there.
std::string draw_result(const std::vector<io::Picture>& pictures, const std::string& run, const std::string& name,
                        Console& console);

}  // namespace weft::cli
