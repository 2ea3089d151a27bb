#include "trainers/command/stored_result.h"

#include <nlohmann/json.hpp>

#include "trainers/console/console.h"
#include "weft/core/error.h"
#include "weft/io/files.h"

namespace weft::cli {

void print_and_store(Console& console, const nlohmann::ordered_json& json, const std::string& text,
                     const std::string& run, const std::string& name) {
  const std::string bytes = json.dump(2) + "\n";
  console.result(console.is_json() ? bytes : text);
  try {
    io::make_folders(run + "/eval");
    io::write_file_atomically(run + "/eval/" + name, bytes);
  } catch (const Error& error) {
    console.message(str("warning: the result is not kept with the run: ", error.problem()));
  }
}

}  // namespace weft::cli
