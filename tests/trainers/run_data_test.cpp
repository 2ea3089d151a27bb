// Runs on token shards and on texts through the command: which files a run reads, whether they are still the same, how documents are
// marked, ids that the model does not have, and several processes at once.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/trainers/process.h"
#include "weft/data/shards.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"
#include "weft/io/metrics.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<int32_t>;

constexpr const char* kConfig = R"(
model { dim: 16 layers: 1 context: 32 mixer { softmax { heads: 2 } } ffn { swiglu { hidden: 32 } } }
data { tokenizer { bytes {} } train { path: "s_*.bin" } val { path: "v_*.bin" } end_of_text: 0 }
optim { group { match: "*" adamw { lr: 3e-3 } } }
train { tokens: 2560 tokens_per_step: 128 micro_batch: 2 threads: 1 device: cpu }
log { every: 5 sample_tokens: 4 } checkpoint { every: 10 keep_last: 2 }
)";

class RunData : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("weft_run_data_" + std::to_string(getpid()) + "_" +
                                           ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::ofstream(folder_ / "run.txtpb") << kConfig;
    for (int i = 0; i < 2; ++i) write_shard("s_" + std::to_string(i) + ".bin", ids(3000, i));
    write_shard("v_0.bin", ids(400, 7));
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  // Documents of 17 to 40 ids, each begun by id 0.
  static Ids ids(int count, int seed) {
    Ids out;
    for (int i = 0, rest = 0; i < count; ++i, --rest) {
      if (rest == 0) rest = 17 + (i * 7 + seed) % 24;
      out.push_back(rest == 17 + (i * 7 + seed) % 24 ? 0 : 1 + (i * 31 + seed) % 250);
    }
    out[0] = 0;
    return out;
  }

  void write_shard(const std::string& name, const Ids& content, data::ShardKind kind = data::ShardKind::header) const {
    data::ShardWriter writer(path(name), kind, 2);
    writer.append(content);
    writer.close();
  }

  test::ProcessResult train(const std::string& run, std::vector<std::string> more = {}) const {
    std::vector<std::string> words{"train", path("run.txtpb"), "--run", path(run)};
    words.insert(words.end(), more.begin(), more.end());
    return test::run_weft(words);
  }
  std::string weights(const std::string& run, int step) const {
    return io::read_file(path(run) + "/checkpoints/step-000000" + std::to_string(step) + "/model.safetensors");
  }
  static bool has_bytes(const std::string& file) { return fs::exists(file) && fs::file_size(file) > 0; }
  void go_back(const std::string& run) const { fs::remove_all(path(run) + "/checkpoints/step-00000020"); }

  static void expect(const test::ProcessResult& result, int code, const std::vector<std::string>& parts) {
    EXPECT_EQ(result.exit_code, code) << result.err;
    for (const std::string& part : parts)
      EXPECT_NE(result.err.find(part), std::string::npos) << "missing '" << part << "' in\n" << result.err;
  }

  fs::path folder_;
};

TEST_F(RunData, GoesOnWithFilesWhoseNamesAreNotUtf8) {
  for (const char* shard : {"0.bin", "1.bin"})
    fs::rename(path(std::string("s_") + shard), path(std::string("s\xe9_") + shard));
  const std::string files = "data.train.path=" + path("s\xe9_*.bin");
  expect(train("a", {files}), 0, {});
  const std::string expected = weights("a", 20);
  go_back("a");
  expect(train("a", {files}), 0, {"resumed at step 10"});
  EXPECT_TRUE(weights("a", 20) == expected);
  expect(train("b", {files, "--resume", path("a/checkpoints/step-00000010")}), 0, {"resumed at step 10"});
}

