// What `weft ablate` says and takes beside the study itself: plans, reports of studies that were begun, ranks, devices.
#include <signal.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "tests/study/ablate_fixture.h"
#include "weft/io/checkpoint.h"

namespace weft::test {
namespace {

TEST_F(Ablate, ADryRunCountsTheTriesAndIsOneDocument) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4", kArms, R"(
tune { path: "optim.group[1].adamw.lr" value: "1e-4" value: "3e-4" value: "9e-4" seeds: 8 set: "train.tokens=640" }
)"));
  const ProcessResult text = ablate("study", {"--dry-run", "--no-times"});
  ASSERT_EQ(text.exit_code, 0) << text.err;
  EXPECT_NE(text.out.find("; the 6 tries of the tuning are in these sums"), std::string::npos) << text.out;
  const ProcessResult result = ablate("study", {"--dry-run", "--no-times", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["runs"], 4);
  EXPECT_EQ(json["tuning"]["tries"], 6);
  ASSERT_EQ(json["arms"].size(), 2u);
  double flops = 0, disk = 0;
  for (const auto& arm : json["arms"]) {
    EXPECT_EQ(arm["runs"], 2);
    EXPECT_EQ(arm["active_parameters"], arm["parameters"]);
    EXPECT_GT(arm["parameters"], arm["parameters_without_embeddings"]);
    EXPECT_TRUE(arm["seconds"].is_null());
    flops += arm["flops_per_token_without_output_head"].get<double>() * (2 * 1280 + 3 * 640);
    disk += arm["disk_bytes"].get<double>() * (2 + 3);
  }
  EXPECT_NEAR(json["flops_without_output_head"].get<double>(), flops, 1e-9 * flops);
  EXPECT_NEAR(json["disk_bytes"].get<double>(), disk, 1e-9 * disk);
  const auto some = nlohmann::json::parse(ablate("study", {"--dry-run", "--json", "--only", "gate=head"}).out);
  EXPECT_EQ(some["runs"], 2);
  EXPECT_EQ(some["tuning"]["tries"], 6) << "all arms are tuned";
  EXPECT_EQ(some["arms"].size(), 1u);
  EXPECT_GT(some["seconds"].get<double>(), 0);
}

// By the tokenizer's files, or by the text; where neither is read for it, no number stands in its place.
TEST_F(Ablate, ADryRunKnowsTheVocabulary) {
  nlohmann::json vocab = nlohmann::json::object();
  for (int byte = 0, next = 256; byte < 256; ++byte) {  // GPT-2's names of bytes: a letter each
    const bool is_shown = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
    const int letter = is_shown ? byte : next++;
    const std::string name =
        letter < 128 ? std::string(1, static_cast<char>(letter))
                     : std::string{static_cast<char>(0xC0 | letter >> 6), static_cast<char>(0x80 | (letter & 63))};
    vocab[name] = byte;
  }
  vocab["ab"] = 256, vocab["<|endoftext|>"] = 257;
  write("vocab.json", vocab.dump());
  write("merges.txt", "#version: 0.2\na b\n");
  const std::string gpt2 =
      str("set: \"data.tokenizer={gpt2{vocab:'", path("vocab.json"), "' merges:'", path("merges.txt"), "'}}\" ");
  const auto arm = [&](const std::string& set) {
    write_grid(str(kRuns, "seeds: 3 ", set, kArms));
    const ProcessResult result = ablate("study", {"--dry-run", "--no-times", "--json"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return nlohmann::json::parse(result.out)["arms"][0];
  };
  const auto vocab_of = [&](const std::string& set) {
    const auto json = arm(set);
    const int64_t tables = json["parameters"].get<int64_t>() - json["parameters_without_embeddings"].get<int64_t>();
    return tables / 16;  // one tied table of width 16
  };
  EXPECT_EQ(vocab_of("set: \"data.tokenizer={bytes{}}\" "), 256);
  EXPECT_EQ(vocab_of("set: \"data.tokenizer={bytes{}}\" set: \"data.first_token=true\" "), 257);
  EXPECT_EQ(vocab_of("set: \"data={task{mqar{vocab:64 pairs:4} test_rows:16}}\" "), 64);
  EXPECT_EQ(vocab_of(gpt2), 258);
  ASSERT_EQ(run_weft({"data", "bpe", path("text.txt"), "--out", path("bpe.json"), "--vocab", "270"}).exit_code, 0);
  EXPECT_EQ(vocab_of(str("set: \"data.tokenizer={bpe{file:'", path("bpe.json"), "'}}\" ")), 270);
  const std::string text = io::read_file(path("text.txt"));
  EXPECT_EQ(vocab_of(""), std::ssize(std::set<char>(text.begin(), text.end()))) << "the characters of the text";

  std::filesystem::resize_file(path("text.txt"), std::uintmax_t{65} << 20);  // too long to be read for that
  const auto unknown = arm("");
  for (const char* key : {"parameters", "active_parameters", "memory_bytes", "disk_bytes"})
    EXPECT_TRUE(unknown[key].is_null()) << key << ": " << unknown;
  EXPECT_GT(unknown["parameters_without_embeddings"], 0);
  EXPECT_GT(unknown["cache_bytes"], 0);
  const ProcessResult plan = ablate("study", {"--dry-run"});
  EXPECT_EQ(plan.exit_code, 0) << plan.err;
  for (const char* part : {"PFLOP without the output head\n",
                           "parameters, time, memory and disk are not known "
                           "(gate=none: the number of ids is a matter of texts"})
    EXPECT_NE(plan.out.find(part), std::string::npos) << part << " in " << plan.out;
  EXPECT_NE(arm("set: \"model.vocab=80\" ")["parameters"], nullptr);
}

// Arms that differ in nothing but their ranks have the losses of one rank, up to the order of sums.
TEST_F(Ablate, CellsOfSeveralRanks) {
  write_grid(str(kRuns, R"(
seeds: 3 eval { length: 16 task: "induction" rows: 8 } set: "data.tokenizer={bytes{}}"
axis { name: "ranks" arm { name: "one" } arm { name: "data" set: "parallel.data=2" }
  arm { name: "context" set: "parallel.context=2" } })"));
  const ProcessResult plan = ablate("study", {"--dry-run", "--no-times"});
  EXPECT_NE(plan.out.find("3 runs of up to 2 ranks x 1 threads"), std::string::npos) << plan.out << plan.err;
  const ProcessResult result = ablate("study", {"--jobs", "1"});
  ASSERT_EQ(result.exit_code, 0) << result.err << result.out;
  std::map<std::string, nlohmann::json> metrics;
  for (const std::string& name : io::list_folder(path("study") + "/results"))
    metrics[name.substr(0, name.find(','))] =
        nlohmann::json::parse(io::read_file(path("study") + "/results/" + name))["metrics"];
  ASSERT_EQ(metrics.size(), 3u);
  for (const char* arm : {"ranks=data", "ranks=context"})
    for (const char* key : {"val/loss", "val/loss@16"})
      EXPECT_NEAR(metrics[arm][key].get<double>(), metrics["ranks=one"][key].get<double>(), 1e-3) << arm << " " << key;
  for (const std::string& cell : io::list_folder(path("study") + "/cells")) {
    const std::string file = path("study") + "/cells/" + cell + "/checkpoints/step-00000010";
    EXPECT_FALSE(io::has_optimizer(io::read_checkpoint_info(file))) << cell;
  }
}

// A rate far too low for any step to be seen: the weights are those that the runs began with.
TEST_F(Ablate, TensorsOfOneNameAndShapeBeginAlike) {
  write_grid(str(kRuns, "seeds: 3 set: \"optim.group=[{match: '*' adamw {lr: 1e-30}}]\"", R"(
axis { name: "a" arm { name: "plain" } arm { name: "gated" set: "model.mixer[0].softmax.gate+={}" }
  arm { name: "wider" set: "model.ffn.swiglu.hidden=48" } })"));
  ASSERT_EQ(ablate("study").exit_code, 0);
  const std::vector<std::string> cells = io::list_folder(path("study") + "/cells");
  ASSERT_EQ(cells.size(), 3u);
  const auto weights_of = [&](const std::string& arm) {
    for (const std::string& cell : cells)
      if (cell.starts_with(arm))
        return io::SafetensorsFile::open(path("study") + "/cells/" + cell +
                                         "/checkpoints/step-00000010/model.safetensors");
    throw std::runtime_error(arm);
  };
  const io::SafetensorsFile plain = weights_of("a=plain");
  for (const auto& [arm, other_shapes] : {std::pair{"a=gated", 0}, std::pair{"a=wider", 3}}) {
    const io::SafetensorsFile other = weights_of(arm);
    int num_alike = 0, num_others = 0;
    for (const io::TensorEntry& entry : plain.tensors()) {
      const Tensor a = plain.load(entry.name), b = other.load(entry.name);
      if (a.shape() != b.shape()) {
        ++num_others;
        continue;
      }
      const std::vector<float> x = a.to_vector<float>(), y = b.to_vector<float>();
      double largest = 0, difference = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        largest = std::max<double>(largest, std::abs(x[i]));
        difference = std::max<double>(difference, std::abs(x[i] - y[i]));
      }
      EXPECT_GT(largest, 1e-3) << entry.name;
      EXPECT_LT(difference, 1e-20) << arm << " " << entry.name;
      ++num_alike;
    }
    EXPECT_EQ(num_others, other_shapes) << arm;
    EXPECT_GT(num_alike, 5) << arm;
  }
}

TEST_F(Ablate, AStudyThatIsStoppedEndsWithCodeThreeAndHasAReport) {
  write_grid(str(kRuns, "seeds: 3 seeds: 4", kArms));
  const std::vector<std::string> words{"ablate", path("grid.txtpb"),     "--out", path("study"), "--jobs", "1",
                                       "--set",  "train.tokens=12800000"};
  const pid_t child = start_weft(words);
  const auto is_training = [&] {
    const std::string cells = path("study") + "/cells";
    if (!io::is_folder(cells)) return false;
    for (const std::string& cell : io::list_folder(cells))
      if (io::file_exists(cells + "/" + cell + "/metrics.jsonl")) return true;
    return false;
  };
  for (int i = 0; i < 1200 && !is_training(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const ProcessResult at_work = run_weft({"ablate", "report", path("study")});
  EXPECT_EQ(at_work.exit_code, 0) << at_work.err;
  EXPECT_NE(at_work.out.find("0 of 4 runs complete, 4 not run yet"), std::string::npos) << at_work.out;
  kill(child, SIGTERM);
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 3);
  const ProcessResult result = run_weft({"ablate", "report", path("study"), "--json"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(nlohmann::json::parse(result.out)["not_run"], 4);
}

// Names of folders are any bytes but '/' and 0, and a text in a config may have any.
TEST_F(Ablate, FoldersAndTextsMayHaveAnyBytes) {
  const std::string odd = path("o\xff\xe4"), study = odd + "/study\xff";
  io::make_folders(odd);
  for (const char* file : {"tiny.txtpb", "text.txt"}) std::filesystem::rename(path(file), odd + "/" + file);
  io::write_file_atomically(odd + "/grid.txtpb", str(kRuns, "seeds: 3 set: \"log.sample_prompt='line'\"", kArms));
  const auto json_of = [&](std::vector<std::string> words) {
    words.insert(words.end(), {"--json"});
    const ProcessResult result = run_weft(words);
    EXPECT_EQ(result.exit_code, 0) << words[0] << ": " << result.err;
    return nlohmann::json::parse(result.out, nullptr, false);
  };
  const std::vector<std::string> ablate{"ablate", odd + "/grid.txtpb", "--out", study, "--set", "train.tokens=256"};
  auto with = [&](const std::string& word) {
    std::vector<std::string> words = ablate;
    words.push_back(word);
    return words;
  };
  EXPECT_FALSE(json_of(with("--dry-run")).is_discarded());
  EXPECT_FALSE(json_of(ablate).is_discarded());
  EXPECT_FALSE(json_of({"ablate", "report", study}).is_discarded());
  std::vector<std::string> compared{"compare"};
  for (const std::string& cell : io::list_folder(study + "/cells")) compared.push_back(study + "/cells/" + cell);
  ASSERT_EQ(compared.size(), 3u);
  EXPECT_FALSE(json_of({"inspect", compared[1]}).is_discarded());
  compared.insert(compared.end(), {"--out", odd + "/compared"});
  EXPECT_FALSE(json_of(compared).is_discarded());
  const std::string report = io::read_file(odd + "/compared/report.json");
  EXPECT_FALSE(nlohmann::json::parse(report, nullptr, false).is_discarded()) << report;
  EXPECT_FALSE(json_of({"config", odd + "/tiny.txtpb", "log.sample_prompt=l\xe9"}).is_discarded());
  // Only what is no file's name may be refused, and then by name.
  const ProcessResult refused = run_weft({"train", odd + "/tiny.txtpb", "name=a\xff/b"});
  EXPECT_EQ(refused.exit_code, 2) << refused.err;
  EXPECT_NE(refused.err.find("it names the run folder"), std::string::npos) << refused.err;
}

TEST_F(Ablate, AReportIsMadeOfTheFolderAlone) {
  write_grid(str(kRuns, "name: \"mine\" seeds: 3 seeds: 4 seeds: 5", kArms));
  const ProcessResult whole = ablate("study", {"--set", "train.tokens=640"});
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  const std::string json = io::read_file(path("study") + "/report.json");
  for (const char* file : {"grid.txtpb", "tiny.txtpb", "text.txt", "study/report.txt", "study/report.html"})
    std::filesystem::remove(path(file));
  // As if the config of the first run had had other defaults then.
  const std::string results = path("study") + "/results/", first = io::list_folder(results)[0],
                    older = first.substr(0, first.size() - 13) + "00000000.json";
  std::filesystem::rename(results + first, results + older);
  std::filesystem::rename(path("study") + "/cells/" + first.substr(0, first.size() - 5),
                          path("study") + "/cells/" + older.substr(0, older.size() - 5));
  const ProcessResult again = run_weft({"ablate", "report", path("study"), "--json"});
  ASSERT_EQ(again.exit_code, 0) << again.err;
  // The same but for the word about it.
  auto then = nlohmann::json::parse(json), now = nlohmann::json::parse(again.out);
  EXPECT_TRUE(then["taken_over"].empty());
  ASSERT_EQ(now["taken_over"].size(), 1u);
  EXPECT_EQ(now["taken_over"][0]["run"], older.substr(0, older.size() - 5));
  EXPECT_EQ(now["taken_over"][0]["is"], first.substr(0, first.size() - 5));
  now["taken_over"].clear();
  EXPECT_EQ(now, then);
  std::string text = io::read_file(path("study") + "/report.txt");
  const size_t taken = text.find("taken over: ");
  ASSERT_NE(taken, std::string::npos) << text;
  EXPECT_EQ(text.erase(taken, text.find('\n', taken) + 1 - taken), whole.out);
  EXPECT_TRUE(io::file_exists(path("study") + "/report.html"));
  const std::string second = older.substr(0, older.size() - 6) + "1", cells = path("study") + "/cells/";
  std::filesystem::copy(results + older, results + second + ".json");
  std::filesystem::copy(cells + older.substr(0, older.size() - 5), cells + second,
                        std::filesystem::copy_options::recursive);
  for (const auto& [words, part] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"ablate", "report", path("study")}, "has 2 results of gate="},
           {{"ablate", "report", path("nothing")}, "holds no study"},
           {{"ablate", "report"}, "DIR"},
           {{"ablate"}, "the argument GRID is missing"},
           {{"ablate", "report", path("study"), "--jobs", "2"}, "no options of runs"}}) {
    const ProcessResult refused = run_weft(words);
    EXPECT_EQ(refused.exit_code, 2) << refused.err;
    EXPECT_NE(refused.err.find(part), std::string::npos) << part << " in " << refused.err;
  }
}

TEST_F(Ablate, DevicesMayBeARange) {
  write_grid(str(kRuns, "seeds: 3", kArms));
  for (const auto& [devices, part] :
       {std::pair{"95-99", "--devices 95: there are "}, std::pair{"98,99-99", "--devices 98: there are "},
        std::pair{"9-8", "--devices 9-8: there are "}, std::pair{"9-x", "--devices 9-x: there are "}}) {
    const ProcessResult result = ablate("study", {"--devices", devices, "--set", "train.device=cuda"});
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << part << " in " << result.err;
  }
}

TEST_F(Ablate, FaultsOfAnArmAreFoundBeforeAnythingRuns) {
  for (const char* set : {"optim.group[1].match='*.norm.weight'", "start={from:'nix'}"}) {
    const std::string own =
        str("axis { name: \"a\" arm { name: \"plain\" } arm { name: \"own\" set: \"", set, "\" } }");
    expect_refused(str(kRuns, "seeds: 3 ", own), {"grid.txtpb: a=own: "});
    const ProcessResult dry = ablate("refused", {"--dry-run", "--no-times"});
    EXPECT_EQ(dry.exit_code, 2) << dry.err;
    EXPECT_NE(dry.err.find("grid.txtpb: a=own: "), std::string::npos) << dry.err;
  }
  write_grid(str(kRuns, "seeds: 3", kArms));
  ASSERT_EQ(ablate("begun").exit_code, 0);
  std::filesystem::remove(path("text.txt"));
  for (const bool is_dry : {false, true}) {
    const ProcessResult result =
        ablate("study", is_dry ? std::vector<std::string>{"--dry-run"} : std::vector<std::string>());
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_NE(result.err.find("grid.txtpb: gate=none: no file "), std::string::npos) << result.err;
    EXPECT_FALSE(io::file_exists(path("study")));
  }
  const ProcessResult begun = ablate("begun");
  EXPECT_EQ(begun.exit_code, 0) << "its runs are made: " << begun.err;
}

TEST_F(Ablate, ArmsThatDifferInNothingAreSaid) {
  const auto warning_of = [&](const std::string& axes) {
    write_grid(str(kRuns, "seeds: 3 ", axes));
    const ProcessResult result = ablate("study", {"--dry-run", "--no-times"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.err;
  };
  const std::string axis =
      R"(axis { name: "a" arm { name: "plain" } arm { name: "wide" set: "model.ffn.swiglu.hidden=48" }
    arm { name: "same" set: "model.layers=1" } })";
  EXPECT_EQ(warning_of(axis), str("warning: ", path("grid.txtpb"),
                                  ": a=plain and a=same have the same config, and differ in nothing.\n"));
  EXPECT_EQ(warning_of(str(kArms, R"(axis { name: "b" arm { name: "x" set: "model.layers=2" } })")),
            str("warning: ", path("grid.txtpb"), ": axis b has one arm, x, and compares nothing.\n"));
  EXPECT_EQ(warning_of(kArms), "");
}

}  // namespace
}  // namespace weft::test
