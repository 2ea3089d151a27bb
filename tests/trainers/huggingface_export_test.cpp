// What weft export writes: shards with an index, merged adapters, whole folders or none.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/io/faults.h"
#include "tests/support/errors.h"
#include "tests/trainers/huggingface_support.h"
#include "trainers/huggingface/folder.h"
#include "trainers/huggingface/import.h"
#include "trainers/run/address.h"
#include "weft/io/checkpoint.h"
#include "weft/ops/elementwise.h"
#include "weft/training/training.h"

namespace weft::huggingface {
namespace {

using reference::HfModel;
using test::error_of;
using test::expect_same;
using test::Fault;
using test::HfFolder;
using test::HuggingFace;
using test::Json;
using test::kIds;
using test::logits_of;

TEST_F(HuggingFace, ShardsHoldNoMoreThanAskedAndAreReadAsOneModel) {
  const HfFolder folder({.family = "qwen3"}, false);
  folder.write(temp_ / "hf");
  import_folder({.folder = temp_ / "hf", .run = temp_ / "run"});
  constexpr uint64_t kMost = 2000;
  const Exported done = export_run({.run = temp_ / "run", .folder = temp_ / "out", .max_shard_bytes = kMost});
  EXPECT_EQ(done.num_tensors, static_cast<int64_t>(folder.tensors.size()));
  EXPECT_FALSE(io::file_exists(temp_ / "out/model.safetensors"));
  const Json index = Json::parse(io::read_file(temp_ / "out/model.safetensors.index.json"));
  std::map<std::string, uint64_t> bytes;  // of tensors, by file
  uint64_t total = 0, tensors = 0;
  for (const auto& [name, file] : index["weight_map"].items()) {
    const io::SafetensorsFile shard = io::SafetensorsFile::open((temp_ / "out/") + file.get<std::string>());
    ASSERT_NE(shard.find(name), nullptr) << name;
    bytes[file] += shard.find(name)->size, total += shard.find(name)->size, ++tensors;
    EXPECT_TRUE(shard.find(name)->size <= kMost || shard.tensors().size() == 1) << name;
  }
  EXPECT_EQ(tensors, folder.tensors.size());
  EXPECT_EQ(index["metadata"]["total_size"], total);
  EXPECT_GT(bytes.size(), 3u);
  const std::string count = std::to_string(bytes.size());
  EXPECT_TRUE(bytes.contains("model-00001-of-" + std::string(5 - count.size(), '0') + count + ".safetensors"));
  for (const auto& [file, size] : bytes) EXPECT_LE(size, std::max<uint64_t>(kMost, 37 * 16 * 4)) << file;
  import_folder({.folder = temp_ / "out", .run = temp_ / "again"});
  expect_same(logits_of(temp_ / "again", kIds), logits_of(temp_ / "run", kIds), 0, "shards");
}

TEST_F(HuggingFace, AnExportTakesAnEmptyPlaceOnly) {
  HfFolder({}, false).write(temp_ / "hf");
  import_folder({.folder = temp_ / "hf", .run = temp_ / "run"});
  io::make_folders(temp_ / "full");
  io::write_file_atomically(temp_ / "full/notes.txt", "mine");
  EXPECT_EQ(error_of([&] { export_run({.run = temp_ / "run", .folder = temp_ / "full"}); },
                     {"full", "not an empty folder", "--out"}),
            "");
  EXPECT_EQ(error_of([&] { export_run({.run = temp_ / "run", .folder = temp_ / "hf"}); }, {"not an empty folder"}), "");
  io::write_file_atomically(temp_ / "file", "mine");
  EXPECT_EQ(error_of([&] { export_run({.run = temp_ / "run", .folder = temp_ / "file"}); }, {"not an empty folder"}),
            "");
  EXPECT_EQ(io::list_folder(temp_ / "full"), std::vector<std::string>{"notes.txt"});
  io::make_folders(temp_ / "empty");
  export_run({.run = temp_ / "run", .folder = temp_ / "empty/"});
  EXPECT_TRUE(io::file_exists(temp_ / "empty/config.json"));
}

// At every call of the system that writes: a full disk, and a process that is killed.
TEST_F(HuggingFace, AnExportThatIsBrokenOffLeavesNoFolder) {
  HfFolder({.layers = 1}, false).write(temp_ / "hf");
  import_folder({.folder = temp_ / "hf", .run = temp_ / "run"});
  const std::string out = temp_ / "out";
  const ExportOptions options{.run = temp_ / "run", .folder = out, .max_shard_bytes = 4000};
  bool has_finished = false;
  int num_calls = 0;
  for (; !has_finished; ++num_calls) {
    ASSERT_LT(num_calls, 200);
    const pid_t child = ::fork();
    if (child == 0) {
      test::set_fault(Fault::kill, num_calls);
      export_run(options);
      ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    has_finished = WIFEXITED(status);
    if (!io::file_exists(out)) continue;
    // The rename has been done.
    import_folder({.folder = out, .run = temp_ / ("again" + std::to_string(num_calls))});
    io::remove_folder(out);
  }
  EXPECT_GT(num_calls, 10);
  for (int at = 0; at < num_calls; ++at) {
    test::set_fault(Fault::disk_full, at);
    bool has_failed = false;
    try {
      export_run(options);
    } catch (const Error& error) {
      has_failed = true;
      EXPECT_NE(std::string(error.what()).find("No space left"), std::string::npos) << error.what();
    }
    test::set_fault(Fault::none, 0);
    EXPECT_FALSE(io::file_exists(out + ".partial")) << at;
    EXPECT_EQ(io::file_exists(out), !has_failed) << at;
    if (!has_failed) io::remove_folder(out);
  }
  export_run(options);
  import_folder({.folder = out, .run = temp_ / "last"});
  expect_same(logits_of(temp_ / "last", kIds), logits_of(temp_ / "run", kIds), 0, "after all of them");
}

TEST_F(HuggingFace, MergedAdaptersGiveTheLogitsOfTheAdaptedModel) {
  struct Row {
    std::string name;
    HfModel model;
    bool has_bias;
    std::string adapters;
    int64_t num_merged;
  };
  const std::vector<Row> rows = {
      {"llama", {}, false, "[{match:\"layers.*.mixer.q\",rank:3,alpha:5},{match:\"layers.*\",rank:2}]", 14},
      {"qwen2", {.family = "qwen2"}, true, "[{match:\"layers.1.mixer.?\",rank:1,alpha:0.5}]", 3},
      {"gpt2",
       {.family = "gpt2", .heads = 4, .kv_heads = 4, .head_dim = 4, .is_tied = true},
       false,
       "[{match:\"layers.*\"}]",
       12},
      {"qwen3_next",
       {.family = "qwen3_next", .layers = 2, .head_dim = 8, .is_linear = {true, false}, .rotated = 4},
       false,
       "[{match:\"layers.*.mixer.q\",rank:1},{match:\"layers.*.mixer.gate*\"},{match:\"layers.0.mixer.v\"}]",
       5}};
  for (const Row& row : rows) {
    const std::string run = temp_ / (row.name + "-run"), out = temp_ / (row.name + "-out");
    HfFolder(row.model, row.has_bias).write(temp_ / row.name);
    import_folder(
        {.folder = temp_ / row.name, .run = run, .overrides = {"model.adapter=" + row.adapters}, .is_partial = true});
    const std::vector<float> before = logits_of(run, kIds);
    test::train_adapters(run);
    const std::vector<float> adapted = logits_of(run, kIds);
    EXPECT_EQ(error_of([&] { export_run({.run = run, .folder = out}); }, {"model.adapter", "--merge-adapters"}), "");
    EXPECT_FALSE(io::file_exists(out)) << row.name;
    const Exported done = export_run({.run = run, .folder = out, .merges_adapters = true});
    EXPECT_EQ(done.num_merged, row.num_merged) << row.name;
    const Imported again = import_folder({.folder = out, .run = temp_ / (row.name + "-again")});
    EXPECT_TRUE(again.report.is_complete()) << to_string(again.report);
    const std::vector<float> merged = logits_of(temp_ / (row.name + "-again"), kIds);
    double largest = 0, moved = 0;
    for (size_t i = 0; i < merged.size(); ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(adapted[i])));
      moved = std::max(moved, std::abs(static_cast<double>(adapted[i] - before[i])));
    }
    EXPECT_GT(moved, 0.01) << row.name;
    expect_same(merged, adapted, static_cast<float>(1e-5 * (1 + largest)), row.name);
  }
  HfFolder({}, false).write(temp_ / "plain");
  import_folder({.folder = temp_ / "plain", .run = temp_ / "plain-run"});
  EXPECT_EQ(error_of([&] { export_run({.run = temp_ / "plain-run", .folder = temp_ / "x", .merges_adapters = true}); },
                     {"no adapters", "Leave --merge-adapters out"}),
            "");
}

// Kimi Delta Attention has a bias in its gate here, and none there.
TEST_F(HuggingFace, AGateBiasThatIsNotZeroHasNoForm) {
  HfFolder({.family = "kimi_linear", .layers = 1, .kv_heads = 4, .is_linear = {true}, .rotated = 2}, false)
      .write(temp_ / "hf");
  import_folder({.folder = temp_ / "hf", .run = temp_ / "run"});
  const train::LoadedRun loaded = test::load_quietly(temp_ / "run");
  for (const NamedParam& p : loaded.model->params())
    if (p.name.ends_with("gate.bias")) p.param->set_value(Tensor::full(p.param->value().shape(), 0.5));
  const io::Checkpoint last = io::load_checkpoint(loaded.checkpoint);
  io::save_checkpoint(loaded.folder + "/checkpoints",
                      {.step = 1, .model = model_tensors(*loaded.model), .state = last.state, .config = last.config});
  EXPECT_EQ(error_of([&] { export_run({.run = temp_ / "run", .folder = temp_ / "out"}); },
                     {"layers.0.mixer.gate.bias", "kimi_linear", "0.5", "frozen"}),
            "");
  EXPECT_FALSE(io::file_exists(temp_ / "out"));
  export_run({.run = temp_ / "run@0", .folder = temp_ / "out"});
  // A default id would lie beyond a small vocabulary.
  const Json config = Json::parse(io::read_file(temp_ / "out/config.json"));
  for (const char* id : {"bos_token_id", "eos_token_id", "pad_token_id"})
    EXPECT_TRUE(config.contains(id) && config[id].is_null()) << id;
}

}  // namespace
}  // namespace weft::huggingface
