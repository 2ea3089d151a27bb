// Studies of tiny models, run by `weft ablate` as a process.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"
#include "weft/core/error.h"
#include "weft/io/events.h"
#include "weft/io/files.h"

namespace weft::test {

class Ablate : public RunFixture {
 protected:
  static constexpr const char* kRuns = R"(
base: "tiny.txtpb"
set: "train.tokens=1280" set: "checkpoint.every=2" set: "eval.every=0"
)";
  static constexpr const char* kArms = R"(
axis { name: "gate" arm { name: "none" } arm { name: "head" set: "model.mixer={preset: \"gate_out_head\"}" } }
)";
  void write_grid(const std::string& text) { write("grid.txtpb", text); }
  ProcessResult ablate(const std::string& out, std::vector<std::string> more = {}) {
    std::vector<std::string> words{"ablate", path("grid.txtpb"), "--out", path(out)};
    words.insert(words.end(), more.begin(), more.end());
    return run_weft(words);
  }
  std::string report(const std::string& out) { return io::read_file(path(out) + "/report.txt"); }
  // Without times and memory.
  std::string numbers(const std::string& out) {
    const std::string text = report(out);
    const size_t speed = text.find("Speed and memory");
    EXPECT_NE(speed, std::string::npos) << text;
    return text.substr(0, speed);
  }
  // The text, JSON and page of a report, without times and memory.
  std::string whole_report(const std::string& out) {
    const auto cut = [](std::string& text, const std::string& from, const std::string& to) {
      const size_t begin = text.find(from), end = text.find(to, begin);
      ASSERT_NE(end, std::string::npos) << from;
      text.erase(begin, end - begin);
    };
    std::string page = io::read_file(path(out) + "/report.html");
    cut(page, "Speed and memory", "</table>"), cut(page, "started: ", "Z&quot;");
    auto json = nlohmann::ordered_json::parse(io::read_file(path(out) + "/report.json"));
    EXPECT_EQ(json.erase("speed"), 1u);
    return numbers(out) + json.dump(1) + page;
  }
  std::vector<std::string> hparams_tags(const std::string& folder) {
    std::vector<std::string> tags;
    for (const std::string& name : io::list_folder(path(folder)))
      if (name.starts_with("events."))
        for (const io::Event& event : io::read_events(path(folder) + "/" + name).events)
          for (const io::EventValue& value : event.values)
            if (value.tag.starts_with("_hparams_/")) tags.push_back(value.tag);
    return tags;
  }
  // The bytes of all event files of a folder.
  std::string events_of(const std::string& folder) {
    std::string bytes;
    for (const std::string& name : io::list_folder(path(folder)))
      if (name.starts_with("events.")) bytes += io::read_file(path(folder) + "/" + name);
    return bytes;
  }
  void expect_refused(const std::string& grid, const std::vector<std::string>& texts) {
    write_grid(grid);
    const ProcessResult result = ablate("refused");
    EXPECT_EQ(result.exit_code, 2) << result.err;
    for (const std::string& text : texts)
      EXPECT_NE(result.err.find(text), std::string::npos) << text << " in " << result.err;
    EXPECT_FALSE(io::file_exists(path("refused"))) << "nothing is written for a grid that is wrong";
  }
};

}  // namespace weft::test
