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
    "body{font:15px/1.45 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "h1{font-size:1.6em}h2{font-size:1.2em;margin-top:2em;border-bottom:1px solid #ddd}h3{font-size:1em}"
    "table{border-collapse:collapse}td,th{padding:.15em .8em .15em 0;text-align:left;vertical-align:top}"
    "td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}"
    "pre{background:#f6f6f6;padding:.8em;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere}"
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

std::string series_table(const Plot& plot) {
  std::string html = str(
      "<table><thead><tr><th>curve</th><th class=\"n\">points</th><th class=\"n\">first</th><th class=\"n\">last</th>"
      "<th class=\"n\">lowest</th><th class=\"n\">at ",
      html_escape(plot.x_label),
      "</th><th class=\"n\">highest</th><th class=\"n\">not finite</th></tr></thead><tbody>\n");
  auto cell = [](double value) {
    return str("<td class=\"n\">", std::isfinite(value) ? str(value) : std::string("-"), "</td>");
  };
  for (const PlotSeries& series : plot.series) {
    SeriesSummary s = summarise(series);
    html += str("<tr><td>", html_escape(series.name), "</td><td class=\"n\">", s.num_points, "</td>", cell(s.first),
                cell(s.last), cell(s.lowest), cell(s.lowest_at), cell(s.highest), "<td class=\"n\">", s.num_not_finite,
                "</td></tr>\n");
  }
  return html + "</tbody></table>\n";
}

std::string plot_section(const Plot& plot, size_t index, internal::Plotter& plotter,
                         std::vector<std::string>& warnings) {
  std::string html = str("<section><h3>", html_escape(plot.title), "</h3>\n");
  try {
    html += plotter.svg(plot, str("plot", index)) + "\n";
  } catch (const Error& error) {
    std::string warning =
        str("plot '", plot.title, "' is missing from the report: ", error.problem(), "; ", error.fix());
    html += str("<p class=\"missing\">", html_escape(warning), "</p>\n");
    warnings.push_back(std::move(warning));
  }
  return html + series_table(plot) + "</section>\n";
}

}  // namespace

std::vector<std::string> write_report(const std::string& path, const ReportData& data) {
  std::vector<std::string> warnings;
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
  if (!data.plots.empty()) html += "<h2>Curves</h2>\n";
  internal::Plotter plotter(data.plot_timeout_s, data.is_stopping);
  for (size_t i = 0; i < data.plots.size(); ++i) {
    html += plot_section(data.plots[i], i, plotter, warnings);
    WEFT_CHECK(!data.is_stopping || !data.is_stopping(), str("report ", path, ": stopped before it was written"),
               "run the same command again");
  }
  if (!data.samples.empty()) html += "<h2>Samples</h2>\n";
  for (const auto& [heading, text] : data.samples)
    html += str("<h3>", html_escape(heading), "</h3>\n<pre>", html_escape(text), "</pre>\n");
  if (!data.config.empty()) html += str("<h2>Configuration</h2>\n<pre>", html_escape(data.config), "</pre>\n");
  write_file_atomically(path, html + "</body>\n</html>\n");
  return warnings;
}

}  // namespace weft::io
