// Verdicts by rules that stand in the grid, and the page that is made of studies' folders.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/support/errors.h"
#include "tests/trainers/run_fixture.h"
#include "trainers/study/claim.h"
#include "trainers/study/claim_runs.h"
#include "trainers/study/claims_page.h"
#include "weft/core/error.h"
#include "weft/io/metrics.h"

namespace weft::study {
namespace {

using test::error_of;

constexpr double kConfidence = 0.95;
const std::vector<double> kBaseline{2, 2.5, 1.5, 2.2, 1.8};  // the noise that seeds share

Claim rule(Expected expected, double effect, bool is_relative = false) {
  Claim claim;
  claim.expected = expected, claim.effect = effect, claim.is_relative = is_relative;
  return claim;
}
// Of an arm that is so much above the baseline.
Verdict verdict(const Claim& claim, const std::vector<double>& differences) {
  Measured m{.claim = &claim, .arm = {}, .baseline = kBaseline};
  m.baseline.resize(differences.size());
  for (size_t s = 0; s < differences.size(); ++s) m.arm.push_back(m.baseline[s] + differences[s]);
  return judge(std::vector{m}, kConfidence)[0].verdict;
}

TEST(ClaimRules, ADirectionNeedsTheEffectAndTheTest) {
  const Claim lower = rule(Expected::lower, 0.1), higher = rule(Expected::higher, 0.1);
  const std::vector<double> large{-0.2, -0.22, -0.18, -0.21, -0.19}, small{-0.02, -0.03, -0.01, -0.02, -0.02},
      noisy{-0.8, 0.5, -0.4, 0.3, -0.6}, between{-0.09, -0.1, -0.08, -0.12, -0.09};
  EXPECT_EQ(verdict(lower, large), Verdict::reproduced);
  EXPECT_EQ(verdict(lower, small), Verdict::not_reproduced) << "certain, and smaller than the rule asks";
  EXPECT_EQ(verdict(lower, noisy), Verdict::too_small);
  EXPECT_EQ(verdict(lower, between), Verdict::too_small) << "certain, and may be as large as the rule asks";
  EXPECT_EQ(verdict(higher, large), Verdict::not_reproduced) << "the other direction";
  EXPECT_EQ(verdict(higher, {0.2, 0.22, 0.18, 0.21, 0.19}), Verdict::reproduced);
}

TEST(ClaimRules, AnAllowanceIsTestedAtItsEdge) {
  const std::vector<double> near{0.01, -0.01, 0.02, 0, 0.01}, above{0.3, 0.32, 0.28, 0.31, 0.29},
      below{-0.3, -0.32, -0.28, -0.31, -0.29}, noisy{-0.8, 0.5, -0.4, 0.3, 0.6};
  struct Row {
    Expected expected;
    Verdict near, above, below;
  };
  constexpr auto yes = Verdict::reproduced, no = Verdict::not_reproduced;
  for (const Row& row : {Row{Expected::equal, yes, no, no}, Row{Expected::at_most, yes, no, yes},
                         Row{Expected::at_least, yes, yes, no}}) {
    const Claim claim = rule(row.expected, 0.1);
    SCOPED_TRACE(rule_text(claim));
    EXPECT_EQ(verdict(claim, near), row.near);
    EXPECT_EQ(verdict(claim, above), row.above);
    EXPECT_EQ(verdict(claim, below), row.below);
    EXPECT_EQ(verdict(claim, noisy), Verdict::too_small);
  }
}

TEST(ClaimRules, SharesAreOfTheBaseline) {
  const Claim lower = rule(Expected::lower, 0.3, true);
  EXPECT_EQ(verdict(lower, {-1, -1.25, -0.75, -1.1, -0.9}), Verdict::reproduced);  // each is half of it
  EXPECT_EQ(verdict(lower, {-0.2, -0.25, -0.15, -0.22, -0.18}), Verdict::not_reproduced);
  const Measured zero{.claim = &lower, .arm = {1, 1, 1}, .baseline = {2, 0, 2}};
  EXPECT_EQ(judge(std::vector{zero}, kConfidence)[0].difference.unpaired, 1) << "there is no share of nothing";
}

TEST(ClaimRules, LostRunsAndFewSeedsDecideNothing) {
  const Claim lower = rule(Expected::lower, 0.1);
  EXPECT_EQ(verdict(lower, {-0.2, -0.21, -0.19, -0.2, std::nan("")}), Verdict::too_small);
  EXPECT_EQ(verdict(lower, {-0.2, -0.21}), Verdict::too_small);
  EXPECT_EQ(verdict(lower, {}), Verdict::too_small);
}

TEST(ClaimRules, HolmCountsAllContrastsOfTheStudy) {
  const Claim lower = rule(Expected::lower, 0.01);
  const std::vector<double> differences{-0.06, -0.01, -0.05, -0.02, -0.03};  // p is 0.02
  Measured m{.claim = &lower, .arm = {}, .baseline = kBaseline};
  for (size_t s = 0; s < differences.size(); ++s) m.arm.push_back(m.baseline[s] + differences[s]);
  const Judged alone = judge(std::vector{m}, kConfidence)[0];
  EXPECT_EQ(alone.verdict, Verdict::reproduced);
  ASSERT_TRUE(alone.holm_p);
  const std::vector<Judged> three = judge(std::vector{m, m, m}, kConfidence);
  for (const Judged& one : three) {
    EXPECT_EQ(one.verdict, Verdict::too_small);
    EXPECT_NEAR(*one.holm_p, 3 * *alone.holm_p, 1e-12);
  }
}

TEST(ClaimRules, AClaimIsAboutAllItsContrasts) {
  constexpr auto yes = Verdict::reproduced, no = Verdict::not_reproduced, open = Verdict::too_small;
  EXPECT_EQ(verdict_of(std::vector{yes, yes}), yes);
  EXPECT_EQ(verdict_of(std::vector{yes, open}), open);
  EXPECT_EQ(verdict_of(std::vector{yes, open, no}), no);
}

class Claims : public test::RunFixture {
 protected:
  static constexpr const char* kGrid = R"(
base: "tiny.txtpb" seeds: 1 seeds: 2 seeds: 3
axis { name: "gate" arm { name: "none" } arm { name: "head" set: "model.mixer[0].softmax.gate+={per_head:true}" } }
claim {
  title: "Gates help" text: "A gate lowers the loss." part: gates
  paper { id: "2505.06708" number: "6.026 and 5.761" size: "15B" tokens: "400B" }
  metric: "val/loss" contrast { arm: "gate=head" baseline: "gate=none" } expect: lower effect: 0.1
}
minutes: 12
)";
  static constexpr const char* kReport =
      R"({"study": "GRID", "seeds": [1, 2, 3], "complete": 6, "lost": [], "not_run": 0,
"arms": [{"arm": "gate=none", "parameters": 1000, "tokens": 5120}, {"arm": "gate=head", "parameters": 1010, "tokens": 5120}],
"metrics": [{"metric": "val/loss", "arms": [
 {"arm": "gate=none", "runs": [{"seed": 1, "value": 2.0}, {"seed": 2, "value": 2.5}, {"seed": 3, "value": 1.5}]},
 {"arm": "gate=head", "runs": [{"seed": 1, "value": 1.8}, {"seed": 2, "value": 2.31}, {"seed": 3, "value": 1.29}]}]}]})";

  // A grid of that name, and the folder of its study if there is a report.
  void study(const std::string& name, const std::string& report = "", const std::string& grid = kGrid) {
    write(name + ".txtpb", grid);
    if (report.empty()) return;
    io::make_folders(path("runs/" + name));
    write("runs/" + name + "/grid.txtpb",
          grid + "# weft ablate was called with:\n# --set data.train.path=/home/somebody/text.txt\n");
    std::string text = report;
    if (const size_t at = text.find("GRID"); at != std::string::npos) text.replace(at, 4, name);
    write("runs/" + name + "/report.json", text);
  }
  std::string replaced(std::string text, const std::string& from, const std::string& to) {
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  }
  ClaimsPage page(const std::vector<std::string>& names, const std::string& kept = "") {
    std::vector<Grid> grids;
    for (const std::string& name : names) grids.push_back(read_grid(path(name + ".txtpb")));
    return claims_page(grids, {path("runs"), kept}, "weft claims");
  }
  void expect_on(const std::string& text, const std::vector<std::string>& parts) {
    for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << " on\n" << text;
  }
};

