#include "trainers/study/claims_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "trainers/config/config.h"
#include "trainers/config/config.pb.h"
#include "trainers/config/config_error.h"
#include "trainers/console/json_text.h"
#include "trainers/console/progress.h"
#include "trainers/study/claim_runs.h"
#include "weft/io/files.h"

namespace weft::study {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kHead = R"(# Claims

What papers say about their variants, tried in small models. Each claim stands in a grid of [studies](studies.md), with the rule that decides it: what is
compared, in which direction, and how large a difference would be worth the claim. The rule is written before the runs; the page refuses runs whose grid had
another one. A claim is about every line of its table. The commands that make the runs stand at the end of the page.

| verdict | when |
|---|---|
| reproduced | p, adjusted by Holm over all lines of the study, is below 0.05 where the table's interval is one of 95 %, and the mean difference is as large as the rule says |
| not reproduced | no value in the interval of the mean difference agrees with the rule |
| too small to tell | neither: these seeds cannot tell. Also where a seed is without a pair, because a run was lost or has no such number |
| not run | the runs have not been made, or not all of them |

Differences are arm minus baseline, paired by seed. p is that of a paired t-test; where the rule allows a difference, it is the test against the largest
one that is allowed. A verdict is about these sizes, texts and tokens. The papers' models are hundreds of times larger: what is not reproduced here may
well hold there. The row `here` has parameters without embeddings and the training tokens of a run.

)";

struct Study {
  const Grid& grid;
  ClaimRuns runs;
  std::vector<Measured> measured = {};  // of all claims in turn
  std::vector<Judged> judged = {};
};

struct Entry {
  const Study* study;
  const Claim* claim;
  size_t first;  // of its contrasts
  std::string verdict;
};

std::string number_text(double x) { return std::abs(x) >= 100 ? fmt::format("{:.0f}", x) : fmt::format("{:.4f}", x); }

std::string difference_text(const Claim& claim, double x) {
  if (claim.is_relative) return fmt::format("{:+.1f} %", 100 * x);
  return std::abs(x) >= 100 ? fmt::format("{:+.0f}", x) : fmt::format("{:+.4f}", x);
}

std::string mean_text(const std::vector<double>& values) {
  const Mean mean = mean_of(values);
  if (mean.count == 0) return "-";
  return number_text(mean.mean) + (mean.count > 1 ? " +- " + number_text(mean.deviation) : "");
}

// A record is replaced by a study that says as much: not by a trial with other overrides, and not by one that has lost more runs.
void require_no_worse(const ClaimRuns& runs, const ClaimRuns& kept, const std::string& folder,
                      const std::string& file) {
  const auto set_text = [](const ClaimRuns& of) { return of.set.empty() ? "none" : config::join(of.set, ", "); };
  std::string why;
  if (runs.set != kept.set)
    why = str("has other overrides than ", file, ": ", set_text(runs), "; there: ", set_text(kept), ".");
  else if (runs.lost.size() > kept.lost.size())
    why = str("has lost ", runs.lost.size(), runs.lost.size() == 1 ? " run; " : " runs; ", file,
              " has the numbers of a study that lost ", kept.lost.size(), ".");
  else return;
  throw config::ConfigError(str(folder, ": ", why), str("Remove ", file, " to keep this study in its place, or name ",
                                                        "another folder with --runs or --keep."));
}

// The study's folder, or what was kept of a complete one.
ClaimRuns runs_of(const Grid& grid, const ClaimFolders& folders) {
  const std::string folder = folders.runs + "/" + grid.name;
  ClaimRuns runs = read_claim_runs(grid, folder);
  if (folders.kept.empty()) return runs;
  const std::string file = folders.kept + "/" + grid.name + ".json";
  if (runs.state == ClaimRuns::State::complete) {
    if (io::file_exists(file)) require_no_worse(runs, read_claim_record(grid, file), folder, file);
    io::make_folders(folders.kept);
    io::write_file_atomically(file, claim_record(grid, runs));
  } else if (io::file_exists(file)) return read_claim_record(grid, file);
  return runs;
}

Study study_of(const Grid& grid, const ClaimFolders& folders) {
  Study study{.grid = grid, .runs = runs_of(grid, folders)};
  if (study.runs.state != ClaimRuns::State::complete) return study;
  for (const Claim& claim : grid.claims)
    for (const Contrast& contrast : claim.contrasts)
      study.measured.push_back({.claim = &claim,
                                .arm = study.runs.arms.at(contrast.arm).values.at(claim.metric),
                                .baseline = study.runs.arms.at(contrast.baseline).values.at(claim.metric)});
  study.judged = judge(study.measured, grid.confidence);
  return study;
}