TEST_F(RunData, GoesOnOnlyWithTheFilesThatItBeganWith) {
  expect(train("a"), 0, {});
  const std::string expected = weights("a", 20);
  EXPECT_NE(io::read_file(path("a/data.txtpb")).find("s_1.bin"), std::string::npos);
  go_back("a");
  expect(train("a"), 0, {"resumed at step 10"});
  EXPECT_TRUE(weights("a", 20) == expected);

  go_back("a");
  write_shard("s_2.bin", ids(3000, 2));
  expect(train("a"), 1, {"data.train[0]", "s_2.bin is new", "data.keep_files=true", "--run"});
  EXPECT_FALSE(io::file_exists(path("a/checkpoints/step-00000020"))) << "nothing was trained";
  expect(train("a", {"data.keep_files=true"}), 0, {"resumed at step 10"});
  EXPECT_TRUE(weights("a", 20) == expected) << "the new file is left out";
  expect(train("b"), 0, {});
  EXPECT_FALSE(weights("b", 20) == expected) << "a new run takes all";
  expect(train("c", {"data.keep_files=true"}), 1, {"has no list of the files"});
  fs::remove(path("s_2.bin"));
  expect(train("b"), 1, {"s_2.bin is missing"});

  write_shard("s_1.bin", ids(3000, 5));  // as many tokens, others
  expect(train("a"), 1, {"s_1.bin has changed", "another checksum"});
  write_shard("s_1.bin", ids(3001, 1));
  expect(train("a"), 1, {"s_1.bin has changed", "7024 bytes then, 7026 bytes now"});
  write_shard("s_1.bin", ids(3000, 1));
  expect(train("a"), 0, {});
  fs::rename(path("s_0.bin"), path("s_5.bin"));
  expect(train("a"), 1, {"s_5.bin is new"});
}

// The files that a run keeps are the ones that must be there; what else the pattern names is not looked at.
TEST_F(RunData, KeptFilesAreCheckedInPlaceOfThePattern) {
  expect(train("a"), 0, {});
  go_back("a");
  fs::create_symlink(path("absent"), path("s_2.bin"));
  expect(train("a"), 1, {"cannot read", "s_2.bin"});
  expect(train("a", {"data.keep_files=true"}), 0, {"resumed at step 10"});
  go_back("a");
  fs::rename(path("s_1.bin"), path("away"));
  expect(train("a", {"data.keep_files=true"}), 1, {"cannot read", "s_1.bin"});
}

TEST_F(RunData, ACheckpointOfAnotherRunBringsItsDataAlong) {
  expect(train("a"), 0, {});
  const std::string half = path("a/checkpoints/step-00000010");
  expect(train("b", {"--resume", half}), 0, {"resumed at step 10"});
  EXPECT_TRUE(weights("b", 20) == weights("a", 20));
  expect(train("c", {"--resume", half, "data.end_of_text=1"}), 1, {"step-00000010", "data"});
  expect(train("d", {"--resume", half, "data.train=[{path:\"" + path("s_0.bin") + "\"}]"}), 1, {"s_1.bin is missing"});
  expect(train("e", {"--resume", half,
                     "data.train=[{path:\"" + path("s_*.bin") + "\"},{path:\"" + path("s_0.bin") + "\"}]"}),
         1, {"data of this run", "step-00000010"});
  fs::create_directories(path("moved"));
  for (const char* name : {"s_0.bin", "s_1.bin"}) fs::copy(path(name), path(std::string("moved/") + name));
  expect(train("f", {"--resume", half, "data.train.path=" + path("moved/s_*.bin")}), 0, {"resumed at step 10"});
  EXPECT_TRUE(weights("f", 20) == weights("a", 20)) << "the same files in another folder";
}

