#include "trainers/study/origin.h"

#include "trainers/run/facts.h"
#include "weft/io/files.h"

namespace weft::study {

Origin origin_of(const std::string& run_folder) {
  constexpr uint64_t kMostBytes = uint64_t{1} << 20;
  Origin origin{.build = "not recorded", .machine = "not recorded", .host = {}};
  const std::string file = run_folder + "/environment.txtpb";
  if (!io::file_exists(file)) return origin;
  const train::Facts facts = train::run_facts(config::Experiment(), io::read_file(file, kMostBytes));
  for (const auto& [name, value] : facts) {
    if (name == "build") origin.build = value;
    if (name != "machine") continue;
    const size_t colon = value.find(": ");
    origin.host = value.substr(0, colon), origin.machine = value.substr(colon + 2);
    // The threads are the run's choice.
    const size_t end = origin.machine.rfind(" threads, ");
    const size_t begin = end == std::string::npos ? end : origin.machine.rfind(", ", end);
    if (begin != std::string::npos) origin.machine.erase(begin, end + std::string_view(" threads").size() - begin);
  }
  return origin;
}

}  // namespace weft::study