std::vector<Entry> entries_of(const Study& study) {
  std::vector<Entry> entries;
  size_t next = 0;
  for (const Claim& claim : study.grid.claims) {
    Entry entry{.study = &study, .claim = &claim, .first = next, .verdict = "not run"};
    next += claim.contrasts.size();
    if (!study.judged.empty()) {
      std::vector<Verdict> verdicts;
      for (size_t i = entry.first; i < next; ++i) verdicts.push_back(study.judged[i].verdict);
      entry.verdict = to_string(verdict_of(verdicts));
    }
    entries.push_back(entry);
  }
  return entries;
}

std::string range_text(const ClaimRuns& runs, int64_t ClaimRuns::Arm::*field) {
  int64_t lowest = 0, highest = 0;
  for (const auto& [name, arm] : runs.arms) {
    lowest = lowest == 0 ? arm.*field : std::min(lowest, arm.*field);
    highest = std::max(highest, arm.*field);
  }
  return lowest == highest ? str(lowest) : str(lowest, " to ", highest);
}

// The field that a choice in a config has taken: "characters" of a tokenizer.
std::string chosen(const google::protobuf::Message& message) {
  const google::protobuf::OneofDescriptor* choice = message.GetDescriptor()->oneof_decl(0);
  const google::protobuf::FieldDescriptor* field = message.GetReflection()->GetOneofFieldDescriptor(message, choice);
  return field ? field->name() : "none";
}

// What the runs are trained on: "characters of tinyshakespeare.txt", "ids of mqar".
std::string data_text(const Study& study) {
  const config::Loaded base = config::read(study.grid.base, study.grid.set);
  const config::Data& data = base.experiment.data();
  if (data.has_task()) return "ids of " + chosen(data.task());
  constexpr std::string_view kText = "data.train.path=";
  std::string text = data.train_size() > 0 ? data.train(0).path() : "";
  for (const std::string& set : study.runs.set)
    if (set.starts_with(kText)) text = set.substr(kText.size());
  return str(chosen(data.tokenizer()), " of ", std::filesystem::path(text).filename().string());
}

// What each paper says of its models, and below them what the models here are.
std::string papers_text(const Study& study, const Claim& claim) {
  std::string text = "| paper | its numbers | size | tokens | tokenizer |\n|---|---|---|---|---|\n";
  for (const Paper& paper : claim.papers) {
    text += "|";
    for (const std::string* cell : {&paper.id, &paper.number, &paper.size, &paper.tokens, &paper.tokenizer})
      text += str(" ", cell->empty() ? "not said" : *cell, " |");
    text += "\n";
  }
  const bool is_run = study.runs.state == ClaimRuns::State::complete;
  const auto range = [&](int64_t ClaimRuns::Arm::*field) { return is_run ? range_text(study.runs, field) : "not run"; };
  return text + fmt::format("| here | below | {} | {} | {} |\n", range(&ClaimRuns::Arm::params),
                            range(&ClaimRuns::Arm::tokens), data_text(study));
}

std::string contrasts_text(const Entry& entry) {
  const Study& study = *entry.study;
  const Claim& claim = *entry.claim;
  std::string text = fmt::format(
      "| arm | baseline | `{}` | of the baseline | difference | interval, {:g} % | Holm p | verdict |\n"
      "|---|---|---|---|---|---|---|---|\n",
      claim.metric, 100 * study.grid.confidence);
  for (size_t c = 0; c < claim.contrasts.size(); ++c) {
    const auto& [arm, baseline] = claim.contrasts[c];
    if (study.judged.empty()) {
      text += fmt::format("| {} | {} | not run | not run | not run | not run | not run | not run |\n", arm, baseline);
      continue;
    }
    const Judged& judged = study.judged[entry.first + c];
    const Difference& d = judged.difference;
    const auto& interval = d.t_interval;
    text += fmt::format(
        "| {} | {} | {} | {} | {} | {} | {} | {}{} |\n", arm, baseline, mean_text(study.measured[entry.first + c].arm),
        mean_text(study.measured[entry.first + c].baseline), d.count > 0 ? difference_text(claim, d.mean) : "-",
        interval ? str("[", difference_text(claim, interval->low), ", ", difference_text(claim, interval->high), "]")
                 : "-",
        judged.holm_p ? fmt::format("{:.4f}", *judged.holm_p) : "-", to_string(judged.verdict),
        d.unpaired > 0 ? fmt::format(" ({} of {} seeds without a pair)", d.unpaired, d.unpaired + d.count) : "");
  }
  return text;
}

std::string claim_text(const Entry& entry) {
  const Claim& claim = *entry.claim;
  std::string verdict = entry.verdict;
  verdict[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(verdict[0])));
  return fmt::format("### {}\n\n{}\n\n{}\nRule: `{}` {}. **{}.** Study `{}`.\n\n{}", claim.title, claim.text,
                     papers_text(*entry.study, claim), claim.metric, rule_text(claim), verdict, entry.study->grid.name,
                     contrasts_text(entry));
}

