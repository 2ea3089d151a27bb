// Studies whose runs were never made: their folders hold what a run would have recorded.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tests/trainers/run_fixture.h"
#include "trainers/study/match.h"
#include "trainers/study/report_parts.h"
#include "weft/core/error.h"
#include "weft/io/files.h"
#include "weft/io/metrics.h"

namespace weft::test {

class StudyFixture : public RunFixture {
 protected:
  static constexpr const char* kSeeds = "base: \"tiny.txtpb\" seeds: 1 seeds: 2 seeds: 3 ";
  static constexpr const char* kArms = R"(
axis { name: "gate" arm { name: "none" } arm { name: "head" set: "model.mixer={preset: \"gate_out_head\"}" }
  arm { name: "channel" set: "model.mixer={preset: \"gate_out\"}" } } )";

  // All cells complete and without a metric.
  void make(const std::string& text) {
    write("grid.txtpb", text);
    grid = study::read_grid(path("grid.txtpb"));
    arms = study::resolve_arms(grid, {});
    study::count_and_match(grid, arms, {});
    cells = study::cells_of(grid, arms);
    results.assign(cells.size(), study::CellResult{.state = study::CellResult::State::complete});
  }
  std::string folder_of(size_t cell) const { return path("study") + "/cells/" + cells[cell].folder; }
  void record(size_t cell, const std::vector<io::MetricsRecord>& records, const std::string& commit = "abc") {
    io::make_folders(folder_of(cell));
    std::string lines;
    for (const io::MetricsRecord& one : records) lines += io::to_json(one) + "\n";
    io::write_file_atomically(folder_of(cell) + "/metrics.jsonl", lines);
    environment(cell, commit, "Some CPU");
  }
  void environment(size_t cell, const std::string& commit, const std::string& processor) {
    io::make_folders(folder_of(cell));
    io::write_file_atomically(folder_of(cell) + "/environment.txtpb",
                              str("host: \"here\" version: \"1.2\" build: \"release\" compiler: \"GNU 12\" threads: 1 "
                                  "processor: \"",
                                  processor, "\" commit: \"", commit, "\""));
  }
  // value(arm, seed): as a number of a run whose noise the arms share.
  template <class Value>
  void set(const std::string& metric, Value&& value) {
    for (size_t i = 0; i < cells.size(); ++i)
      results[i]->metrics[metric] =
          value(static_cast<double>(cells[i].combination), static_cast<double>(cells[i].seed));
  }
  study::StudyData data() const {
    return {.folder = study_folder,
            .grid = grid,
            .arms = arms,
            .cells = cells,
            .results = results,
            .tuning = tuning ? &*tuning : nullptr};
  }

  std::string study_folder = {};
  study::Grid grid;
  study::Arms arms;
  std::vector<study::Cell> cells;
  std::vector<std::optional<study::CellResult>> results;
  std::optional<study::Tuning> tuning;

  void SetUp() override {
    RunFixture::SetUp();
    study_folder = path("study");
  }
};

}  // namespace weft::test
