// The report of a study: the same numbers as text, JSON and page; verdicts by what is better of a metric; odd and lost runs.
#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "tests/study/study_fixture.h"

namespace weft::study {
namespace {

using Json = nlohmann::ordered_json;

class StudyReports : public test::StudyFixture {
 protected:
  // A number of each kind that a run records, different for every arm, seed and step.
  std::vector<io::MetricsRecord> records(double arm, double seed) {
    std::vector<io::MetricsRecord> all;
    for (int64_t step : {5, 10}) {
      const double x = 0.0371 * arm + 0.1013 * seed + 0.0111 * static_cast<double>(step);
      all.push_back({.step = step, .kind = "train", .values = {{"train/loss", 3.2 - x}}});
      all.push_back({.step = step, .kind = "val", .values = {{"val/loss", 3.4 - x}}});
      io::MetricsRecord& diagnostics = all.emplace_back();
      diagnostics.step = step, diagnostics.kind = "diagnostics";
      for (int head = 0; head < 2; ++head)
        diagnostics.values.emplace_back(str("layers.0.mixer.entropy/", head), x * (1 + head) / 7);
    }
    return all;
  }
  static std::string answer(double arm, double seed) {
    const auto hits = [&](int row) { return static_cast<int>(std::fmod(arm + seed + row, 4)); };
    Json rows = Json::array(), row_hits = Json::array(), row_targets = Json::array();
    double sum = 0;
    for (int row = 0; row < 5; ++row) row_hits.push_back(hits(row)), row_targets.push_back(4), sum += hits(row);
    rows.push_back(
        {{"task", "mqar"},
         {"length", 32},
         {"pairs", 8},
         {"rows", 5},
         {"accuracy", sum / 20},
         {"groups",
          {{{"group", "near"}, {"accuracy", 0.1234 + arm / 77}}, {{"group", "far"}, {"accuracy", 0.0567 + arm / 91}}}},
         {"row_hits", row_hits},
         {"row_targets", row_targets}});
    return Json{{"tasks", rows}}.dump();
  }
  static std::string lengths(double arm, double seed) {
    Json rows = Json::array();
    for (int length : {32, 64})
      rows.push_back({{"length", length},
                      {"loss", 3.3 + arm / 83 + seed / 97 + length / 1171.0},
                      {"by_position",
                       {{{"from", 0}, {"to", 0}, {"loss", 5.1 + arm / 59}},
                        {{"from", 1}, {"to", 31}, {"loss", 3.1 + arm / 61}}}}});
    return Json{{"validation", rows}}.dump();
  }
  // Three arms, three seeds, and everything that a report can show.
  void make_whole() {
    make(str(kSeeds, kArms,
             "compare { metric: \"val/loss\" metric: \"task/mqar/accuracy\" effect: 0.03 } match { parameters: 0.02 "
             "multiple: 1 } eval { task: \"mqar\" length: 32 length: 64 by_position: true rows: 5 } "
             "tune { path: \"optim.group[1].adamw.lr\" value: \"1e-3\" value: \"2e-3\" value: \"4e-3\" seeds: 8 }"));
    set("val/loss",
        [](double arm, double seed) { return 3.1 + 0.071 * arm + 0.33 * seed + 0.0013 * arm * seed * seed; });
    set("val/bpb", [](double arm, double seed) { return 1.7 + 0.0417 * arm + 0.27 * seed; });
    set("first_token_mass", [](double arm, double seed) { return 0.3 - 0.0713 * arm + 0.011 * seed; });
    set("speed/tokens_per_second", [](double arm, double) { return 1000 + 17 * arm; });
    set("memory/peak_gib", [](double arm, double) { return 0.25 + arm / 64; });
    for (size_t i = 0; i < cells.size(); ++i) {
      const auto arm = static_cast<double>(cells[i].combination), seed = static_cast<double>(cells[i].seed);
      record(i, records(arm, seed));
      results[i]->answers = {answer(arm, seed), lengths(arm, seed)};
      add_metrics(scores_of(results[i]->answers, "a run"), results[i]->metrics);
    }
    tuning.emplace();
    tuning->values = grid.tune->values;
    for (size_t a = 0; a < arms.all.size(); ++a) {
      std::vector<Tuning::Try>& tries = tuning->tries.emplace_back();
      for (size_t v = 0; v < 3; ++v) {
        const double mean = 3.7 + 0.013 * static_cast<double>(a) + 0.0217 * std::abs(static_cast<double>(v) - 1);
        tries.push_back({.mean = mean, .lowest = mean, .highest = mean, .count = 1, .lost = 0});
      }
      tuning->best.push_back(1);
      arms.all[a].tuned = grid.tune->values[1];
    }
  }
};

std::vector<std::string> numbers_in(const std::string& text) {
  static const std::regex kNumber("[-+]?[0-9]+(\\.[0-9]+)?(e[-+]?[0-9]+)?");
  std::vector<std::string> numbers;
  for (std::sregex_iterator at(text.begin(), text.end(), kNumber), end; at != end; ++at) numbers.push_back(at->str());
  return numbers;
}

void collect(const Json& json, std::vector<double>& numbers) {
  if (json.is_number()) numbers.push_back(json.get<double>());
  else if (json.is_string())
    for (const std::string& number : numbers_in(json.get<std::string>())) numbers.push_back(std::stod(number));
  else if (json.is_structured())
    for (const auto& [key, value] : json.items()) {
      for (const std::string& number : numbers_in(key)) numbers.push_back(std::stod(number));
      collect(value, numbers);
    }
}

// Whether a number rounds to this text, in its own unit or in that of the tables.
bool has_number(const std::vector<double>& numbers, const std::string& text) {
  const size_t point = text.find('.');
  const double value = std::stod(text),
               half = point == std::string::npos ? 1e-9 : 0.5000001 * std::pow(10.0, -double(text.size() - point - 1));
  for (double unit : {1.0, 1e-6, 100.0, 1 / 1048576.0})
    for (double x : numbers)
      if (std::abs(x * unit - value) <= half) return true;
  return false;
}

std::vector<io::ReportTable> tables_of(const StudyReport& report) {
  std::vector<io::ReportTable> tables = report.tables;
  for (const io::ReportSection& section : report.sections)
    tables.insert(tables.end(), section.tables.begin(), section.tables.end());
  return tables;
}

TEST_F(StudyReports, TextJsonAndPageHaveTheSameNumbers) {
  make_whole();
  const StudyReport report = report_of(data());
  const Json json = Json::parse(report.json);
  std::vector<double> numbers;
  collect(json, numbers);
  std::set<std::string> headings;
  for (const io::ReportSection& section : report.sections) headings.insert(section.heading);
  for (const char* heading :
       {"Curves", "Tuning", "Recall", "Recall by difficulty", "Loss by length of the rows", "Loss by position",
        "Diagnostics", "What the arms differ in", "Hardware and versions", "Speed and memory"})
    EXPECT_TRUE(headings.contains(heading)) << heading;
  write_study_page(data(), report);
  const std::string page = io::read_file(path("study") + "/report.html");
  for (const io::ReportTable& table : tables_of(report))
    for (const std::vector<std::string>& row : table.rows)
      for (size_t c = 0; c < row.size(); ++c) {
        EXPECT_NE(report.text.find(row[c]), std::string::npos) << row[c] << " of " << table.title;
        if (row[c].find_first_of("<>&\"'") == std::string::npos) {
          EXPECT_NE(page.find(">" + row[c] + "<"), std::string::npos) << row[c] << " of " << table.title;
        }
        for (const std::string& number : numbers_in(row[c]))
          EXPECT_TRUE(has_number(numbers, number))
              << number << " of " << table.title << ", " << row[0] << ", " << table.header[c];
      }
  for (const std::string* text : {&report.luck, &report.conclusion})
    EXPECT_NE(report.text.find(*text), std::string::npos) << *text;
  EXPECT_EQ(json["conclusion"], report.conclusion);
  for (const std::string& number : numbers_in(report.luck)) EXPECT_TRUE(has_number(numbers, number)) << number;
  // The page has no table of its own but those of runs without a result.
  const auto count = [&](const std::string& part) {
    size_t times = 0;
    for (size_t at = page.find(part); at != std::string::npos; at = page.find(part, at + 1)) ++times;
    return times;
  };
  EXPECT_EQ(count("<thead>") - count("<details>"), tables_of(report).size()) << "pictures have a folded table each";
  EXPECT_EQ(report_of(data()).json, report.json);
}

TEST_F(StudyReports, CurvesAndDiagnosticsAreMeansOfTheRuns) {
  make_whole();
  const Json json = Json::parse(report_of(data()).json);
  ASSERT_EQ(json["curves"].size(), 3u);
  const Json& head = json["curves"][1]["arms"][1];
  EXPECT_EQ(head["arm"], "gate=head");
  EXPECT_EQ(head["steps"].dump(), "[5,10]");
  EXPECT_EQ(head["runs"].dump(), "[3,3]");
  double sum = 0;
  for (double seed : {1.0, 2.0, 3.0}) sum += *records(1, seed)[3].value("train/loss");
  EXPECT_NEAR(head["mean"][1].get<double>(), sum / 3, 1e-12);
  EXPECT_NEAR(head["lowest"][1].get<double>(), *records(1, 3)[3].value("train/loss"), 1e-12);
  const Json& gap = json["curves"][2]["arms"];
  ASSERT_EQ(gap.size(), 2u) << "without the baseline";
  EXPECT_NEAR(gap[1]["mean"][0].get<double>(), -2 * 0.0371, 1e-12);
  const Json& map = json["diagnostics"][2]["maps"][0];
  ASSERT_EQ(map["values"].size(), 2u);
  double both = 0;
  for (const Json& row : map["values"]) both += row[1].get<double>() / 2;
  EXPECT_NEAR(map["last_mean"].get<double>(), both, 1e-12);
}

TEST(StudyMetrics, WhatIsBetterIsKnownOfFew) {
  for (const char* key : {"val/loss", "train/loss", "val/loss@512", "val/ppl", "val/bpb", "memory/peak_gib"})
    EXPECT_EQ(direction_of(key), Direction::lower) << key;
  for (const char* key : {"task/mqar/accuracy", "task/mqar/accuracy/16", "task/mqar/accuracy@64", "task/*/accuracy",
                          "speed/tokens_per_second", "speed/mfu"})
    EXPECT_EQ(direction_of(key), Direction::higher) << key;
  for (const char* key : {"first_token_mass", "*.sink_rate/*", "*.max_activation", "val/targets", "val/loss_se",
                          "train/grad_norm", "own/accuracy_of_something", "*"})
    EXPECT_EQ(direction_of(key), Direction::neither) << key;
}

TEST_F(StudyReports, TheConclusionKnowsWhatIsBetter) {
  struct Row {
    std::string metric, above, below;  // what it says of an arm above the baseline, and of one below
  };
  for (const Row& row :
       {Row{"val/loss", "is worse than gate=none for gate=head (", "is better than gate=none for gate=channel ("},
        Row{"speed/tokens_per_second", "is better than gate=none for gate=head (",
            "is worse than gate=none for gate=channel ("},
        Row{"memory/peak_gib", "is worse than gate=none for gate=head (",
            "is better than gate=none for gate=channel ("},
        Row{"first_token_mass", "is higher than gate=none for gate=head (",
            "is lower than gate=none for gate=channel ("},
        Row{"layers.*.sink_rate/*", "is higher than gate=none for gate=head (",
            "is lower than gate=none for gate=channel ("}}) {
    make(str(kSeeds, kArms, "set: \"log.diagnostics_every=1\" compare { metric: \"", row.metric, "\" }"));
    const std::string key = row.metric.starts_with("layers") ? "layers.0.mixer.sink_rate/1" : row.metric;
    set(key, [](double arm, double seed) {
      return 5 + seed + (arm == 1 ? 1 : arm == 2 ? -1 : 0) + 0.001 * arm * seed;
    });
    const std::string text = report_of(data()).conclusion;
    for (const std::string& part : {row.above, row.below})
      EXPECT_NE(text.find(row.metric + " " + part), std::string::npos) << part << " in " << text;
    const bool has_verdict = row.above.find("higher") == std::string::npos;
    for (const char* verdict : {"is better than", "is worse than"})
      EXPECT_EQ(text.find(verdict) != std::string::npos, has_verdict) << text;
  }
}

// What arms differ in beside what they are compared for.
TEST_F(StudyReports, SizesThatDifferAreSaid) {
  const auto conclusion = [&](const std::string& arms_text) {
    make(str(kSeeds, arms_text));
    set("val/loss", [](double arm, double seed) { return 3 + arm + seed; });
    return report_of(data()).conclusion;
  };
  const std::string alike = conclusion(
      "axis { name: \"d\" arm { name: \"a\" } arm { name: \"b\" set: \"model.mixer[0].softmax.dropout=0.2\" } }");
  EXPECT_EQ(alike.find("Arms have up to"), std::string::npos) << alike;
  const std::string layers =
      conclusion("axis { name: \"d\" arm { name: \"a\" } arm { name: \"b\" set: \"model.layers=2\" } }");
  const auto a = static_cast<double>(arms.all[0].params), b = static_cast<double>(arms.all[1].params);
  ASSERT_GT(std::abs(b / a - 1), 0.01);
  EXPECT_NE(layers.find(fmt::format("Arms have up to {:.3g} % other parameters than d=a, and may differ by that.",
                                    100 * std::abs(b / a - 1))),
            std::string::npos)
      << layers;
  EXPECT_NE(layers.find(fmt::format("These runs have {:.3g} thousand to {:.3g} thousand parameters",
                                    std::min(a, b) / 1e3, std::max(a, b) / 1e3)),
            std::string::npos)
      << layers;
  const std::string tokens =
      conclusion("axis { name: \"t\" arm { name: \"a\" } arm { name: \"b\" set: \"train.tokens=2560\" } }");
  EXPECT_NE(tokens.find(" % other training tokens than t=a, and may differ by that."), std::string::npos) << tokens;
}

TEST_F(StudyReports, RunsOfSeveralBuildsOrMachinesAreSaid) {
  make(str(kSeeds, kArms));
  set("val/loss", [](double arm, double seed) { return 3 + arm + seed; });
  for (size_t i = 0; i < cells.size(); ++i) environment(i, "abc", "Some CPU");
  const StudyReport one = report_of(data());
  EXPECT_EQ(Json::parse(one.json)["hardware_and_versions"]["origins"].size(), 1u);
  EXPECT_EQ(one.text.find("may be theirs"), std::string::npos) << one.text;
  EXPECT_NE(one.text.find("here: Some CPU, "), std::string::npos) << one.text;
  for (const auto& [commit, processor] : {std::pair("def", "Some CPU"), std::pair("abc", "Another CPU")}) {
    environment(2, commit, processor);  // the first seed's third arm
    const StudyReport two = report_of(data());
    EXPECT_NE(two.conclusion.find("The runs come from 2 builds or machines, and what arms differ by may be theirs."),
              std::string::npos)
        << two.conclusion;
    const Json json = Json::parse(two.json);
    const Json& origins = json["hardware_and_versions"]["origins"];
    ASSERT_EQ(origins.size(), 2u);
    for (const Json& origin : origins) {
      const bool is_other = origin["runs"] == 1;
      EXPECT_EQ(origin["of"].dump(),
                is_other ? R"({"gate=channel":1})" : R"({"gate=none":3,"gate=head":3,"gate=channel":2})");
    }
    write_study_page(data(), two);
    const std::string page = io::read_file(path("study") + "/report.html");
    for (const char* part : {"several: see Hardware and versions", "gate=none 3, gate=head 3, gate=channel 2"})
      EXPECT_NE(page.find(part), std::string::npos) << part;
  }
}

TEST_F(StudyReports, ThreadsMakeNoOtherMachine) {
  make(str(kSeeds, kArms));
  for (size_t i = 0; i < cells.size(); ++i) environment(i, "abc", "Some CPU");
  set("val/loss", [](double arm, double seed) { return 3 + arm + seed; });
  const std::string file = folder_of(2) + "/environment.txtpb";
  std::string text = io::read_file(file);
  io::write_file_atomically(file, text.replace(text.find("threads: 1"), 10, "threads: 4"));
  EXPECT_EQ(Json::parse(report_of(data()).json)["hardware_and_versions"]["origins"].size(), 1u);
}

TEST_F(StudyReports, OneWordHasOneNumber) {
  make(str(kSeeds, kArms, "match { parameters: 0.05 multiple: 3 }"));
  set("val/loss", [](double arm, double seed) { return 3 + arm + seed; });
  const StudyReport report = report_of(data());
  for (const io::ReportTable& table : tables_of(report))
    EXPECT_EQ(std::ranges::count(table.header, "parameters"), 0) << table.title;
  EXPECT_NE(report.tables[0].title.find("without the output head; matched in parameters within 5 %, by widths in "
                                        "multiples of 3"),
            std::string::npos)
      << report.tables[0].title;
  const auto column = std::ranges::find(report.tables[0].header, "off by %") - report.tables[0].header.begin();
  const Json json = Json::parse(report.json);
  EXPECT_EQ(json["match"].dump(), R"({"what":"parameters","by":"width","tolerance":0.05,"multiple":3})");
  const auto of_baseline = json["arms"][0]["parameters_without_embeddings"].get<double>();
  EXPECT_TRUE(json["arms"][0]["off_by"].is_null());
  for (size_t a : {1u, 2u}) {
    const double off = json["arms"][a]["off_by"];
    EXPECT_NEAR(off, json["arms"][a]["parameters_without_embeddings"].get<double>() / of_baseline - 1, 1e-12);
    EXPECT_LE(std::abs(off), 0.05);
    EXPECT_NEAR(std::stod(report.tables[0].rows[a][static_cast<size_t>(column)]), 100 * off, 0.0005001);
  }
}

TEST_F(StudyReports, LuckIsThatOfArmsWithIntervals) {
  make(str(kSeeds, kArms, "axis { name: \"d\" arm { name: \"a\" } arm { name: \"b\" set: \"model.layers=2\" } }"));
  set("val/loss", [](double arm, double seed) { return 3 + seed + 0.01 * arm * seed; });
  StudyReport report = report_of(data());
  EXPECT_NE(report.luck.find("the best of 5 would"), std::string::npos) << report.luck;
  for (size_t i = 0; i < cells.size(); ++i)
    if (cells[i].combination == 5 && cells[i].seed != 2) results[i]->state = CellResult::State::diverged;
  report = report_of(data());
  EXPECT_NE(report.luck.find("the best of the 4 that have intervals would"), std::string::npos) << report.luck;
  EXPECT_EQ(Json::parse(report.json)["selection_floor"]["arms"], 4);
  EXPECT_EQ(report.num_lost, 2);
}

// Each of these alone, and the page still has every picture.
TEST_F(StudyReports, OddRunsMakeAPage) {
  const bool draws = io::has_plotter();
  const auto write_and_check = [&](const std::string& what) {
    SCOPED_TRACE(what);
    const StudyReport report = report_of(data());
    for (const std::string& warning : write_study_page(data(), report)) EXPECT_FALSE(draws) << warning;
    for (const io::ReportTable& table : tables_of(report))
      for (const auto& row : table.rows) EXPECT_EQ(row.size(), table.header.size()) << table.title;
    for (const char* word : {"nan", "inf "})
      for (const io::ReportTable& table : tables_of(report))
        EXPECT_EQ(text_of(table).find(word), std::string::npos) << text_of(table);
    return io::read_file(path("study") + "/report.html");
  };
  make_whole();
  for (size_t i = 0; i < cells.size(); ++i)
    if (cells[i].combination == 1) {  // its losses are none, and it has no diagnostics
      results[i]->state = CellResult::State::diverged, results[i]->problem = "exit code 5: \x1b[31m <b>step</b> 4";
      record(i, {{.step = 5, .kind = "train", .values = {{"train/loss", std::nan("")}}}});
    }
  results[0]->state = CellResult::State::failed;
  std::filesystem::remove_all(folder_of(0));
  results[2].reset();
  std::filesystem::remove_all(folder_of(2));
  const std::string page = write_and_check("lost runs");
  EXPECT_EQ(page.find("Diagnostics of gate=head"), std::string::npos);
  EXPECT_NE(page.find("Diagnostics of gate=channel"), std::string::npos);
  EXPECT_NE(page.find("&lt;b&gt;step&lt;/b&gt;"), std::string::npos);
  EXPECT_EQ(page.find('\x1b'), std::string::npos);

  tuning.reset();
  make(str("base: \"tiny.txtpb\" seeds: 7 ", kArms));
  set("val/loss", [](double, double) { return 3.0; });
  for (size_t i = 0; i < cells.size(); ++i) record(i, records(0, 1));
  write_and_check("one seed, and no difference");

  std::string axes;
  const std::string rest(40, 'x');
  for (const char* axis : {"a", "b"}) {
    axes += str("axis { name: \"", axis, rest, "\" ");
    for (int i = 0; i < (*axis == 'a' ? 4 : 3); ++i)
      axes += str("arm { name: \"v", i, rest, "\" set: \"",
                  *axis == 'a' ? "optim.group[1].adamw.lr" : "optim.group[0].muon.lr", "=", i + 1, "e-3\" } ");
    axes += "} ";
  }
  make(str(kSeeds, axes));
  ASSERT_EQ(arms.all.size(), 12u);
  set("val/loss", [](double arm, double seed) { return 3 + 0.1 * arm + seed; });
  for (size_t i = 0; i < cells.size(); ++i)
    record(i, records(static_cast<double>(cells[i].combination), static_cast<double>(cells[i].seed)));
  const std::string many = write_and_check("twelve arms with long names");
  if (!draws) return;
  size_t longest = 0;
  for (size_t at = many.find("<text>"); at != std::string::npos; at = many.find("<text>", at + 1))
    longest = std::max(longest, many.find("</text>", at) - at - 6);
  EXPECT_GT(longest, 0u);
  EXPECT_LE(longest, 112u) << "a picture is 800 pixels wide";
}

}  // namespace
}  // namespace weft::study
