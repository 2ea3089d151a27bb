#include "trainers/command/stored_result.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "weft/core/error.h"
#include "weft/io/files.h"

namespace weft::cli {

std::string result_name(const std::string& stem, const std::vector<std::string>& arguments) {
  if (arguments.empty()) return stem;
  io::Xxh3Stream hash;
  for (const std::string& argument : arguments) {
    hash.update(argument);
    hash.update("\n");
  }
  return fmt::format("{}-{:08x}", stem, hash.digest() >> 32);
}

void print_and_store(Console& console, nlohmann::ordered_json json, const std::string& text, const std::string& run,
                     const std::string& name, const std::vector<std::string>& arguments) {
  if (!arguments.empty()) json["arguments"] = arguments;
  const std::string bytes = json_text(json);
  console.result(console.is_json() ? bytes : text);
  try {
    io::make_folders(run + "/eval");
    io::write_file_atomically(run + "/eval/" + name + ".json", bytes);
  } catch (const Error& error) {
    console.message(str("warning: the result is not kept with the run: ", error.problem()));
  }
}

std::string draw_result(const std::vector<io::Picture>& pictures, const std::string& run, const std::string& name,
                        Console& console) {
  if (pictures.empty()) return "";
  const std::string path = run + "/eval/" + name + ".svg";
  try {
    io::make_folders(run + "/eval");
    io::write_picture(path, pictures);
    console.message("picture " + path);
    return path;
  } catch (const Error& error) {
    console.message(str("no picture: ", error.problem(), "; ", error.fix()));
    return "";
  }
}

}  // namespace weft::cli
