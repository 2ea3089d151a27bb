// Plots by gnuplot, run as a process: a script with the data on its standard input, SVG on its standard output.
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <map>

#include "src/io/internal/html.h"
#include "src/io/internal/plotter.h"
#include "src/io/internal/process.h"
#include "weft/core/error.h"
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

std::string make_script(const Plot& plot) {
  std::string script =
      "set encoding utf8\nset terminal svg size 800,360 noenhanced font 'sans-serif,12' background rgb 'white'\n"
      "set grid lc rgb '#dddddd'\nset key top right\nset border 3\nset tics nomirror\n";
  script += str("set title ", quoted(plot.title), "\nset xlabel ", quoted(plot.x_label), "\nset ylabel ",
                quoted(plot.y_label), "\n");
  if (plot.is_log_y) script += "set logscale y\n";
  std::string commands;
  for (const PlotSeries& series : plot.series) {
    std::string rows;
    size_t num_drawn = 0;
    for (const auto& point : thinned(series.points)) {
      if (is_drawable(point, plot.is_log_y))
        rows += str(number(point.first), " ", number(point.second), "\n"), ++num_drawn;
      else rows += "\n";  // an empty line ends the curve, the next one begins anew
    }
    if (num_drawn == 0) continue;
    std::string block = str("$series", commands.size());
    script += str(block, " << WEFT_END\n", rows, "WEFT_END\n");
    std::string_view style = num_drawn <= 60 ? " with linespoints pt 7 ps 0.4" : " with lines";
    commands +=
        str(commands.empty() ? "plot " : ", ", block, " using 1:2", style, " lw 1.5 title ", quoted(series.name));
  }
  WEFT_CHECK(!commands.empty(), str("plot '", plot.title, "': no series has a point that can be drawn"),
             "leave the plot out");
  return script + commands + "\n";
}

// Element names of one page must differ: gnuplot gives every picture the same ones.
void prefix_ids(std::string& svg, const std::string& id) {
  for (std::string_view opening : {" id='", " id=\"", "href='#", "href=\"#", "url(#"}) {
    for (size_t at = svg.find(opening); at != std::string::npos; at = svg.find(opening, at + opening.size()))
      svg.insert(at + opening.size(), id + "-");
  }
}

}  // namespace

std::string internal::Plotter::svg(const Plot& plot, const std::string& id) {
  const std::string fix = "run `gnuplot -d` by hand to see why, then the same command again without report.html";
  WEFT_CHECK(!has_hung_, str("gnuplot: plot '", plot.title, "' was not tried: the plot before it hung"), fix);
  auto result = run_process({"gnuplot", "-d"}, make_script(plot), {timeout_s_, is_stopping_},
                            "install gnuplot: apt-get install --no-install-recommends gnuplot-nox");
  has_hung_ = result.end == ProcessEnd::timed_out;
  WEFT_CHECK(!has_hung_,
             str("gnuplot: plot '", plot.title, "' was not done after ", timeout_s_, " s; gnuplot was ended"), fix);
  WEFT_CHECK(result.end != ProcessEnd::stopped, str("gnuplot: plot '", plot.title, "' was stopped"),
             "write the report again");
  size_t begin = result.output.find("<svg"), end = result.output.rfind("</svg>");
  bool is_good = result.exit_code == 0 && begin != std::string::npos && end != std::string::npos;
  WEFT_CHECK(is_good,
             str("gnuplot: plot '", plot.title, "' failed with exit code ", result.exit_code, ": ",
                 result.messages.substr(0, 400)),
             "check that gnuplot has the svg terminal (gnuplot-nox or gnuplot-qt)");
  std::string svg = result.output.substr(begin, end + 6 - begin);
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

std::string plot_svg(const Plot& plot, const std::string& id) {
  return internal::Plotter(ReportData().plot_timeout_s).svg(plot, id);
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
      take({"Learning rate", "step", "learning rate", false, {}},
           [](const std::string& key) {
             return key.starts_with("train/lr/") ? key.substr(9) : key == "train/lr" ? "all" : "";
           }),
      take({"Gradient norm", "step", "norm", true, {}}, only("train/grad_norm", "before clipping")),
      take({"Speed", "step", "tokens per second", false, {}}, only("speed/tokens_per_second", "tokens/s"))};
  std::erase_if(plots, [](const Plot& plot) { return plot.series.empty(); });
  return plots;
}

}  // namespace weft::io