TEST_F(RunData, OneMoreTextIsNamedToo) {
  for (const char* name : {"t_0.txt", "t_1.txt"})
    std::ofstream(folder_ / name) << std::string(3000, name[2]) + " some words of a text\n";
  std::vector<std::string> texts{"data.train.path=" + path("t_*.txt"), "data.val={fraction:0.1}"};
  expect(train("a", texts), 0, {});
  const std::string expected = weights("a", 20);
  go_back("a");
  std::ofstream(folder_ / "t_2.txt") << "a text more";
  expect(train("a", texts), 1, {"t_2.txt is new"});
  fs::last_write_time(folder_ / "t_1.txt", fs::file_time_type::clock::now());  // copied, say: its content is the same
  std::vector<std::string> kept = texts;
  kept.push_back("data.keep_files=true");
  expect(train("a", kept), 0, {"resumed at step 10"});
  EXPECT_TRUE(weights("a", 20) == expected);
  fs::remove(folder_ / "t_2.txt");
  std::ofstream(folder_ / "t_1.txt") << "another text";
  expect(train("a", texts), 1, {"t_1.txt has changed"});
}

TEST_F(RunData, EvaluationReadsTheFilesOfTheRun) {
  expect(train("a"), 0, {});
  auto before = test::run_weft({"eval", path("a"), "--json"});
  expect(before, 0, {});
  write_shard("v_1.bin", ids(400, 9));
  EXPECT_EQ(test::run_weft({"eval", path("a"), "--json"}).out, before.out);
  EXPECT_NE(test::run_weft({"eval", path("a"), "--json", "data.val.path=" + path("v_1.bin")}).out, before.out);
}

// llm.c's files: documents begin with the id, and a file may begin inside of one.
TEST_F(RunData, FilesMayBeginInsideADocument) {
  Ids inside = ids(3000, 3);
  inside.erase(inside.begin(), inside.begin() + 5);
  inside.back() = 7;
  for (const char* name : {"s_0.bin", "s_1.bin"}) write_shard(name, inside);
  expect(train("a"), 0, {"data.train[0] begin with id 0", "validation begin with id 0"});
  fs::remove(path("v_0.bin"));
  expect(train("b", {"data.val={fraction:0.1}"}), 0, {"data.train[0] begin with id 0, validation begin with id 0"});
  write_shard("v_0.bin", ids(400, 7));
  write_shard("w.bin", ids(3000, 4));
  expect(train("c", {"data.train+={path:\"" + path("w.bin") + "\"}"}), 0,
         {"data.train[0] begin with id 0, data.train[1] begin with id 0"});
  std::ofstream(folder_ / "text.txt") << std::string(2000, 'x');
  write_shard("raw.bin", inside, data::ShardKind::raw);
  expect(
      train("d", {"data.train+={path:\"" + path("raw.bin") + "\"}", "data.train+={path:\"" + path("text.txt") + "\"}"}),
      0, {"data.train[0] begin with id 0, data.train[1] end with id 0, data.train[2] one document"});
  expect(train("e", {"data.end_of_text_at=end"}), 0, {"data.train[0] end with id 0"});
  expect(train("f", {"data.train.path=" + path("*w.bin")}), 1, {"raw.bin", "w.bin", "two sources"});
}

TEST_F(RunData, AnIdBeyondTheVocabularyIsFoundBeforeTheFirstStep) {
  Ids bad(500000, 5);
  bad[499999] = 256;
  write_shard("s_1.bin", bad);
  expect(train("a"), 1, {"s_1.bin", "id 256 at token 499999", "vocabulary of 256 ids"});
  EXPECT_FALSE(io::file_exists(path("a/checkpoints")));
  write_shard("s_1.bin", ids(3000, 1));
  bad = ids(400, 7);
  bad[398] = 999;
  write_shard("v_0.bin", bad);
  expect(train("a"), 1, {"v_0.bin", "id 999 at token 398"});
  write_shard("v_0.bin", ids(400, 7));
  expect(train("a"), 0, {});
}

