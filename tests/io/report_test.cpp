// The report: well-formed, self-contained, hostile text, missing gnuplot.
#include "weft/io/report.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <set>
#include <sstream>

#include "tests/io/faults.h"
#include "tests/io/temp_folder.h"
#include "weft/io/files.h"

namespace weft::io {
namespace {

using test::error_of;
using test::expect_parts;
using test::TempFolder;

// "" if `text` is well-formed XML as far as tags, attributes, entities and ids go; otherwise what is wrong.
std::string find_fault(std::string_view text) {
  std::vector<std::string> open;
  std::set<std::string> ids;
  auto until = [&](size_t at, std::string_view end) { return text.find(end, at); };
  for (size_t at = 0; at < text.size();) {
    if (text[at] == '&') {
      size_t end = until(at, ";");
      if (end == std::string_view::npos || end - at > 8) return str("open entity at ", at);
      at = end + 1;
    } else if (text[at] != '<') {
      ++at;
    } else if (text.substr(at).starts_with("<!--")) {
      if (until(at, "-->") == std::string_view::npos) return "open comment";
      at = until(at, "-->") + 3;
    } else if (text.substr(at).starts_with("<!DOCTYPE")) {
      at = until(at, ">") + 1;
    } else if (text.substr(at).starts_with("<![CDATA[")) {
      if (until(at, "]]>") == std::string_view::npos) return "open CDATA";
      at = until(at, "]]>") + 3;
    } else {
      bool is_end = text.substr(at).starts_with("</");
      size_t begin = at + (is_end ? 2 : 1), name_end = text.find_first_of(" \t\n/>", begin);
      if (name_end == std::string_view::npos) return "open tag";
      std::string name(text.substr(begin, name_end - begin));
      if (name.empty() || !std::isalpha(static_cast<unsigned char>(name[0]))) return str("bad tag at ", at);
      at = name_end;
      while (at < text.size() && text[at] != '>' && text[at] != '/') {
        if (std::isspace(static_cast<unsigned char>(text[at]))) {
          ++at;
          continue;
        }
        size_t equals = text.find('=', at);
        if (equals == std::string_view::npos || equals + 1 >= text.size())
          return str("attribute without value at ", at);
        std::string attribute(text.substr(at, equals - at));
        attribute.resize(attribute.find_last_not_of(' ') + 1);
        size_t begin = text.find_first_not_of(' ', equals + 1);
        char quote = begin == std::string_view::npos ? ' ' : text[begin];
        size_t end = quote == '"' || quote == '\'' ? text.find(quote, begin + 1) : std::string_view::npos;
        if (end == std::string_view::npos) return str("unquoted attribute at ", at);
        std::string value(text.substr(begin + 1, end - begin - 1));
        if (value.find('<') != std::string::npos) return str("'<' in an attribute at ", at);
        if (attribute == "id" && !ids.insert(value).second) return str("id ", value, " occurs twice");
        at = end + 1;
      }
      bool is_empty = at < text.size() && text[at] == '/';
      at += is_empty ? 2 : 1;
      if (is_end) {
        if (open.empty() || open.back() != name) return str("</", name, "> closes nothing at ", at);
        open.pop_back();
      } else if (!is_empty) {
        open.push_back(name);
      }
    }
  }
  return open.empty() ? "" : str("<", open.back(), "> is not closed");
}

// Ended, and only not fetched by its parent yet.
bool is_zombie(pid_t pid) {
  std::string path = str("/proc/", pid, "/stat");
  std::ifstream in(path);
  std::string text((std::istreambuf_iterator<char>(in)), {});
  size_t end = text.rfind(')');
  return end != std::string::npos && text.compare(end, 3, ") Z") == 0;
}

// Puts another PATH in place for the time of a test.
class PathGuard {
 public:
  explicit PathGuard(const std::string& path) : old_(::getenv("PATH")) { ::setenv("PATH", path.c_str(), 1); }
  ~PathGuard() { ::setenv("PATH", old_.c_str(), 1); }

