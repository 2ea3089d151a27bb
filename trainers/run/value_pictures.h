// What layers report of themselves and what analyses find, by name ("model.layers.2.mixer.entropy/5"), as pictures and as grouped lines.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "weft/io/report.h"

namespace weft::train {

using NamedValues = std::vector<std::pair<std::string, double>>;

// The sections Diagnostics and Analyses of a run's report: each kind of value over the steps, per layer and head. Empty without any.
std::vector<io::ReportSection> value_sections(const std::vector<io::MetricsRecord>& records);

// Of each kind that heads report in records of kind diagnostics: layers and heads down, steps across.
std::vector<io::HeatMap> head_maps(const std::vector<io::MetricsRecord>& records);

// Values of one analysis: a picture per kind, over layers, heads, tokens or shares of heads.
std::vector<io::Picture> value_pictures(const NamedValues& values);

// Validation losses of windows of one length.
struct LengthLosses {
  int64_t length = 0;
  double loss = 0, standard_error = 0;
  std::vector<std::pair<double, double>> by_seen = {};  // tokens that the model has seen, loss; may be empty
};
// The loss over the length, with its standard error, of two lengths or more; the loss over the tokens seen, a curve per length. Empty where
// nothing makes a curve.
std::vector<io::Picture> loss_pictures(const std::vector<LengthLosses>& lengths);

// value_pictures() as tables for people: layers down, heads or kinds across.
std::string value_tables(const NamedValues& values);

}  // namespace weft::train