// The scan of large data goes on beside the training. Here the shard changes under a run, after its scan.
TEST_F(RunData, AnIdThatIsFoundLateEndsTheRunWithACheckpoint) {
  const std::string shard = path("s_0.bin");
  fs::remove(path("s_1.bin"));
  write_shard("bad.bin", Ids(3000, 300));
  pid_t child = test::start_weft({"train", path("run.txtpb"), "--run", path("a"), "train.tokens=1G",
                                  "checkpoint.every=0", "eval.every=0", "log.every=1"});
  for (int i = 0; i < 6000 && !has_bytes(path("a/metrics.jsonl")); ++i) usleep(10000);
  std::string bad = io::read_file(path("bad.bin"));
  int file = open(shard.c_str(), O_WRONLY);  // the same file: the run has mapped it
  EXPECT_EQ(pwrite(file, bad.data(), bad.size(), 0), static_cast<ssize_t>(bad.size()));
  close(file);
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_NE(io::read_file(path("a/log.txt")).find("id 300 at token"), std::string::npos);
  std::vector<int64_t> steps = io::list_checkpoints(path("a/checkpoints"));
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_EQ(steps[0], io::read_metrics(path("a/metrics.jsonl")).back().step);
}

// A start that failed before there was a run binds nobody to its texts.
TEST_F(RunData, AnotherTextAfterAFailedStart) {
  std::ofstream(folder_ / "x.txt") << std::string(2000, 'x');
  std::ofstream(folder_ / "y.txt") << std::string(3000, 'y');
  std::vector<std::string> common{"data.tokenizer={characters{}}",
                                  "data.end_of_text=", "data.train.path=" + path("x.txt")};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), common.begin(), common.end());
    return more;
  };
  expect(train("a", with({"data.val.path=" + path("absent.txt")})), 1, {"absent.txt"});
  expect(train("a", with({"data.train.path=" + path("y.txt"), "data.val={fraction:0.1}"})), 0, {});
}

// No text has an id that the tokenizer does not have, also where the model has room for it. A run that is read says so too.
TEST_F(RunData, TheEndOfATextIsAnIdOfTheTokenizer) {
  std::ofstream(folder_ / "x.txt") << std::string(1000, 'x') << std::string(1000, 'y');
  const std::vector<std::string> characters{"data.tokenizer={characters{}}", "data.train.path=" + path("x.txt"),
                                            "data.val={fraction:0.1}", "model.vocab=16"};
  auto with = [&](const std::string& id) {
    std::vector<std::string> words = characters;
    words.push_back("data.end_of_text=" + id);
    return words;
  };
  expect(train("a", with("2")), 2, {"data.end_of_text is 2, but the characters tokenizer has 2 ids.", "[0, 1]"});
  expect(train("b", with("1")), 0, {});
  for (const char* command : {"sample", "eval"})
    expect(test::run_weft({command, path("b"), "data.end_of_text=9"}), 2, {"data.end_of_text is 9", "2 ids"});
  expect(test::run_weft({"convert", path("b"), "--to", "gates", "--out", path("c"), "data.end_of_text=9"}), 2,
         {"data.end_of_text is 9", "2 ids"});
  EXPECT_FALSE(fs::exists(path("c")));
}