std::string study_text(const Study& study) {
  const auto& [grid, runs, measured, judged] = study;
  std::string command = "weft ablate " + grid.file;
  for (const std::string& override : runs.set) command += " --set " + override;
  std::string text = fmt::format("### {}\n\n    {}\n\n", grid.name, command);
  if (runs.state == ClaimRuns::State::not_run) text += "Not run.";
  else if (runs.state == ClaimRuns::State::unfinished)
    text += fmt::format("Not finished: {} of {} runs are complete.", runs.num_complete, runs.num_runs);
  else
    text += fmt::format(
        "{} runs, {} seeds of {} arms, {} parameters without embeddings, {} training tokens each. Training took {}{}.",
        runs.num_runs, grid.seeds.size(), runs.arms.size(), range_text(runs, &ClaimRuns::Arm::params),
        range_text(runs, &ClaimRuns::Arm::tokens), cli::duration_text(runs.training_s),
        runs.machines.empty() ? "" : " on " + config::join(runs.machines, " and on "));
  if (runs.machines.size() > 1 || runs.num_builds > 1)
    text += fmt::format(" The runs come from {} machine{} and {} build{} of Weft: what arms differ by may be theirs.",
                        runs.machines.size(), runs.machines.size() == 1 ? "" : "s", runs.num_builds,
                        runs.num_builds == 1 ? "" : "s");
  if (grid.minutes) text += fmt::format(" Stated time: {:g} minutes on one core.", *grid.minutes);
  for (const std::string& lost : runs.lost) text += "\n\nLost: " + lost;
  return text + "\n\n";
}

Json json_of(const Entry& entry) {
  Json contrasts = Json::array();
  const Claim& claim = *entry.claim;
  for (size_t c = 0; c < claim.contrasts.size(); ++c) {
    Json one{{"arm", claim.contrasts[c].arm}, {"baseline", claim.contrasts[c].baseline}};
    if (!entry.study->judged.empty()) {
      const Judged& judged = entry.study->judged[entry.first + c];
      const Difference& d = judged.difference;
      one["pairs"] = d.count, one["unpaired"] = d.unpaired;
      one["difference"] = d.count > 0 ? Json(d.mean) : Json(nullptr);
      if (d.t_interval) one["interval"] = Json::array({d.t_interval->low, d.t_interval->high});
      if (judged.holm_p) one["holm_p"] = *judged.holm_p;
      one["verdict"] = to_string(judged.verdict);
    }
    contrasts.push_back(std::move(one));
  }
  return {{"claim", claim.title},
          {"part", claim.part},
          {"study", entry.study->grid.name},
          {"metric", claim.metric},
          {"rule", rule_text(claim)},
          {"verdict", entry.verdict},
          {"contrasts", std::move(contrasts)}};
}

}  // namespace

ClaimsPage claims_page(const std::vector<Grid>& grids, const ClaimFolders& folders, const std::string& command) {
  std::vector<Study> studies;
  for (const Grid& grid : grids) {
    for (const Study& other : studies)
      if (other.grid.name == grid.name)
        throw config::ConfigError(str(other.grid.file, " and ", grid.file, " are both the study ", grid.name, "."),
                                  "Give one of them another name.");
    studies.push_back(study_of(grid, folders));
  }
  std::vector<Entry> entries;
  for (const std::string& part : claim_parts())
    for (const Study& study : studies)
      for (const Entry& entry : entries_of(study))
        if (entry.claim->part == part) entries.push_back(entry);
  double minutes = 0;
  for (const Grid& grid : grids) minutes += grid.minutes.value_or(0);
  ClaimsPage page{.text = kHead, .json = {}};
  page.text += fmt::format(
      "`{}` makes this page of the studies' folders. {} claims in {} studies, stated time {:.1f} hours on one core:",
      command, entries.size(), grids.size(), minutes / 60);
  for (const char* verdict : {"reproduced", "not reproduced", "too small to tell", "not run"})
    page.text += fmt::format("{} {} {}", verdict == std::string_view("reproduced") ? "" : ",",
                             std::ranges::count(entries, verdict, &Entry::verdict), verdict);
  page.text += ".\n\n| claim | part | papers | verdict |\n|---|---|---|---|\n";
  Json json = Json::array();
  for (const Entry& entry : entries) {
    std::vector<std::string> ids;
    for (const Paper& paper : entry.claim->papers)
      if (std::ranges::find(ids, paper.id) == ids.end()) ids.push_back(paper.id);
    page.text += fmt::format("| {} | {} | {} | {} |\n", entry.claim->title, entry.claim->part, config::join(ids, ", "),
                             entry.verdict);
    json.push_back(json_of(entry));
  }
  std::string part;
  for (const Entry& entry : entries) {
    if (entry.claim->part != part) {
      part = entry.claim->part;
      page.text += fmt::format("\n## {}{}\n", static_cast<char>(std::toupper(static_cast<unsigned char>(part[0]))),
                               part.substr(1));
    }
    page.text += "\n" + claim_text(entry);
  }
  page.text += "\n## Studies\n\n";
  for (const Study& study : studies) page.text += study_text(study);
  page.text.pop_back();
  page.json = cli::json_text(json);
  return page;
}

}  // namespace weft::study