 private:
  std::string old_;
};

const std::string kHostile =
    "</pre><script>alert('x')</script> & \"q\" `id` $(id) \\ \x01\xff\xC0\xAF \xED\xA0\x80 \xC3\xA4 ]]> <!-- \r\n";

ReportData make_report() {
  std::vector<MetricsRecord> records;
  for (int i = 1; i <= 5000; ++i) {
    double loss = 4.0 / i + (i == 700 ? 5 : 1);
    records.push_back({.step = i,
                       .kind = "train",
                       .values = {{"train/loss", i == 900 ? std::nan("") : loss},
                                  {"train/lr/adam", 1e-3},
                                  {"train/lr/muon", 2e-2},
                                  {"train/grad_norm", 1.0 / i},
                                  {"speed/tokens_per_second", 1e4}}});
    if (i % 1000 == 0) records.push_back({.step = i, .kind = "val", .values = {{"val/loss", 1.5}}});
  }
  return {.title = "tiny " + kHostile,
          .facts = {{"parameters", "1.9 M"}, {kHostile, kHostile}},
          .plots = plots_of(records),
          .samples = {{"step 100", kHostile}},
          .config = "model { name: \"<x>\" }\n"};
}

TEST(Report, CheckerFindsFaults) {
  for (const char* good : {"<a/>", "<a b='1'>x &lt; y<c></c></a>"}) EXPECT_EQ(find_fault(good), "");
  for (const char* bad :
       {"<a>", "<a></b>", "</a>", "<a b=1></a>", "<a>&</a>", "<a id='1'/><b id='1'/>", "<a><b></a></b>"})
    EXPECT_NE(find_fault(bad), "") << bad;
}

TEST(Report, IsOneWellFormedFileWithoutReferencesToOthers) {
  TempFolder folder;
  auto warnings = write_report(folder / "report.html", make_report());
  EXPECT_TRUE(warnings.empty()) << warnings[0];
  std::string html = read_file(folder / "report.html");
  EXPECT_EQ(find_fault(html), "");
  EXPECT_EQ(list_folder(folder.path()).size(), 1u);
  size_t num_plots = 0;
  for (size_t at = html.find("<svg"); at != std::string::npos; at = html.find("<svg", at + 1)) ++num_plots;
  EXPECT_EQ(num_plots, 4u);
  for (const char* outside : {"src=", "<link", "<script", "@import", "url(http", "href=\"http", "href='http"})
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  for (const char* part : {"Loss", "Learning rate", "Gradient norm", "Speed", "validation", "muon", "1.9 M", "Samples",
                           "Configuration", "&lt;x&gt;"})
    EXPECT_NE(html.find(part), std::string::npos) << part;
  EXPECT_LT(html.size(), 1'000'000u);
}

HeatMap make_map(size_t rows, size_t columns) {
  HeatMap map{.title = "entropy <per head>", .x_label = "step", .y_label = ""};
  for (size_t c = 0; c < columns; ++c) map.x.push_back(static_cast<double>(10 * c));
  for (size_t r = 0; r < rows; ++r) {
    map.rows.push_back(str("layer ", r, " 'quoted'"));
    std::vector<double>& values = map.values.emplace_back();
    for (size_t c = 0; c < columns; ++c) values.push_back(c == 1 ? std::nan("") : static_cast<double>(r * c));
  }
  return map;
}

TEST(Report, SectionsHoldPlotsAndMapsWithTheirNumbers) {
  TempFolder folder;
  ReportData data{
      .title = "t",
      .sections = {{"Diagnostics",
                    "of <layers>",
                    {Plot{.title = "curve", .x_label = "step", .series = {{"a", {{1, 1}, {2, 3}}}}}, make_map(3, 4)}}}};
  EXPECT_TRUE(write_report(folder / "r.html", data).empty());
  std::string html = read_file(folder / "r.html");
  EXPECT_EQ(find_fault(html), "");
  expect_parts(
      html, {"<h2>Diagnostics</h2>", "of &lt;layers&gt;", "<h3>entropy &lt;per head&gt;</h3>", "layer 2", "<details>"});
  for (auto [rows, columns] : std::initializer_list<std::pair<size_t, size_t>>{{1, 1}, {1, 2}, {200, 3}, {2, 1000}}) {
    if (columns == 1) continue;
    EXPECT_EQ(find_fault(plot_svg(make_map(rows, columns), "m")), "") << rows << " x " << columns;
  }
}

TEST(Report, WritesSeveralPicturesIntoOneFile) {
  TempFolder folder;
  const Picture pictures[] = {Plot{.title = "one", .series = {{"a", {{1, 1}, {2, 3}}}}}, make_map(2, 3),
                              Plot{.title = "nothing"}};
  write_picture(folder / "p.svg", pictures);
  std::string svg = read_file(folder / "p.svg");
  expect_parts(svg, {"<svg", "one", "entropy"});
  EXPECT_EQ(svg.find("nothing"), std::string::npos);
  expect_parts(error_of([&] { write_picture(folder / "q.svg", {}); }), {"no plot has a point"});
}

TEST(Report, DrawsIntervalsOfAnyKind) {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  const Intervals picture{.title = "loss <difference>",
                          .x_label = "nats 'more' `date`",
                          .rows = {{"better", -0.25, -0.375, -0.125, {-0.3, nan, -0.2}},
                                   {"one seed's", 0.5, 0.5, 0.5},
                                   {"not there", nan, nan, nan},
                                   {"endless", 1, 0, inf}}};
  const std::string svg = plot_svg(picture, "i");
  EXPECT_EQ(find_fault(svg), "");
  expect_parts(svg, {"better", "one seed", "loss &lt;difference", "`date`"});
  EXPECT_EQ(svg.find("endless"), std::string::npos) << "what is not finite has no line";
  expect_parts(error_of([&] {
                 plot_svg(Intervals{.title = "empty", .rows = {{"n", nan, nan, nan}}}, "i");
               }),
               {"empty", "no series has a point"});

  const TempFolder folder;
  ReportData data{.title = "t", .first = {{.heading = "Arms", .pictures = {picture}}}};
  EXPECT_TRUE(write_report(folder / "r.html", data).empty());
  const std::string html = read_file(folder / "r.html");
  EXPECT_EQ(find_fault(html), "");
  expect_parts(html, {"single values", "-0.375", "-0.3 nan -0.2", "<svg"});
}

TEST(Report, ManyCurvesWithLongNamesAreToldApart) {
  const auto drawn = [](int count) {
    Plot plot{.title = std::string(300, 't')};
    for (int i = 0; i < count; ++i)
      plot.series.push_back({str(std::string(99, 'n'), ".", i), {{0, i}, {1, i + 1}}, {{i, i + 1}, {i, i + 2}}});
    return plot_svg(plot, "p");
  };
  const auto count = [](const std::string& svg, const std::string& part) {
    int times = 0;
    for (size_t at = svg.find(part); at != std::string::npos; at = svg.find(part, at + 1)) ++times;
    return times;
  };
  const std::string eight = drawn(8), twelve = drawn(12);
  EXPECT_EQ(find_fault(twelve), "");
  EXPECT_EQ(twelve.find(std::string(37, 'n')), std::string::npos) << "names leave room for the curves";
  EXPECT_EQ(twelve.find(std::string(113, 't')), std::string::npos);
  for (int i = 0; i < 12; ++i) EXPECT_EQ(count(twelve, str("n.", i, "<")), 1) << "its end is kept";
  for (const char* colour : {"rgb(  0, 114, 178)", "rgb(213,  94,   0)"}) {  // of the second curve, and of the third
    EXPECT_EQ(count(eight, str("stroke='", colour, "' stroke-dasharray")), 0) << colour;
    EXPECT_EQ(count(twelve, str("stroke='", colour, "' stroke-dasharray")), 1) << "it comes again, dashed";
  }
}

TEST(Report, RoundsNumbersForPeople) {
  for (auto [value, text] : std::initializer_list<std::pair<double, const char*>>{{0, "0"},
                                                                                  {1200, "1200"},
                                                                                  {1234567.8, "1234568"},
                                                                                  {2.30258509, "2.303"},
                                                                                  {0.00012345678, "0.0001235"},
                                                                                  {-17.25, "-17.25"},
                                                                                  {1e20, "1e+20"}})
    EXPECT_EQ(rounded(value), text);
}

TEST(Report, HostileTextStaysText) {
  TempFolder folder;
  ReportData data = make_report();
  data.plots.clear();
  write_report(folder / "r.html", data);
  std::string html = read_file(folder / "r.html");
  expect_parts(html, {"&lt;/pre&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;q&quot;", "\xC3\xA4"});
  for (char bad : {'\x01', '\xff', '\r'}) EXPECT_EQ(html.find(bad), std::string::npos);
  EXPECT_EQ(html.find("\xED\xA0\x80"), std::string::npos);
}

TEST(Report, PlotTextsAreNeverRunByThePlotter) {
  TempFolder folder;
  std::string touch = "`touch " + (folder / "ran") + "` '.system('touch " + (folder / "ran") + "').' \"\n!touch " +
                      (folder / "ran") + "\n" + kHostile;
  std::string svg =
      plot_svg(Plot{.title = touch, .x_label = touch, .y_label = touch, .series = {{touch, {{0, 1}, {1, 2}}}}}, "p");
  EXPECT_EQ(find_fault(svg), "");
  EXPECT_FALSE(file_exists(folder / "ran"));
  EXPECT_NE(svg.find("system("), std::string::npos);
}

TEST(Report, PlotsNumbersOfAnySize) {
  double inf = std::numeric_limits<double>::infinity();
  for (const PlotSeries& series : std::vector<PlotSeries>{{"one", {{1, 1}}},
                                                          {"flat", {{1, 2}, {2, 2}}},
                                                          {"gap", {{1, 1}, {2, std::nan("")}, {3, inf}, {4, 2}}},
                                                          {"wide", {{0, 1e-300}, {1e18, 1e300}}}})
    for (bool is_log : {false, true})
      EXPECT_EQ(find_fault(plot_svg(Plot{.title = "t", .is_log_y = is_log, .series = {series}}, "p")), "")
          << series.name;
  expect_parts(error_of([] {
                 plot_svg(Plot{.title = "none", .is_log_y = true, .series = {{"s", {{1, -1}}}}}, "p");
               }),
               {"plot 'none'", "no series has a point"});
}

TEST(Report, WithoutGnuplotItHasTablesAndSaysWhatIsMissing) {
  TempFolder folder;
  PathGuard guard(folder.path());
  auto warnings = write_report(folder / "report.html", make_report());
  ASSERT_EQ(warnings.size(), 1u) << "one line of advice, whatever the number of plots";
  expect_parts(warnings[0], {"gnuplot is not installed", "tables without pictures", "apt-get install", "gnuplot-nox"});
  std::string html = read_file(folder / "report.html");
  EXPECT_EQ(find_fault(html), "");
  expect_parts(html, {"class=\"missing\"", "gnuplot-nox", "<td>training</td><td class=\"n\">4999</td>", "1.9 M"});
  expect_parts(error_of([] {
                 plot_svg(Plot{.title = "t", .series = {{"s", {{1, 1}}}}}, "p");
               }),
               {"gnuplot: cannot be started", "fix: install gnuplot"});
}

TEST(Report, PlotterThatFailsOrIgnoresItsInputIsAWarning) {
  TempFolder folder;
  write_file_atomically(folder / "gnuplot", "#!/bin/sh\necho broken terminal >&2\nexit 3\n");
  ASSERT_EQ(::chmod((folder / "gnuplot").c_str(), 0755), 0);
  PathGuard guard(folder.path());
  auto warnings = write_report(folder / "report.html", make_report());
  ASSERT_EQ(warnings.size(), 4u);
  expect_parts(warnings[0], {"failed with exit code 3", "broken terminal"});
}

double seconds_of(const std::function<void()>& call) {
  auto begin = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void write_plotter(const TempFolder& folder, const std::string& script) {
  write_file_atomically(folder / "gnuplot", "#!/bin/sh\nPATH=/usr/bin:/bin\n" + script + "\n");
  ASSERT_EQ(::chmod((folder / "gnuplot").c_str(), 0755), 0);
}

TEST(Report, PlotterThatHangsCostsOneTimeout) {
  for (const char* script : {"sleep 600", "exec >&- 2>&-; sleep 600", "sleep 600 & cat >/dev/null; wait"}) {
    SCOPED_TRACE(script);
    TempFolder folder;
    write_plotter(folder, script);
    PathGuard guard(folder.path());
    ReportData data = make_report();
    data.plot_timeout_s = 0.5;
    std::vector<std::string> warnings;
    EXPECT_LT(seconds_of([&] { warnings = write_report(folder / "report.html", data); }), 20);
    ASSERT_EQ(warnings.size(), 4u);
    expect_parts(warnings[0], {"'Loss'", "was not done after 0.5 s", "gnuplot -d"});
    expect_parts(warnings[3], {"'Speed'", "was not tried"});
    EXPECT_EQ(find_fault(read_file(folder / "report.html")), "");
  }
}

TEST(Report, StoppingEndsAHangingPlotterAndWritesNothing) {
  TempFolder folder;
  write_plotter(folder, "echo $$ > " + (folder / "pid") + "; sleep 600 & echo $! >> " + (folder / "pid") + "; wait");
  PathGuard guard(folder.path());
  write_file_atomically(folder / "report.html", "old");
  ReportData data = make_report();
  data.plot_timeout_s = 600;
  data.is_stopping = [&] {
    return file_exists(folder / "pid") && read_file(folder / "pid").find('\n') + 2 < read_file(folder / "pid").size();
  };
  std::string error;
  EXPECT_LT(seconds_of([&] { error = error_of([&] { write_report(folder / "report.html", data); }); }), 20);
  expect_parts(error, {"report.html", "stopped before it was written", "same command"});
  EXPECT_EQ(read_file(folder / "report.html"), "old");
  std::istringstream pids(read_file(folder / "pid"));
  for (pid_t pid; pids >> pid;) {
    for (int i = 0; i < 200 && ::kill(pid, 0) == 0 && !is_zombie(pid); ++i) ::usleep(10000);
    EXPECT_TRUE(::kill(pid, 0) != 0 || is_zombie(pid)) << "what the plotter started is still running";
  }
}

TEST(Report, FullDiskKeepsTheOldReport) {
  TempFolder folder;
  write_file_atomically(folder / "report.html", "old");
  ReportData data{.title = "t"};
  test::set_fault(test::Fault::disk_full, 0);
  std::string text = error_of([&] { write_report(folder / "report.html", data); });
  test::set_fault(test::Fault::none, 0);
  expect_parts(text, {"report.html", "No space left on device"});
  EXPECT_EQ(read_file(folder / "report.html"), "old");
}

}  // namespace
}  // namespace weft::io
