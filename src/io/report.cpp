// The page is HTML and well-formed XML at once, with its style and pictures inside.
#include "weft/io/report.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/io/internal/html.h"
#include "src/io/internal/plotter.h"
#include "weft/core/error.h"
#include "weft/io/files.h"

namespace weft::io {

using internal::html_escape;

namespace {

constexpr std::string_view kStyle =
    "body{font:15px/1.45 system-ui,sans-serif;max-width:84em;margin:2em auto;padding:0 1em;color:#222}"
    "h1{font-size:1.6em}h2{font-size:1.2em;margin-top:2em;border-bottom:1px solid #ddd}h3{font-size:1em}"
    "table{border-collapse:collapse;font-size:.93em}td,th{padding:.15em .8em .15em "
    "0;text-align:left;vertical-align:top}"
    "p,pre{max-width:60em}td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}"
    "pre{background:#f6f6f6;padding:.8em;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere}"
    ".wide{overflow-x:auto}details{margin:.3em 0}summary{cursor:pointer;color:#555}th{white-space:nowrap}"
    "svg{max-width:100%;height:auto}.missing{background:#fff3cd;border:1px solid #e0c060;padding:.6em}";

struct SeriesSummary {
  size_t num_points = 0, num_not_finite = 0;
  double first = std::nan(""), last = first, lowest = std::numeric_limits<double>::infinity(), highest = -lowest;
  double lowest_at = first;
};

SeriesSummary summarise(const PlotSeries& series) {
  SeriesSummary s;
  for (auto [x, y] : series.points) {
    if (!std::isfinite(y)) {
      ++s.num_not_finite;
      continue;
    }
    if (s.num_points++ == 0) s.first = y;
    s.last = y;
    if (y < s.lowest) s.lowest = y, s.lowest_at = x;
    s.highest = std::max(s.highest, y);
  }
  return s;
}

std::string table_of(const std::vector<PlotSeries>& all, const std::string& x_label) {
  std::string html = str(
      "<div class=\"wide\"><table><thead><tr><th>curve</th><th class=\"n\">points</th><th class=\"n\">first</th><th "
      "class=\"n\">last</th><th class=\"n\">lowest</th><th class=\"n\">at ",
      html_escape(x_label), "</th><th class=\"n\">highest</th><th class=\"n\">not finite</th></tr></thead><tbody>\n");
  auto cell = [](double value) {
    return str("<td class=\"n\">", std::isfinite(value) ? rounded(value) : std::string("-"), "</td>");
  };
  for (const PlotSeries& series : all) {
    SeriesSummary s = summarise(series);
    html += str("<tr><td>", html_escape(series.name), "</td><td class=\"n\">", s.num_points, "</td>", cell(s.first),
                cell(s.last), cell(s.lowest), cell(s.lowest_at), cell(s.highest), "<td class=\"n\">", s.num_not_finite,
                "</td></tr>\n");
  }
  return html + "</tbody></table></div>\n";
}

std::string table_of(const ReportTable& table) {
  std::string html = table.title.empty() ? "" : str("<h3>", html_escape(table.title), "</h3>\n");
  html += "<div class=\"wide\"><table><thead><tr>";
  auto cells = [&](const std::vector<std::string>& row, const char* tag) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c)
      line += str("<", tag, c > 0 ? " class=\"n\">" : ">", html_escape(row[c]), "</", tag, ">");
    return line;
  };
  html += cells(table.header, "th") + "</tr></thead><tbody>\n";
  for (const std::vector<std::string>& row : table.rows) html += str("<tr>", cells(row, "td"), "</tr>\n");
  return html + "</tbody></table></div>\n";
}

// The rows of a map as curves, for its table.
std::vector<PlotSeries> series_of(const HeatMap& map) {
  std::vector<PlotSeries> all;
  for (size_t r = 0; r < map.rows.size(); ++r) {
    PlotSeries series{.name = map.rows[r]};
    for (size_t c = 0; c < std::min(map.x.size(), map.values[r].size()); ++c)
      series.points.emplace_back(map.x[c], map.values[r][c]);
    all.push_back(std::move(series));
  }
  return all;
}
std::string numbers_of(const HeatMap& map) { return table_of(series_of(map), map.x_label); }
std::string numbers_of(const Plot& plot) { return table_of(plot.series, plot.x_label); }
std::string numbers_of(const Intervals& picture) {
  ReportTable table{.header = {"name", "middle", "low", "high", "single values"}};
  for (const Intervals::Row& row : picture.rows) {
    std::string points;
    for (double x : row.points) points += str(points.empty() ? "" : " ", rounded(x));
    table.rows.push_back({row.name, rounded(row.middle), rounded(row.low), rounded(row.high), points});
  }
  return table_of(table);
}