TEST_F(Claims, ThePageHasOursBesideThePapers) {
  study("done", kReport);
  io::make_folders(path("runs/done/cells/a"));
  write("runs/done/cells/a/environment.txtpb", "host: \"secret\" processor: \"Some CPU\" threads: 2");
  const ClaimsPage first = page({"done"});
  expect_on(first.text, {"| Gates help | gates | 2505.06708 | reproduced |", "6.026 and 5.761 | 15B | 400B | not said",
                         "1.8000 +- 0.5100 | 2.0000 +- 0.5000 | -0.2000 | [-0.2248, -0.1752]",
                         "Rule: `val/loss` lower by at least 0.1. **Reproduced.**", "1000 to 1010 parameters",
                         "5120 training tokens", "on Some CPU, ", "--set data.train.path=text.txt",
                         "1 reproduced, 0 not reproduced"});
  EXPECT_EQ(first.text.find("somebody"), std::string::npos) << "folders of one machine are left out";
  EXPECT_EQ(first.text.find("secret"), std::string::npos);
  const ClaimsPage second = page({"done"});
  EXPECT_EQ(first.text, second.text);
  EXPECT_EQ(first.json, second.json);
  expect_on(first.json, {"\"verdict\": \"reproduced\"", "\"holm_p\""});
}