// A run that was trained with such an id before it was refused is read, compared and goes on with it. Nobody begins another one.
TEST_F(RunData, ARunThatHasAnotherEndOfTextIsReadAsItIs) {
  {
    std::ofstream text(path("x.txt"));
    for (int i = 0; i < 400; ++i) text << "line " << i * 7919 % 1000 << " of a text that repeats itself\n";
  }
  const std::vector<std::string> with{"data.train.path=" + path("x.txt"), "data.val={fraction:0.1}", "model.vocab=300"};
  expect(train("a", with), 0, {});
  std::vector<std::string> again = with;
  again.push_back("seed=2");
  expect(train("a2", again), 0, {});
  for (const std::string run : {"a", "a2"}) {
    const std::string config = path(run + "/config.txtpb"), data = path(run + "/data.txtpb");
    std::string text = io::read_file(config);
    const size_t at = text.find("end_of_text: 0");
    ASSERT_NE(at, std::string::npos) << text;
    io::write_file_atomically(config, text.replace(at, 14, "end_of_text: 256"));
    io::write_file_atomically(data, io::read_file(data) + "end_of_text: 256\n");
  }
  for (const std::vector<std::string>& words : {std::vector<std::string>{"replay", path("a")},
                                                {"compare", path("a"), path("a2"), "--out", path("report")},
                                                {"sample", path("a"), "--tokens", "3"},
                                                {"eval", path("a"), "data.val.path=" + path("x.txt")},
                                                {"convert", path("a"), "--to", "gates", "--out", path("b")},
                                                {"sample", path("b"), "--prompt", "x", "--tokens", "3"}}) {
    SCOPED_TRACE(words[0]);
    expect(test::run_weft(words), 0, {});
  }
  const test::ProcessResult exported = test::run_weft({"export", path("a"), "--out", path("hf")});
  EXPECT_EQ(exported.err.find("end_of_text"), std::string::npos) << exported.err;
  std::vector<std::string> same = with;
  same.push_back("data.end_of_text=256");
  // Where the command line names the id, or a run begins.
  const std::string says = "data.end_of_text is 256, but the bytes tokenizer has 256 ids.";
  expect(train("c", same), 2, {says});
  EXPECT_FALSE(fs::exists(path("c")));
  const std::string config = path("a/config.txtpb");
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"eval", path("a"), "data.end_of_text=256"},
        {"convert", path("a"), "--to", "gates", "--out", path("c"), "data.end_of_text=256"},
        {"boost", path("a"), "--out", path("c")},
        {"plan", config},
        {"parity", config},
        {"config", config},
        {"train", config, "--run", path("c")}}) {
    SCOPED_TRACE(words[0]);
    expect(test::run_weft(words), 2, {says});
    EXPECT_FALSE(fs::exists(path("c")));
  }
  fs::remove_all(path("a/checkpoints"));  // which say what id it really had
  expect(train("a", same), 0, {});
}

TEST_F(RunData, BinaryFilesAreNoText) {
  std::ofstream(folder_ / "table.parquet") << "PAR1" << std::string(1000, '\1');
  std::ofstream(folder_ / "plain.gz") << std::string(1000, 'a');
  expect(train("a", {"data.train.path=" + path("table.parquet")}), 1, {"table.parquet is no text", "Parquet", "JSONL"});
  expect(train("a", {"data.train.path=" + path("plain.gz")}), 1, {"plain.gz is not gzip"});
  expect(test::run_weft({"data", "tokenize", path("table.parquet"), "--out", path("out")}), 1, {"Parquet"});
  expect(test::run_weft({"task", "backcopy", "--text", path("table.parquet"), "--steps", "1"}), 1, {"Parquet"});
  expect(test::run_weft({"data", "info", path("table.parquet")}), 1, {"wrong magic"});
}

TEST_F(RunData, SamplesNeverCommandATerminal) {
  std::string text;
  for (int i = 0; i < 300; ++i) text += "\x1b[2J\x07\r\xc2\x9b";
  std::ofstream(folder_ / "text.txt") << text;
  expect(train("a", {"data.train.path=" + path("text.txt"), "data.val={fraction:0.2}", "log.sample_tokens=200",
                     "train.tokens=25600", "log.sample_prompt=\"\x1b[31m\""}),
         0, {});
  auto sampled = test::run_weft({"sample", path("a"), "--prompt", "\x1b]0;x\x07", "--tokens", "300"});
  expect(sampled, 0, {});
  EXPECT_NE(sampled.out.find("\\x1b"), std::string::npos) << sampled.out;
  for (const std::string& shown :
       {sampled.out, sampled.err, io::read_file(path("a/samples.txt")), io::read_file(path("a/report.html"))})
    for (char c : shown) {
      const bool is_control = static_cast<unsigned char>(c) < 32 && c != '\n' && c != '\t';
      ASSERT_FALSE(is_control || c == 127) << shown;
    }
}

