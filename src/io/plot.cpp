// Plots by gnuplot, run as a process: a script with the data on its standard input, SVG on its standard output.
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "src/io/internal/html.h"
#include "src/io/internal/plotter.h"
#include "src/io/process.h"
#include "weft/core/error.h"
#include "weft/io/files.h"
#include "weft/io/report.h"

namespace weft::io {

namespace {

constexpr size_t kMaxPoints = 2000;  // per series; more cannot be seen and make the page heavy
using Points = std::vector<std::pair<double, double>>;

bool is_drawable(const std::pair<double, double>& point, bool is_log_y) {
  return std::isfinite(point.first) && std::isfinite(point.second) && (!is_log_y || point.second > 0);
}

// At most about kMaxPoints points: of each group of neighbours the lowest and the highest stay, so that spikes stay
// visible.
Points thinned(const Points& points) {
  if (points.size() <= kMaxPoints) return points;
  size_t group = (points.size() + kMaxPoints / 2 - 1) / (kMaxPoints / 2);
  Points kept;
  for (size_t begin = 0; begin < points.size(); begin += group) {
    auto first = points.begin() + static_cast<std::ptrdiff_t>(begin);
    auto last = points.begin() + static_cast<std::ptrdiff_t>(std::min(begin + group, points.size()));
    auto [low, high] =
        std::minmax_element(first, last, [](const auto& a, const auto& b) { return a.second < b.second; });
    kept.push_back(low < high ? *low : *high);
    if (low != high) kept.push_back(low < high ? *high : *low);
  }
  return kept;
}

std::string number(double value) {
  char buffer[32];
  return std::string(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
}

// A text constant. Between single quotes gnuplot replaces nothing and runs nothing; a quote is doubled.
std::string quoted(std::string_view text) {
  std::string out = "'";
  for (char c : internal::clean_utf8(text)) out += c == '\'' ? "''" : c == '\n' || c == '\t' ? " " : std::string(1, c);
  return out + "'";
}

// Keeps both ends of a long name: its beginning may be that of others.
std::string shortened(std::string_view text, size_t most) {
  if (text.size() <= most) return std::string(text);
  const auto is_inside = [&](size_t at) { return (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80; };
  size_t head = most / 2 - 1, tail = text.size() - (most - most / 2 - 2);
  while (head > 0 && is_inside(head)) --head;
  while (tail < text.size() && is_inside(tail)) ++tail;
  return str(text.substr(0, head), "...", text.substr(tail));
}
constexpr size_t kMaxTitle = 112, kMaxName = 36;  // letters that fit above a picture, and beside one
std::string quoted_name(std::string_view name) { return quoted(shortened(name, kMaxName)); }

// Colours that people with a weak sense of colour tell apart too, dark enough for thin lines (after Okabe and Ito).
constexpr std::string_view kFrame =
    "set linetype 1 lc rgb '#000000'\nset linetype 2 lc rgb '#0072b2'\nset linetype 3 lc rgb '#d55e00'\n"
    "set linetype 4 lc rgb '#009e73'\nset linetype 5 lc rgb '#cc3f8f'\nset linetype 6 lc rgb '#e69f00'\n"
    "set linetype 7 lc rgb '#56b4e9'\nset linetype 8 lc rgb '#7a5195'\n"
    // The next eight are dashed.
    "set linetype 9 lc rgb '#000000' dt 2\nset linetype 10 lc rgb '#0072b2' dt 2\nset linetype 11 lc rgb '#d55e00' dt "
    "2\n"
    "set linetype 12 lc rgb '#009e73' dt 2\nset linetype 13 lc rgb '#cc3f8f' dt 2\nset linetype 14 lc rgb '#e69f00' dt "
    "2\n"
    "set linetype 15 lc rgb '#56b4e9' dt 2\nset linetype 16 lc rgb '#7a5195' dt 2\nset linetype cycle 16\n"
    "set grid lc rgb '#dddddd'\nset key top right\nset border 3\nset tics nomirror\n"
    "set palette defined (0 '#440154', 1 '#31688e', 2 '#35b779', 3 '#fde725')\n";

constexpr int kWidth = 800, kHeight = 360, kRowHeight = 16, kKeyHeight = 18;  // pixels
constexpr size_t kMaxColumns = 80, kMaxNamedRows = 40;

// One picture as gnuplot sees it: blocks of numbers, and the commands that draw them; no commands if there is nothing to draw.
struct Panel {
  std::string blocks, commands;
  int height = kHeight;
};

std::string labels(const std::string& title, const std::string& x, const std::string& y) {
  return str("set title ", quoted(shortened(title, kMaxTitle)), "\nset xlabel ", quoted(shortened(x, kMaxTitle)),
             "\nset ylabel ", quoted_name(y), "\n");
}

// Rows "x y", with "low high" behind them where there is a band. An empty line ends the curve, the next one begins anew.
std::string rows_of(const PlotSeries& series, bool is_log_y, bool has_band, size_t& num_drawn) {
  const Points points = has_band ? series.points : thinned(series.points);
  std::string rows;
  for (size_t i = 0; i < points.size(); ++i) {
    if (is_drawable(points[i], is_log_y)) {
      rows += str(number(points[i].first), " ", number(points[i].second));
      if (has_band) rows += str(" ", number(series.band[i].first), " ", number(series.band[i].second));
      ++num_drawn;
    }
    rows += "\n";
  }
  return rows;
}

Panel panel_of(const Plot& plot, const std::string& prefix) {
  Panel panel;
  std::string bands, curves;
  int count = 0;
  for (const PlotSeries& series : plot.series) {
    size_t num_drawn = 0;
    const bool has_band = !series.band.empty() && series.band.size() == series.points.size();
    const std::string rows = rows_of(series, plot.is_log_y, has_band, num_drawn);
    if (num_drawn == 0) continue;
    std::string block = str("$", prefix, "series", count++);
    const int colour = series.colour > 0 ? series.colour : count;
    panel.blocks += str(block, " << WEFT_END\n", rows, "WEFT_END\n");
    if (has_band)
      bands += str(block, " using 1:3:4 with filledcurves lt ", colour, " fs transparent solid 0.18 notitle, ");
    std::string_view style = num_drawn <= 60 ? " with linespoints pt 7 ps 0.4" : " with lines";
    curves += str(curves.empty() ? "" : ", ", block, " using 1:2", style, " lt ", colour, " lw 2 title ",
                  quoted_name(series.name));
  }
  if (curves.empty()) return {};
  // Many names do not fit into the frame.
  std::string key = plot.series.size() > 2 ? "set key outside right top\n" : "";
  panel.height = std::max(kHeight, kKeyHeight * static_cast<int>(plot.series.size()) + 90);
  panel.commands = str(labels(plot.title, plot.x_label, plot.y_label), key, plot.is_log_y ? "set logscale y\n" : "",
                       "plot ", bands, curves, "\n");
  return panel;
}

// Every nth of `count`, so that at most `most` are left.
size_t stride_for(size_t count, size_t most) { return std::max<size_t>(1, (count + most - 1) / most); }

Panel panel_of(const HeatMap& map, const std::string& prefix) {
  Panel panel;
  const size_t step = stride_for(map.x.size(), kMaxColumns);
  std::string numbers;
  size_t num_drawn = 0, num_columns = 0;
  for (const std::vector<double>& row : map.values) {
    num_columns = 0;
    for (size_t c = 0; c < map.x.size(); c += step, ++num_columns) {
      bool is_there = c < row.size() && std::isfinite(row[c]);
      num_drawn += is_there;
      numbers += is_there ? number(row[c]) + " " : "NaN ";
    }
    numbers += "\n";
  }
  if (num_drawn == 0) return {};
  panel.height = std::clamp(kRowHeight * static_cast<int>(map.rows.size()) + 110, 200, 1400);
  std::string block = str("$", prefix, "map"), rows, columns;
  const size_t row_step = stride_for(map.rows.size(), kMaxNamedRows), column_step = stride_for(num_columns, 8);
  for (size_t r = 0; r < map.rows.size(); r += row_step)
    rows += str(rows.empty() ? "" : ", ", quoted_name(map.rows[r]), " ", r);
  for (size_t c = 0; c < num_columns; c += column_step)
    columns += str(columns.empty() ? "" : ", ", quoted(rounded(map.x[c * step])), " ", c);
  panel.blocks = str(block, " << WEFT_END\n", numbers, "WEFT_END\n");
  panel.commands = str(labels(map.title, map.x_label, map.y_label), "unset grid\nset xrange [-0.5:", num_columns - 1,
                       ".5]\nset yrange [", map.rows.size() - 1, ".5:-0.5]\nset ytics (", rows, ")\nset xtics (",
                       columns, ")\nplot ", block, " matrix with image pixels notitle\n");
  return panel;
}

Panel panel_of(const Intervals& picture, const std::string& prefix) {
  Panel panel;
  std::string intervals, points, names;
  for (size_t r = 0; r < picture.rows.size(); ++r) {
    const Intervals::Row& row = picture.rows[r];
    if (!std::isfinite(row.middle) || !std::isfinite(row.low) || !std::isfinite(row.high)) continue;
    names += str(names.empty() ? "" : ", ", quoted_name(row.name), " ", r);
    intervals += str(number(row.middle), " ", r, " ", number(row.low), " ", number(row.high), "\n");
    for (double x : row.points)
      if (std::isfinite(x)) points += str(number(x), " ", r, "\n");
  }
  if (intervals.empty()) return {};
  panel.height = 120 + 28 * static_cast<int>(picture.rows.size());
  const std::string middle = str("$", prefix, "intervals"), single = str("$", prefix, "points");
  panel.blocks = str(middle, " << WEFT_END\n", intervals, "WEFT_END\n");
  if (!points.empty()) panel.blocks += str(single, " << WEFT_END\n", points, "WEFT_END\n");
  panel.commands = str(
      labels(picture.title, picture.x_label, ""), "set yrange [", picture.rows.size(), "-0.5:-0.5]\nset ytics (", names,
      ")\nset arrow from 0, graph 0 to 0, graph 1 nohead lc rgb '#777777' dt 2\nset bars 0.6\nplot ", middle,
      " using 1:2:3:4 with xerrorbars pt 7 ps 0.8 lw 2 lt 2 notitle",
      points.empty() ? "" : ", " + single + " using 1:2 with points pt 6 ps 0.7 lw 1.5 lc rgb '#d55e00' notitle", "\n");
  return panel;
}

Panel panel_of(const Picture& picture, const std::string& prefix) {
  return std::visit([&](const auto& p) { return panel_of(p, prefix); }, picture);
}

std::string title_of(const Picture& picture) {
  return std::visit([](const auto& p) { return p.title; }, picture);
}

std::string terminal(int width, int height) {
  return str("set encoding utf8\nset terminal svg size ", width, ",", height,
             " noenhanced font 'sans-serif,12' background rgb 'white'\n");
}

std::string make_script(const Picture& picture) {
  Panel panel = panel_of(picture, "");
  WEFT_CHECK(!panel.commands.empty(), str("plot '", title_of(picture), "': no series has a point that can be drawn"),
             "leave the plot out");
  return str(terminal(kWidth, panel.height), panel.blocks, kFrame, panel.commands);
}

// Two panels beside each other, as high as the higher one wants on average.
std::string make_script(std::span<const Picture> pictures) {
  std::string blocks, commands;
  int count = 0, tallest = 0;
  for (size_t i = 0; i < pictures.size(); ++i) {
    Panel panel = panel_of(pictures[i], str("p", i));
    if (panel.commands.empty()) continue;
    blocks += panel.blocks;
    commands += str("reset\n", kFrame, panel.commands);
    tallest = std::max(tallest, panel.height);
    ++count;
  }
  WEFT_CHECK(count > 0, "picture: no plot has a point that can be drawn", "leave it out");
  const int columns = count > 1 ? 2 : 1, rows = (count + columns - 1) / columns;
  return str(terminal(kWidth * columns, tallest * rows), blocks, "set multiplot layout ", rows, ",", columns, "\n",
             commands, "unset multiplot\n");
}

// Element names of one page must differ: gnuplot gives every picture the same ones.
void prefix_ids(std::string& svg, const std::string& id) {
  for (std::string_view opening : {" id='", " id=\"", "href='#", "href=\"#", "url(#"}) {
    for (size_t at = svg.find(opening); at != std::string::npos; at = svg.find(opening, at + opening.size()))
      svg.insert(at + opening.size(), id + "-");
  }
}

}  // namespace

std::string internal::Plotter::run(const std::string& script, const std::string& what) {
  const std::string fix = "run `gnuplot -d` by hand to see why, then the same command again without report.html";
  WEFT_CHECK(!has_hung_, str("gnuplot: plot '", what, "' was not tried: the plot before it hung"), fix);
  auto result = run_process({"gnuplot", "-d"}, script, {timeout_s_, is_stopping_},
                            "install gnuplot: apt-get install --no-install-recommends gnuplot-nox");
  has_hung_ = result.end == ProcessEnd::timed_out;
  WEFT_CHECK(!has_hung_, str("gnuplot: plot '", what, "' was not done after ", timeout_s_, " s; gnuplot was ended"),
             fix);
  WEFT_CHECK(result.end != ProcessEnd::stopped, str("gnuplot: plot '", what, "' was stopped"),
             "write the report again");
  size_t begin = result.output.find("<svg"), end = result.output.rfind("</svg>");
  bool is_good = result.exit_code == 0 && begin != std::string::npos && end != std::string::npos;
  WEFT_CHECK(
      is_good,
      str("gnuplot: plot '", what, "' failed with exit code ", result.exit_code, ": ", result.messages.substr(0, 400)),
      "check that gnuplot has the svg terminal (gnuplot-nox or gnuplot-qt)");
  return result.output.substr(begin, end + 6 - begin);
}

std::string rounded(double value) {
  char text[32];
  bool is_whole = std::abs(value) < 1e15 && value == std::nearbyint(value);
  bool is_large = std::abs(value) >= 1e4 && std::abs(value) < 1e15;
  std::snprintf(text, sizeof text, is_whole || is_large ? "%.0f" : "%.4g", value);
  return text;
}

std::string internal::Plotter::svg(const Picture& picture, const std::string& id) {
  std::string svg = run(make_script(picture), title_of(picture));
  prefix_ids(svg, id);
  return svg;
}

bool has_plotter() {
  const char* path = std::getenv("PATH");
  std::string_view rest = path ? path : "/bin:/usr/bin";
  while (true) {
    size_t end = std::min(rest.find(':'), rest.size());
    std::string folder(rest.substr(0, end));
    if (::access((folder.empty() ? "./gnuplot" : folder + "/gnuplot").c_str(), X_OK) == 0) return true;
    if (end == rest.size()) return false;
    rest.remove_prefix(end + 1);
  }
}

std::string plot_svg(const Picture& picture, const std::string& id) {
  return internal::Plotter(ReportData().plot_timeout_s).svg(picture, id);
}

void write_picture(const std::string& path, std::span<const Picture> pictures) {
  internal::Plotter plotter(ReportData().plot_timeout_s);
  write_file_atomically(path, plotter.run(make_script(pictures), path) + "\n");
}

std::vector<Plot> plots_of(const std::vector<MetricsRecord>& records) {
  std::map<std::string, PlotSeries> series;
  for (const MetricsRecord& record : records)
    for (const auto& [key, value] : record.values)
      series[key].points.emplace_back(static_cast<double>(record.step), value);
  auto take = [&](Plot plot, auto&& belongs) {
    for (auto& [key, curve] : series) {
      std::string name = belongs(key);
      if (!name.empty()) plot.series.push_back({name, curve.points});
    }
    return plot;
  };
  auto only = [](std::string wanted, std::string name) {
    return [=](const std::string& key) { return key == wanted ? name : std::string(); };
  };
  std::vector<Plot> plots = {
      take({"Loss", "step", "nats per token", false, {}},
           [](const std::string& key) {
             return key == "train/loss" ? "training" : key == "val/loss" ? "validation" : "";
           }),
      take({kRatesTitle, "step", "learning rate", false, {}},
           [](const std::string& key) {
             return key.starts_with("train/lr/") ? key.substr(9) : key == "train/lr" ? "all" : "";
           }),
      take({"Gradient norm", "step", "norm", true, {}}, only("train/grad_norm", "before clipping")),
      take({"Speed", "step", "tokens per second", false, {}}, only("speed/tokens_per_second", "tokens/s"))};
  std::erase_if(plots, [](const Plot& plot) { return plot.series.empty(); });
  return plots;
}

}  // namespace weft::io