TEST_F(Claims, WhatIsKeptOfAStudyMakesTheSamePage) {
  study("done", kReport);
  study("lost", replaced(replaced(kReport, "\"value\": 1.29", "\"value\": null"), "\"lost\": []",
                         R"("lost": [{"run": "gate=head,seed=3-0", "why": "diverged: step 4"}])"));
  study("open");
  for (const char* name : {"done", "lost"}) {
    io::make_folders(path(str("runs/", name, "/cells/a")));
    write(str("runs/", name, "/cells/a/environment.txtpb"), "host: \"secret\" processor: \"Some CPU\" threads: 2");
    // As 59.5 it would be a minute.
    write(str("runs/", name, "/cells/a/metrics.jsonl"), io::to_json({.step = 40, .time_s = 59.46}) + "\n");
  }
  const std::string kept = path("kept");
  const ClaimsPage before = page({"done", "lost", "open"}), first = page({"done", "lost", "open"}, kept);
  EXPECT_EQ(first.text, before.text);
  expect_on(first.text, {"Training took 0:00:59 on Some CPU"});
  EXPECT_EQ(io::list_folder(kept), (std::vector<std::string>{"done.json", "lost.json"}));
  const std::string record = io::read_file(kept + "/done.json");
  for (const char* private_name : {"somebody", "secret"}) EXPECT_EQ(record.find(private_name), std::string::npos);
  io::remove_folder(path("runs"));
  const ClaimsPage second = page({"done", "lost", "open"}, kept);
  EXPECT_EQ(second.text, first.text);
  EXPECT_EQ(second.json, first.json);
  expect_on(second.text, {"| Gates help | gates | 2505.06708 | reproduced |", "on Some CPU, ",
                          "Lost: gate=head,seed=3-0: diverged: step 4", "1 not run"});
  // A study that is run again takes its place only when it is complete.
  study("done", replaced(replaced(kReport, "\"complete\": 6", "\"complete\": 5"), "\"not_run\": 0", "\"not_run\": 1"));
  EXPECT_EQ(page({"done", "lost", "open"}, kept).text, first.text);
  EXPECT_EQ(io::read_file(kept + "/done.json"), record);
}

TEST_F(Claims, AWorseStudyDoesNotReplaceWhatIsKept) {
  const std::string lost = replaced(replaced(kReport, "\"value\": 1.29", "\"value\": null"), "\"lost\": []",
                                    R"("lost": [{"run": "gate=head,seed=3-0", "why": "diverged: step 4"}])");
  const std::string kept = path("kept"), file = kept + "/done.json", folder = path("runs/done");
  study("done", lost);
  page({"done"}, kept);
  const std::string first = io::read_file(file);
  EXPECT_EQ(page({"done"}, kept).text, page({"done"}).text) << "the same study again";
  EXPECT_EQ(io::read_file(file), first);
  study("done", kReport);
  page({"done"}, kept);
  const std::string better = io::read_file(file);
  EXPECT_NE(better, first) << "it has lost fewer runs";
  study("done", lost);
  EXPECT_EQ(
      error_of([&] { page({"done"}, kept); },
               {folder + ": has lost 1 run; " + file + " has the numbers of a study that lost 0", "Remove " + file}),
      "");
  study("done", kReport);
  std::ofstream(path("runs/done/grid.txtpb"), std::ios::app) << "# --set train.tokens=1280\n";
  EXPECT_EQ(error_of([&] { page({"done"}, kept); },
                     {folder + ": has other overrides than " + file, "data.train.path=text.txt, train.tokens=1280",
                      "there: data.train.path=text.txt.", "Remove " + file}),
            "");
  EXPECT_EQ(io::read_file(file), better);
  write("kept/done.json", "{");
  EXPECT_EQ(error_of([&] { page({"done"}, kept); }, {file + ": is not a record of", "remove it"}), "");
  io::remove_folder(file);
  EXPECT_NE(page({"done"}, kept).text.find("train.tokens=1280"), std::string::npos);
  EXPECT_NE(io::read_file(file).find("train.tokens=1280"), std::string::npos);
}