TEST_F(RunData, PackKeepsDocumentsOrSaysThatItCannot) {
  auto pack = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"data", "pack"});
    return test::run_weft(words);
  };
  auto info = [&](const std::string& name) {
    auto result = test::run_weft({"data", "info", path(name), "--json"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return nlohmann::json::parse(result.out)["shards"][0];
  };
  // A pair is replaced as a whole.
  expect(pack({path("s_0.bin"), "--kind", "megatron", "--end-of-text", "0", "--out", path("p.bin")}), 0, {});
  EXPECT_EQ(info("p.bin")["kind"], "megatron");
  const int64_t documents = info("p.bin")["documents"];
  Ids content = ids(3000, 0);
  EXPECT_EQ(documents, std::count(content.begin(), content.end(), 0));
  data::Shard pair = data::Shard::open(path("p.bin"));
  for (int64_t d = 0; d < documents; ++d) EXPECT_EQ(content[static_cast<size_t>(pair.document_begin(d))], 0);
  // Formats without an index.
  expect(pack({path("p.bin"), "--out", path("q.bin")}), 2,
         {"documents", "keeps no index", "--end-of-text", "--join-documents"});
  expect(pack({path("s_0.bin"), "--kind", "megatron", "--out", path("q.bin")}), 2, {"s_0.bin", "--end-of-text"});
  EXPECT_FALSE(io::file_exists(path("q.bin")));
  expect(pack({path("p.bin"), "--end-of-text", "0", "--out", path("q.bin")}), 0, {});
  EXPECT_EQ(info("q.bin")["tokens"], 3000 + documents);
  expect(pack({path("p.bin"), "--join-documents", "--out", path("p.bin")}), 0, {});
  EXPECT_FALSE(io::file_exists(path("p.idx")));
  EXPECT_EQ(info("p.bin")["kind"], "header");
  EXPECT_EQ(info("p.bin")["tokens"], 3000);
  // A document that goes on in the next file is one.
  write_shard("one.bin", {0, 1, 2, 0, 3});
  write_shard("two.bin", {4, 5, 0, 6});
  expect(pack({path("one.bin"), path("two.bin"), "--kind", "megatron", "--end-of-text", "0", "--out", path("r.bin")}),
         0, {});
  EXPECT_EQ(info("r.bin")["documents"], 3);
  write_shard("three.bin", {1, 2, 0, 3});
  write_shard("four.bin", {4, 0, 6, 0});
  expect(
      pack({path("three.bin"), path("four.bin"), "--kind", "megatron", "--end-of-text", "0", "--out", path("r.bin")}),
      0, {});
  pair = data::Shard::open(path("r.bin"));
  EXPECT_EQ(pair.num_documents(), 3);
  EXPECT_EQ(pair.document_begin(1), 3);
  expect(pack({path("one.bin"), "--out", path("r.idx")}), 1, {"r.idx", "index"});
}

TEST_F(RunData, SeveralEvaluationsOfOneTextShareItsShards) {
  expect(train("a"), 0, {});
  std::string text;
  for (int i = 0; i < 20000; ++i) text += "line " + std::to_string(i * 7919 % 1000) + " of a text\n";
  std::ofstream(folder_ / "other.txt") << text;
  const std::string override = "data.val={path:\"" + path("other.txt") + "\" tokens:500}";
  std::vector<pid_t> children;
  for (int i = 0; i < 5; ++i) children.push_back(test::start_weft({"eval", path("a"), override}));
  for (pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  auto result = test::run_weft({"eval", path("a"), override});
  expect(result, 0, {});
  for (const auto& entry : fs::recursive_directory_iterator(folder_))
    for (const char* left : {".partial", ".lock"}) EXPECT_FALSE(entry.path().string().ends_with(left)) << entry.path();
}

}  // namespace
}  // namespace weft
