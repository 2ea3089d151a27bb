// The report of a run: one HTML file with everything in it, readable offline.
//   io::ReportData data{.title = "tiny", .facts = {{"parameters", "1.9 M"}}, .plots = io::plots_of(records)};
//   for (const std::string& warning : io::write_report("run/report.html", data)) ...
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "weft/io/metrics.h"

namespace weft::io {

struct PlotSeries {
  std::string name = {};
  std::vector<std::pair<double, double>> points = {};  // x, y; those that are not finite leave a gap
  std::vector<std::pair<double, double>> band = {};    // lowest and highest y at each point, shaded; empty: none
  int colour = 0;  // which of the palette, from 1, so that one thing looks alike in several plots; 0: by its place
};

struct Plot {
  std::string title = {}, x_label = {}, y_label = {};
  bool is_log_y = false;  // then only points with y > 0 are drawn
  std::vector<PlotSeries> series = {};
};

// Numbers as colours: a row per name, a column per x.
struct HeatMap {
  std::string title = {}, x_label = {}, y_label = {};
  std::vector<double> x = {};                    // of the columns, ascending
  std::vector<std::string> rows = {};            // names, from the top
  std::vector<std::vector<double>> values = {};  // [row][column]; what is not finite stays blank
};

// Numbers with their intervals, each with a line of its own below the others, beside a line at zero.
struct Intervals {
  struct Row {
    std::string name = {};
    double middle = 0, low = 0, high = 0;  // without an interval: low = high = middle
    std::vector<double> points = {};  // single values, such as one per seed; those that are not finite are left out
  };
  std::string title = {}, x_label = {};
  std::vector<Row> rows = {};  // from the top
};

using Picture = std::variant<Plot, HeatMap, Intervals>;

inline constexpr const char* kRatesTitle = "Learning rate";  // of the plot whose curves are groups of parameters

// Loss (training and validation), learning rates, gradient norm and tokens per second against the step. Plots without
// points are left out. `records` as apply_rewinds() gives them.
std::vector<Plot> plots_of(const std::vector<MetricsRecord>& records);

// The first column is text, the others are aligned to the right.
struct ReportTable {
  std::string title = {};
  std::vector<std::string> header = {};
  std::vector<std::vector<std::string>> rows = {};
};

struct ReportSection {
  std::string heading = {}, text = {};
  std::vector<Picture> pictures = {};
  std::vector<ReportTable> tables = {};  // above the pictures
};

struct ReportData {
  std::string title = {};
  std::vector<std::pair<std::string, std::string>> facts =
      {};                                    // name, value: parameters, tokens, final loss, time, ...
  std::vector<ReportSection> first = {};     // sections above the curves
  std::vector<Plot> plots = {};              // under the heading Curves
  std::vector<ReportSection> sections = {};  // below them
  std::vector<std::pair<std::string, std::string>> samples = {};  // heading, text; any bytes
  std::string config = {};                                        // text of config.txtpb
  double plot_timeout_s = 30;              // a gnuplot that takes longer is ended, and no further plot is tried
  std::function<bool()> is_stopping = {};  // asked while gnuplot runs
};

// Writes the page atomically. gnuplot draws the curves. If it fails, the page says in place of the plot what went wrong, and keeps the tables
// of numbers; the same text is returned as a warning. Error if the file cannot be written, or if `is_stopping` returns true; then the old
// file stays as it was.
std::vector<std::string> write_report(const std::string& path, const ReportData& data);

// Whether there is a gnuplot on PATH.
bool has_plotter();

// One picture as an <svg> element. Error if gnuplot is not installed or fails. On a page with several, each needs an `id` of its own.
std::string plot_svg(const Picture& picture, const std::string& id);

// Writes all plots to one SVG file, two beside each other. Plots without a point that can be drawn are left out. The Errors of plot_svg(),
// and one if the file cannot be written.
void write_picture(const std::string& path, std::span<const Picture> pictures);

// A number for people to read. Whole numbers are written as they are. Others have four digits, and from 10000 on no decimals.
std::string rounded(double value);

}  // namespace weft::io