// Comments, titles, overrides and names of machines may be any bytes. A kept study is still that of its grid, and makes the same page.
TEST_F(Claims, BytesThatAreNoUtf8AreKept) {
  const std::string grid =
      str("# gr\xfc\xdf dich\n", replaced(replaced(kGrid, "Gates help", "Gates h\xe9lp"), "seeds: 1",
                                          "set: \"log.sample_prompt=l\xe9\" seeds: 1"));
  study("done", kReport, grid);
  std::ofstream(path("runs/done/grid.txtpb"), std::ios::app) << "# --set log.sample_prompt=\xe9l\n";
  const std::string kept = path("kept");
  ::testing::internal::CaptureStderr();
  const ClaimsPage first = page({"done"}, kept);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "") << "the library prints nothing, nor does what it uses";
  EXPECT_FALSE(nlohmann::json::parse(first.json).empty());
  expect_on(first.text, {"| reproduced |", "--set log.sample_prompt=\xEF\xBF\xBDl"});
  io::remove_folder(path("runs"));
  const ClaimsPage second = page({"done"}, kept);
  EXPECT_EQ(second.text, first.text);
  EXPECT_EQ(second.json, first.json);
  write("done.txtpb", replaced(grid, "=l\xe9", "=la"));
  EXPECT_EQ(error_of([&] { page({"done"}, kept); }, {"kept/done.json", "other rules for its claims"}), "");
}

TEST_F(Claims, RecordsThatAreDamagedOrOfOtherRulesAreRefused) {
  study("done", kReport);
  const std::string kept = path("kept");
  page({"done"}, kept);
  const std::string record = io::read_file(kept + "/done.json");
  io::remove_folder(path("runs"));
  for (const auto& [from, to] : {std::pair("\"study\": \"done\"", "\"study\": \"other\""),
                                 {"\"value\":2.0", "\"value\":\"2\""},
                                 {"\"seed\":2", "\"seed\":7"},
                                 {"\"set\": [", "\"set\": [4, "},
                                 {"\"builds\": 0", "\"builds\": []"},
                                 {"\"grid\": \"", "\"grid\": 4, \"other\": \""},
                                 {"{\"study\"", "[{\"study\""}}) {
    write("kept/done.json", replaced(record, from, to));
    EXPECT_EQ(error_of([&] { page({"done"}, kept); }, {"kept/done.json: is not a record of", "--keep"}), "") << to;
  }
  write("kept/done.json", replaced(record, "effect: 0.1", "effect: 0.01"));
  EXPECT_EQ(error_of([&] { page({"done"}, kept); }, {"kept/done.json", "other rules for its claims"}), "");
}

TEST_F(Claims, RunsOfSeveralBuildsOrMachinesAreSaid) {
  study("done", replaced(replaced(kReport, "\"parameters\"", "\"parameters_without_embeddings\""), "\"parameters\"",
                         "\"parameters_without_embeddings\""));
  const auto cell = [&](const std::string& name, const std::string& text) {
    io::make_folders(path("runs/done/cells/" + name));
    write("runs/done/cells/" + name + "/environment.txtpb", text);
  };
  cell("a", "host: \"one\" processor: \"Some CPU\" threads: 1 commit: \"abc\"");
  cell("b", "host: \"two\" processor: \"Some CPU\" threads: 1 commit: \"abc\"");
  const std::string same = page({"done"}).text;
  expect_on(same, {"1000 to 1010 parameters", "on Some CPU, "});
  EXPECT_EQ(same.find("may be theirs"), std::string::npos) << "hosts of one kind are one machine";
  cell("b", "host: \"two\" processor: \"Another CPU\" threads: 1 commit: \"def\"");
  expect_on(page({"done"}).text,
            {"on Another CPU, ", " and on Some CPU, ",
             "The runs come from 2 machines and 2 builds of Weft: what arms differ by may be theirs."});
}

TEST_F(Claims, AStudyThatWasNotRunHasNoNumber) {
  study("open");
  study("begun", replaced(replaced(kReport, "\"complete\": 6", "\"complete\": 5"), "\"not_run\": 0", "\"not_run\": 1"));
  const std::string text = page({"begun", "open"}).text;
  expect_on(text, {"0 reproduced, 0 not reproduced, 0 too small to tell, 2 not run", "Not finished: 5 of 6 runs",
                   "Not run. Stated time: 12 minutes", "| gate=head | gate=none | not run | not run |"});
  for (const char* number : {"1.80", "-0.20", "2.00"}) EXPECT_EQ(text.find(number), std::string::npos) << number;
}

