// A profile as a file for chrome://tracing and ui.perfetto.dev: the CPU's spans on one line, the GPU's on another.
#pragma once

#include <string>
#include <vector>

#include "weft/core/profile.h"
#include "weft/nn/module.h"

namespace weft::train {

void write_trace(const std::vector<ProfileSpan>& spans, const std::string& path);  // makes the folder
// Where the time went, a line for each part that took a thousandth or more: share, ms, number of spans, name.
std::string share_table(const std::vector<ProfileSpan>& spans);

// While one lives, profiles get a mark when the gradient of a parameter is final in a backward: "gradient of layers.0.mixer.q.weight".
class GradientMarks {
 public:
  explicit GradientMarks(const Module& model);
  ~GradientMarks();
  GradientMarks(const GradientMarks&) = delete;
  GradientMarks& operator=(const GradientMarks&) = delete;

 private:
  std::vector<GradHook> hooks_;
};

}  // namespace weft::train
