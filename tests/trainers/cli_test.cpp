// The weft program as a process: exit codes, what stands on which stream, help, usage errors.
#include <nlohmann/json.hpp>

#include "tests/trainers/cli_fixture.h"

namespace weft::cli {
namespace {

TEST_F(Cli, PrintsTheResolvedConfigOnStdout) {
  Outcome run = weft("config run.txtpb train.tokens=2M model.mixer[1].softmax.window=4 --as text");
  EXPECT_EQ(run.code, 0);
  EXPECT_EQ(run.err, "");
  expect_parts(run.out, {"name: \"run\"", "tokens: 2000000", "window: 4", (folder_ / "a.txt").string()});
}

TEST_F(Cli, PrintsJson) {
  for (const char* arguments :
       {"config run.txtpb --json", "config run.txtpb --as json", "config --as=json run.txtpb"}) {
    Outcome run = weft(arguments);
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(nlohmann::json::parse(run.out)["model"]["dim"], 64);
  }
}

TEST_F(Cli, TakesOverridesInTheOrderGiven) {
  EXPECT_NE(weft("config run.txtpb seed=2 --set seed=3").out.find("seed: 3"), std::string::npos);
  EXPECT_NE(weft("config run.txtpb --set seed=3 seed=2").out.find("seed: 2"), std::string::npos);
  EXPECT_NE(weft("config --set seed=3 run.txtpb seed=2 --set=seed=5 model.init.std=1").out.find("seed: 5"),
            std::string::npos);
  EXPECT_NE(weft("config run.txtpb 'data.train=[{path:\"x.txt\"}]'").out.find("/x.txt\""), std::string::npos);
  EXPECT_NE(weft("config run.txtpb 'name=a b' name=ab").out.find("name: \"ab\""), std::string::npos);
}

TEST_F(Cli, ExplainsFieldsAndPrintsTheReference) {
  Outcome run = weft("config --explain train.tokens");
  EXPECT_EQ(run.code, 0);
  expect_parts(run.out, {"train.tokens", "required", "tokens"});
  expect_parts(weft("config run.txtpb --explain model.dim").out, {"model.dim = 64  (run.txtpb:3:3)"});
  run = weft("config --reference");
  EXPECT_EQ(run.code, 0);
  expect_parts(run.out, {"| field | type |", "| `checkpoint.keep_last` |"});
}

TEST_F(Cli, JsonIsOneDocumentOfEveryCommand) {
  const auto table = nlohmann::json::parse(weft("check --mixer gqa --check causality --table --json").out);
  EXPECT_TRUE(table["table"].get<std::string>().starts_with("| ")) << table;
  EXPECT_EQ(table["results"].size(), 1u);
  const auto project = nlohmann::json::parse(weft("new loudness --out made --json").out);
  EXPECT_EQ(project["project"], "loudness");
  for (const auto& file : project["files"]) EXPECT_TRUE(fs::exists(folder_ / "made" / file.get<std::string>())) << file;
  EXPECT_EQ(project["files"].size(), 4u);
  const Outcome odd = weft("new loudness --out \"$(printf 'q\\377')\" --json");
  EXPECT_EQ(odd.code, 0) << odd.err;
  EXPECT_EQ(nlohmann::json::parse(odd.out)["folder"], "q\xEF\xBF\xBD");
}

TEST_F(Cli, EndsUsageAndConfigErrorsWithCode2AndNothingOnStdout) {
  const Row rows[] = {
      {"confg", {"error: weft has no command 'confg'. Did you mean 'config'?"}},
      {"zzz", {"error: weft has no command 'zzz'. Commands: ", "config", "doctor"}},
      {"config run.txtpb --jsn",
       {"error: weft config has no option '--jsn'. Did you mean '--json'?", "weft config --help"}},
      {"--jsn", {"error: weft has no option '--jsn'"}},
      {"data pack a.bin --widht 2", {"weft data pack has no option '--widht'", "--raw-width", "--json"}},
      {"config", {"error: weft config: the argument CONFIG is missing.", "--reference"}},
      {"config absent.txtpb", {"error: absent.txtpb: cannot be read: No such file or directory."}},
      {"config .", {"error: .: is a folder"}},
      {"config run.txtpb train.tokns=3", {"error: train.tokns=3: train has no field 'tokns'. Did you mean 'tokens'?"}},
      {"config run.txtpb model.dim=65",
       {"error: run.txtpb:4:21: model.mixer[0].softmax.heads is 4, which does not divide model.dim 65.\n       Use a "
        "divisor"}},
      {"config run.txtpb --as yaml", {"error: --as yaml: no such format.", "text, json"}},
      {"config run.txtpb --as", {"error: weft config: ", "--as"}},
      {"config run.txtpb --quiet --verbose", {"error: weft config: ", "--quiet excludes --verbose"}},
      {"config --explain model.dmi", {"error: model.dmi: model has no field 'dmi'. Did you mean 'dim'?"}},
      {"task trigger --piecewise", {"error: weft task trigger: --piecewise, but", "run weft task regression"}},
      {"task circuits --mixer mha", {"error: weft task circuits: --mixer, but", "run weft task regression"}},
      {"task circuits --layers 1", {"error: weft task circuits: --layers, but", "run weft task regression"}},
      {"task circuits --piecewise", {"error: weft task circuits: --piecewise, but", "run weft task regression"}},
      {"task circuits --text no.txt", {"error: weft task circuits: --text, but", "run weft task backcopy"}},
      {"task trigger --text no.txt", {"error: weft task trigger: --text, but", "run weft task backcopy"}},
      {"task regression --text no.txt", {"error: weft task regression: --text, but", "run weft task backcopy"}},
      {"task backcopy --piecewise", {"error: weft task backcopy: --piecewise, but", "run weft task regression"}},
      {"task regression --mixer random_embedding", {"weft task regression: --mixer random_embedding reads what a"}},
      {"task regression --mixer static_embedding", {"weft task regression: --mixer static_embedding reads what a"}},
      {"task trigger --mixer random_embedding", {"weft task trigger: --mixer random_embedding", "weft task backcopy"}},
      {"task trigger --mixer static_embedding", {"weft task trigger: --mixer static_embedding", "weft task backcopy"}},
      {"task trigger --mixer fixed_text", {"weft task trigger: --mixer fixed_text reads a fixed text"}},
      {"task backcopy --mixer fixed_text", {"weft task backcopy: --mixer fixed_text reads a fixed text"}},
      {"doctor extra", {"error: weft doctor: ", "extra"}},
      {"", {"Usage: weft", "config", "doctor"}},
  };
  for (const Row& row : rows) {
    Outcome run = weft(row.arguments);
    EXPECT_EQ(run.code, 2) << row.arguments;
    EXPECT_EQ(run.out, "") << row.arguments;
    expect_parts(run.err, row.parts);
    EXPECT_EQ(run.err.find('\x1b'), std::string::npos) << "colour off a terminal";
  }
}

TEST_F(Cli, HelpOfEveryCommandHasTwoExamples) {
  EXPECT_EQ(weft("--help").code, 0);
  for (const Command& row : commands()) {
    const std::string command = row.name;
    Outcome run = weft(str(command, " --help"));
    EXPECT_EQ(run.code, 0);
    EXPECT_EQ(run.err, "");
    size_t examples = run.out.find("Examples:");
    ASSERT_NE(examples, std::string::npos) << run.out;
    int num_examples = 0;
    for (size_t at = examples; (at = run.out.find(str("weft ", command), at)) != std::string::npos; ++at)
      ++num_examples;
    EXPECT_EQ(num_examples, 2) << run.out;
    expect_parts(run.out, {"--json", "--quiet", "--verbose", "--help"});
  }
}

TEST_F(Cli, HelpSaysRunWhereARunIsWanted) {
  for (const char* command : {"eval", "sample", "analyse"}) {
    Outcome run = weft(str(command, " --help"));
    expect_parts(run.out, {"RUN", "RUN@STEP", "RUN@best", "RUN@latest", "folder"});
    EXPECT_EQ(run.out.find("CONFIG"), std::string::npos) << run.out;
  }
  expect_parts(weft("train --help").out, {"Usage: weft train", "CONFIG", "RUN@STEP"});
  expect_parts(weft("data info --help").out, {"Usage: weft data info"});
  expect_parts(weft("inspect --help").out, {"RUN@best"});
}

TEST_F(Cli, RanksAreThoseOfTheConfig) {
  expect_parts(weft("train --help").out, {"--ranks", "threads"});
  expect_parts(weft("plan --help").out, {"--hardware NAME=here"});
  const Row rows[] = {
      {"train run.txtpb --ranks 2",
       {"--ranks 2: the config has parallel.data 1 x parallel.context 1 = 1 rank.",
        "Start 1, or use parallel.data=1 parallel.context=2, or parallel.data=2 parallel.context=1."}},
      {"train run.txtpb --ranks 3 parallel.context=2",
       {"--ranks 3: the config has parallel.data 1 x parallel.context 2 = 2 ranks.",
        "Start 2, or use parallel.data=1 parallel.context=3, or parallel.data=3 parallel.context=1."}},
      {"train run.txtpb --ranks 4 parallel.context=2",
       {"or use parallel.data=1 parallel.context=4, or parallel.data=2 parallel.context=2, or parallel.data=4 "
        "parallel.context=1."}},
      {"train run.txtpb parallel.context=4", {"parallel.context 4 = 4 ranks", "Add --ranks 4"}},
      {"train run.txtpb --ranks 0", {"--ranks 0: there are no such ranks"}},
      {"train run.txtpb parallel.layout=zigzig", {"zigzig", "zigzag"}},
      {"config run.txtpb parallel.context=2 parallel.layout=balanced parallel.block=1 model.pattern= "
       "model.mixer=[{gla{heads:2}}]",
       {"parallel.layout is balanced with blocks of 1 tokens, and the model has recurrences", "parallel.block="}},
      {"config run.txtpb parallel.context=4 parallel.scheme=ulysses model.pattern= model.mixer=[{softmax{heads:2}}]",
       {"parallel.scheme cannot run in model.layers.0.mixer: ulysses: 2 query heads for 4 ranks",
        "parallel.scheme=auto"}},
      {"parity run.txtpb --ranks 100", {"--ranks 100 for a sequence of", "one rank per token"}},
      {"parity run.txtpb --layouts all --schemes all model.zigzag=1", {"model has no field 'zigzag'"}},
      {"parity run.txtpb --ranks 2 model.zigzag=1", {"model has no field 'zigzag'"}},
      {"parity run.txtpb --ranks 2 --layouts contiguous model.pattern= model.mixer=[{multi_token{heads:2}}]",
       {"2 ranks that share each sequence: model.mixer[0] convolves the scores of neighbouring", "another mixer"}},
      {"plan run.txtpb --hardware h200 --ranks 2 --context 2 model.vocab=300 model.pattern= "
       "model.mixer=[{multi_token{heads:2}}]",
       {"2 ranks that share each sequence: model.mixer[0] convolves the scores of neighbouring", "--context 1"}},
      {"parity run.txtpb --ranks 2 --steps -1", {"--steps", "-1"}},
      {"parity run.txtpb --ranks 2 --block 0", {"--block", "0"}},
      {"parity run.txtpb --layouts zigzig", {"--layouts zigzig: no such value. Did you mean 'zigzag'?"}},
      {"bench gemm --plan", {"--plan: weft bench gemm has no plan"}},
      {"bench gemm --masks causal", {"--masks: an option of weft bench ring alone", "weft bench gemm has no ranks"}},
      {"bench gemm --kernels all", {"--kernels: an option"}},
      {"bench all --schemes all", {"--schemes: an option", "weft bench all has no"}},
      {"bench train --layouts all", {"--layouts: an option"}},
      {"bench recurrence --tokens 1024", {"--tokens: an option of weft bench ring", "weft bench recurrence has no"}},
      {"bench recurrence --ranks 2", {"--ranks: an option"}},
      {"bench recurrence --documents x.csv", {"--documents: an option"}},
      {"bench recurrence --tokens 1024 --picture x.svg",
       {"--tokens, --picture: options of weft bench ring alone", "Leave them out"}}};
  for (const Row& row : rows) {
    Outcome run = weft(row.arguments);
    EXPECT_EQ(run.code, kUsageError) << row.arguments;
    expect_parts(run.err, row.parts);
  }
}

TEST_F(Cli, SuggestsTheNameThatWasMeant) {
  const Row rows[] = {
      {"check --mixer nexsu", {"--mixer nexsu: no such mixer. Did you mean 'nexus'?", "Use one of: all, "}},
      {"check --check gradint", {"no such check. Did you mean 'gradient'?"}},
      {"gradcheck --mixer gqq", {"no such mixer. Did you mean 'gqa'?"}},
      {"task trigger --mixer sofmax --steps 1", {"no such mixer. Did you mean 'softmax'?"}},
      {"task triger --steps 1", {"weft task triger: no such task. Did you mean 'trigger'?", "backcopy"}},
      {"bench gem", {"weft bench gem: no such benchmark. Did you mean 'gemm'?"}},
      {"bench --mixer nexsu", {"--mixer nexsu: no such mixer. Did you mean 'nexus'?"}},
      {"bench gemm --mixer nexus", {"weft bench gemm has no mixers", "weft bench train --mixer"}},
      {"bench gemm --device cdua", {"--device cdua: no such device. Did you mean 'cuda'?"}},
      {"data tokenize x --out y --tokenizer gtp2", {"no such tokenizer. Did you mean 'gpt2'?"}},
      {"data tokenize x --out y --kind hedaer", {"no such kind of shard. Did you mean 'header'?"}},
      {"config run.txtpb --as josn", {"--as josn: no such format. Did you mean 'json'?"}},
  };
  for (const Row& row : rows) {
    Outcome run = weft(row.arguments);
    EXPECT_EQ(run.code, 2) << row.arguments << run.err;
    expect_parts(run.err, row.parts);
  }
}

TEST_F(Cli, SaysWhatAFileIsThatIsNoConfig) {
  std::ofstream(folder_ / "binary.txtpb") << std::string("PAR1\0\x15", 6);
  std::ofstream(folder_ / "json.txtpb") << "{\"model\": {\"dim\": 64}}";
  std::ofstream(folder_ / "large.txtpb") << std::string((size_t{1} << 20) + 1, '#');
  fs::create_directories(folder_ / "run");
  fs::copy_file(folder_ / "run.txtpb", folder_ / "run" / "config.txtpb");
  for (const Row& row : std::initializer_list<Row>{
           {"train binary.txtpb",
            {"binary.txtpb: is a binary file, not a config: byte 4 is 0.", "protobuf text format"}},
           {"config json.txtpb", {"begins with '{' like JSON", "without outer braces"}},
           {"train run", {"run: is a folder", "Name its run/config.txtpb."}},
           {"config binary.txtpb", {"binary.txtpb: is a binary file, not a config: byte 4 is 0."}},
           {"parity binary.txtpb --ranks 2", {"binary.txtpb: is a binary file, not a config: byte 4 is 0."}},
           {"plan binary.txtpb --hardware h200", {"binary.txtpb: is a binary file, not a config: byte 4 is 0."}},
           {"ablate binary.txtpb",
            {"binary.txtpb: is a binary file, not the grid of a study: byte 4 is 0.", "trainers/recipes/studies"}},
           {"claims binary.txtpb", {"binary.txtpb: is a binary file, not the grid of a study: byte 4 is 0."}},
           {"ablate json.txtpb", {"json.txtpb: begins with '{' like JSON; the grid of a study is in protobuf text"}},
           {"ablate large.txtpb", {"large.txtpb: is larger than 1 MiB.", "Name the grid of a study"}},
           {"ablate run", {"run: is a folder", "Name a grid"}},
           {"ablate nosuch.txtpb", {"nosuch.txtpb: no such file", "Name a grid"}}}) {
    Outcome run = weft(row.arguments);
    EXPECT_EQ(run.code, 2) << run.err;
    expect_parts(run.err, row.parts);
  }
}

TEST_F(Cli, SizesOfOptionsTakeSuffixes) {
  expect_parts(weft("sample run --tokens 2K").err,
               {"'2K' is no whole number. Did you mean '2k' (2000)", "suffixes are k, M, G"});
  expect_parts(weft("eval run --lengths 1k,2x").err, {"error: weft eval: --lengths: '2x' is no whole number"});
  expect_parts(weft("eval run --lengths 1k,2k data.document_mask=false").err, {"run is not a run"});
}

TEST_F(Cli, SaysItsVersion) {
  Outcome run = weft("--version");
  EXPECT_EQ(run.code, 0);
  EXPECT_TRUE(run.out.starts_with("weft 0.")) << run.out;
}

TEST_F(Cli, DoctorDescribesTheMachine) {
  Outcome run = weft("doctor");
  EXPECT_EQ(run.code, 0) << run.err;
  expect_parts(run.out, {"compiler", "oneDNN", "Protocol Buffers", "kernels", "threads", "memory", "GiB"});
  auto json = nlohmann::json::parse(weft("doctor --json").out);
  EXPECT_GE(json["cores"], 1);
  EXPECT_GT(json["memory_bytes"], 0);
  EXPECT_GE(json["memory_bytes"], json["memory_available_bytes"]);
  EXPECT_FALSE(json["libraries"]["oneDNN"].get<std::string>().empty());
  EXPECT_EQ(json["devices"][0], "cpu");
  EXPECT_GT(json["measured"]["f32_flops"], 1e6);
}

TEST_F(Cli, DoctorTestsTheKernelsOfEveryInstructionSet) {
  Outcome run = weft("doctor --kernels --json");
  EXPECT_EQ(run.code, 0) << run.out << run.err;
  auto json = nlohmann::json::parse(run.out);
  EXPECT_EQ(json["kernels"].size(), 14 * json["isas"].size());
  for (const auto& row : json["kernels"]) {
    EXPECT_TRUE(row["passed"].get<bool>()) << row;
    EXPECT_GT(row["error"].get<double>(), row["dtype"] == "bf16" ? 1e-5 : 0) << "compared with itself: " << row;
  }
}

TEST_F(Cli, TasksPrintATableOfMixers) {
  Outcome run = weft("task trigger --mixer relu --mixer mha --steps 2 --seeds 2 --json");
  EXPECT_EQ(run.code, 0) << run.err;
  auto json = nlohmann::json::parse(run.out);
  ASSERT_EQ(json["rows"].size(), 2u);
  EXPECT_EQ(json["rows"][1]["mixer"], "mha");
  EXPECT_GT(json["rows"][0]["loss"]["mean"], 0.0);
  EXPECT_GT(json["rows"][0]["loss"]["standard_error"], 0.0);
  run = weft("task backcopy --mixer softmax --steps 1 --seeds 1");
  EXPECT_EQ(run.code, 0) << run.err;
  expect_parts(run.out, {"first token at plain", "| softmax | 1 |"});
  EXPECT_EQ(run.out.find("+-"), std::string::npos) << "one seed has no error: " << run.out;
  run = weft("task trigger --mixer relu --steps 1 --seeds 1 --json");
  EXPECT_TRUE(nlohmann::json::parse(run.out)["rows"][0]["loss"]["standard_error"].is_null()) << run.out;
  run = weft("task trigger --mixer nothing");
  EXPECT_EQ(run.code, 2);
  expect_parts(run.err, {"--mixer nothing: no such mixer", "softmax, relu", "mha"});
  EXPECT_NE(weft("task backcopy --text missing.txt --steps 1").code, 0);
}

TEST_F(Cli, TellsAReadErrorOfAConfigFromAnEmptyOne) {
  Outcome run = weft("config /proc/self/mem");  // opens, and gives EIO to whoever reads it
  EXPECT_EQ(run.code, 2);
  expect_parts(run.err, {"error: /proc/self/mem: cannot be read: Input/output error."});
  std::string command =
      str("cd ", folder_.string(), " && bash -c '" WEFT_BINARY " config <(cat run.txtpb)' >out 2>err");
  EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 0) << "a pipe is a config too: " << content("err");
}

TEST_F(Cli, ClosedStreamsAreOpenedBeforeAnythingElse) {
  // The first file that is opened would be number 1, and the result would go into it.
  fs::copy(folder_ / "run.txtpb", folder_ / "copy.txtpb");
  std::string command = str("cd ", folder_.string(), " && " WEFT_BINARY " config run.txtpb <&- >&- 2>&-");
  EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 0);
  EXPECT_EQ(content("run.txtpb"), content("copy.txtpb"));
}

TEST_F(Cli, FailsWhenTheResultCannotBeWritten) {
  std::string command = str("cd ", folder_.string(), " && " WEFT_BINARY " config run.txtpb >/dev/full 2>err");
  int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  expect_parts(content("err"), {"error: cannot write the result to standard output: No space left on device"});
}

}  // namespace
}  // namespace weft::cli