// Pictures of a page one after the other, each with its numbers.
class Pictures {
 public:
  Pictures(const std::string& path, const ReportData& data)
      : path_(path), is_stopping_(data.is_stopping), plotter_(data.plot_timeout_s, data.is_stopping) {}

  std::string section(const Picture& picture, bool folds_table) {
    std::string html = std::visit(
        [&](const auto& p) {
          std::string table = numbers_of(p);
          if (folds_table) table = str("<details><summary>numbers</summary>\n", table, "</details>\n");
          return str("<section><h3>", html_escape(p.title), "</h3>\n", drawn(picture, p.title), table, "</section>\n");
        },
        picture);
    WEFT_CHECK(!is_stopping_ || !is_stopping_(), str("report ", path_, ": stopped before it was written"),
               "run the same command again");
    return html;
  }
  std::string section(const ReportSection& section) {
    std::string html = str("<h2>", html_escape(section.heading), "</h2>\n<p>", html_escape(section.text), "</p>\n");
    for (const ReportTable& table : section.tables) html += table_of(table);
    for (const Picture& picture : section.pictures) html += this->section(picture, true);
    return html;
  }
  std::vector<std::string> warnings;

 private:
  // Without a plotter the page says so once.
  std::string drawn(const Picture& picture, const std::string& title) {
    if (!has_plotter_) {
      if (!warnings.empty()) return {};
      warnings.push_back(
          "gnuplot is not installed: the report has tables without pictures. Install it (apt-get install "
          "--no-install-recommends gnuplot-nox) and write the report again");
      return str("<p class=\"missing\">", html_escape(warnings.back()), "</p>\n");
    }
    try {
      return plotter_.svg(picture, str("plot", ++count_)) + "\n";
    } catch (const Error& error) {
      warnings.push_back(str("plot '", title, "' is missing from the report: ", error.problem(), "; ", error.fix()));
      return str("<p class=\"missing\">", html_escape(warnings.back()), "</p>\n");
    }
  }

  const std::string& path_;
  const std::function<bool()>& is_stopping_;
  internal::Plotter plotter_;
  bool has_plotter_ = has_plotter();
  size_t count_ = 0;
};

}  // namespace

std::vector<std::string> write_report(const std::string& path, const ReportData& data) {
  Pictures pictures(path, data);
  std::string title = html_escape(data.title);
  std::string html =
      str("<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head><meta "
          "charset=\"utf-8\"/><title>",
          title, "</title>\n<style>", kStyle, "</style></head>\n<body>\n<h1>", title, "</h1>\n");
  if (!data.facts.empty()) {
    html += "<h2>Run</h2>\n<table><tbody>\n";
    for (const auto& [name, value] : data.facts)
      html += str("<tr><th>", html_escape(name), "</th><td>", html_escape(value), "</td></tr>\n");
    html += "</tbody></table>\n";
  }
  for (const ReportSection& section : data.first) html += pictures.section(section);
  if (!data.plots.empty()) html += "<h2>Curves</h2>\n";
  for (const Plot& plot : data.plots) html += pictures.section(plot, false);
  for (const ReportSection& section : data.sections) html += pictures.section(section);
  if (!data.samples.empty()) html += "<h2>Samples</h2>\n";
  for (const auto& [heading, text] : data.samples)
    html += str("<h3>", html_escape(heading), "</h3>\n<pre>", html_escape(text), "</pre>\n");
  if (!data.config.empty()) html += str("<h2>Configuration</h2>\n<pre>", html_escape(data.config), "</pre>\n");
  write_file_atomically(path, html + "</body>\n</html>\n");
  return pictures.warnings;
}

}  // namespace weft::io