TEST_F(Claims, ALostRunIsShownAndDecidesNothing) {
  study("lost", replaced(replaced(kReport, "\"value\": 1.29", "\"value\": null"), "\"lost\": []",
                         R"("lost": [{"run": "gate=head,seed=3-0", "why": "diverged: step 4"}])"));
  expect_on(page({"lost"}).text,
            {"too small to tell (1 of 3 seeds without a pair)", "Lost: gate=head,seed=3-0: diverged: step 4"});
}

TEST_F(Claims, RulesThatWereChangedAfterTheRunsAreRefused) {
  study("done", kReport);
  write("done.txtpb", replaced(kGrid, "A gate lowers the loss.", "Said in other words."));
  EXPECT_NE(page({"done"}).text.find("Said in other words."), std::string::npos);
  for (const auto& [from, to] : {std::pair("effect: 0.1", "effect: 0.01"),
                                 {"expect: lower", "expect: higher"},
                                 {"seeds: 3", "seeds: 4"},
                                 {"per_head:true", "per_head:false"}}) {
    write("done.txtpb", replaced(kGrid, from, to));
    EXPECT_EQ(
        error_of([&] { page({"done"}); }, {"runs/done/grid.txtpb", "other rules for its claims", "another --out"}), "")
        << to;
  }
}

TEST_F(Claims, FoldersThatAreDamagedAreRefused) {
  for (const auto& [from, to] : {std::pair("\"study\": \"GRID\"", "\"study\": \"other\""),
                                 {"\"value\": 2.0", "\"value\": \"2\""},
                                 {"{\"seed\": 1, \"value\": 2.0}, ", ""},
                                 {"\"seed\": 2", "\"seed\": 7"},
                                 {"\"complete\": 6, ", ""},
                                 {"\"lost\": []", "\"lost\": [4]"},
                                 {"val/loss", "val/bpb"},
                                 {"{\"study\"", "[{\"study\""},
                                 {"\"arms\": [{\"arm\": \"gate=none\"", "\"arms\": [{\"arm\": 3"}}) {
    study("bad", replaced(kReport, from, to));
    EXPECT_EQ(error_of([&] { page({"bad"}); }, {"runs/bad/report.json: is not the report of", "run weft ablate again"}),
              "")
        << to;
  }
  std::string deep(100000, '[');
  study("bad", deep);
  EXPECT_EQ(error_of([&] { page({"bad"}); }, {"is not the report of"}), "");
}

TEST_F(Claims, GridsWithWrongClaimsAreRefused) {
  for (const auto& [from, to, says] : std::vector<std::tuple<std::string, std::string, std::string>>{
           {"effect: 0.1", "", "effect is 0"},
           {"effect: 0.1", "effect: nan", "effect is nan"},
           {"expect: lower", "", "has no expect"},
           {"part: gates", "", "has no part"},
           {"title: \"Gates help\"", "", "title is not set"},
           {"A gate lowers", "A gate|lowers", "text has a line end or a |"},
           {"arm: \"gate=head\"", "arm: \"gate=heads\"", "Did you mean 'head'"},
           {"arm: \"gate=head\"", "arm: \"gat=head\"", "Did you mean 'gate'"},
           {"baseline: \"gate=none\"", "baseline: \"gate=head\"", "with itself"},
           {"contrast { arm: \"gate=head\" baseline: \"gate=none\" }", "", "1 papers and 0 contrasts"},
           {"minutes: 12", "minutes: -1", "minutes is -1"}}) {
    study("wrong", "", replaced(kGrid, from, to));
    EXPECT_EQ(error_of([&] { read_grid(path("wrong.txtpb")); }, {"wrong.txtpb", says}), "") << to;
  }
  study("a", "", str(kGrid, "name: \"same\""));
  study("b", "", str(kGrid, "name: \"same\""));
  EXPECT_EQ(error_of([&] { page({"a", "b"}); }, {"are both the study same"}), "");
}

TEST(ClaimRecipes, CoverThePartsAndFitANightOfTwoCores) {
  std::set<std::string> parts;
  double minutes = 0;
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(WEFT_RECIPES "/studies")) {
    const Grid grid = read_grid(entry.path().string());
    if (grid.claims.empty()) continue;
    EXPECT_GE(grid.seeds.size(), 3u) << grid.file;
    EXPECT_TRUE(grid.minutes) << grid.file;
    minutes += grid.minutes.value_or(0), count += grid.claims.size();
    for (const Claim& claim : grid.claims) parts.insert(claim.part);
  }
  EXPECT_GE(count, 20u);
  EXPECT_LE(minutes, 2 * 12 * 60);
  EXPECT_EQ(parts.size(), claim_parts().size());
}

}  // namespace
}  // namespace weft::study
