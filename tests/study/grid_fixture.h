// Grids over a tiny model, read in this process.
#pragma once

#include <string>

#include "tests/trainers/run_fixture.h"
#include "trainers/study/grid.h"

namespace weft::study {

class GridArms : public test::RunFixture {
 protected:
  static constexpr const char* kRuns = "base: \"tiny.txtpb\" seeds: 3 set: \"train.tokens=1280\" ";
  static constexpr const char* kArms =
      R"(axis { name: "gate" arm { name: "none" } arm { name: "head" set: "model.mixer={preset: \"gate_out_head\"}" } } )";

  Grid grid(const std::string& text) {
    write("grid.txtpb", text);
    return read_grid(path("grid.txtpb"));
  }
  Arms arms(const std::string& text) { return resolve_arms(grid(text), {}); }
  static std::string axis_of(const std::string& set) {
    return "axis { name: \"a\" arm { name: \"plain\" } arm { name: \"own\" set: \"" + set + "\" } } ";
  }
};

}  // namespace weft::study
