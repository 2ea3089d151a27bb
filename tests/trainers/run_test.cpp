// Whole runs through the command: training, evaluation, sampling, what a run leaves, bad input.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"
#include "weft/core/stream.h"
#include "weft/data/shards.h"
#include "weft/io/files.h"
#include "weft/io/metrics.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

class Run : public test::RunFixture {};

// Every kind of mixer, residual stream and feed-forward network trains from a config, takes diagnostics, decodes a sample, and goes on from a
// checkpoint to the same bits: buffers, routers' noise and fixed sequences included.
TEST_F(Run, TrainsEveryPartAndResumesItBitForBit) {
  const std::vector<std::string> umoe{"model.mixer={umoe{experts:4 active:2 query_rank:4}}",
                                      "model.ffn={umoe{active:3}}"};
  std::vector<std::vector<std::string>> parts{umoe};
  for (const char* mixer : {"softmax{heads:2 gate{} affine{} head_norm:true}",
                            "softmax{heads:4 head_mixture{active:2 shared:1 running_load:true}}",
                            "softmax{heads:2 weights{kind:sigmoid bias:none} score_shift:true}",
                            "softmax{heads:2 weights{kind:taylor2 divide_by_sum:true}}",
                            "mla{heads:2}",
                            "nexus{heads:2}",
                            "hopfield{heads:2}",
                            "dual{heads:1 relational_heads:1}",
                            "simplified{heads:2 kind:super}",
                            "deconstructed{}",
                            "deconstructed{kind:key_only heads:2}",
                            "deconstructed{kind:static_embedding heads:2}",
                            "deconstructed{kind:random_embedding heads:2}",
                            "deconstructed{kind:fixed_text heads:2}",
                            "tapa{heads:2}",
                            "neural{heads:2}",
                            "multi_token{heads:2 query_kernel:2 key_kernel:3}",
                            "rcmha{heads:2}",
                            "nap{heads:2}",
                            "relative_bias{heads:2}",
                            "moa{experts:4 active:2 noise:true}"})
    parts.push_back({std::string("model.mixer={") + mixer + "}"});
  for (const char* residual : {"attention{}", "attention{blocks:2}", "delta{}", "delta{states:true}"})
    parts.push_back({std::string("model.residual={") + residual + "}"});
  for (std::vector<std::string> more : parts) {
    SCOPED_TRACE(more[0]);
    fs::remove_all(folder_ / "a");
    for (const char* override : {"train.tokens=1280", "log.diagnostics_every=5", "log.analysis_every=4",
                                 "log.samples_every=0", "eval.every=0"})
      more.push_back(override);
    auto last = [&] { return path("a") + "/checkpoints/step-00000010"; };
    auto result = test::run_weft(train("a", more));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    std::string expected = io::read_file(last() + "/model.safetensors");
    bool has_diagnostics = false, has_analysis = false;
    for (const auto& record : io::read_metrics(path("a/metrics.jsonl"))) {
      has_diagnostics = has_diagnostics || record.kind == "diagnostics";
      has_analysis = has_analysis || record.kind == "analysis";
      for (const auto& [name, value] : record.values) EXPECT_TRUE(std::isfinite(value)) << name;
    }
    EXPECT_TRUE(has_diagnostics && has_analysis);
    fs::remove_all(last());
    result = test::run_weft(train("a", more));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.err.find("resumed at step 5"), std::string::npos) << result.err;
    EXPECT_EQ(io::read_file(last() + "/model.safetensors") == expected, true);
  }
}

// A traced step leaves a file with the parts of the step; a run from before a field had been thought of goes on.
TEST_F(Run, TracesAStep) {
  auto result = test::run_weft(train("a", {"log.trace_step=3", "log.trace_steps=2", "train.tokens=1280"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_FALSE(io::file_exists(path("a/trace/step-00000002.json")));
  EXPECT_TRUE(io::file_exists(path("a/trace/step-00000004.json")));
  EXPECT_FALSE(io::file_exists(path("a/trace/step-00000005.json")));
  const std::string trace = io::read_file(path("a/trace/step-00000003.json"));
  for (const char* name :
       {"\"forward\"", "\"backward\"", "\"update\"", "\"model.layers.0.mixer", "\"gradient of embedding.weight\""})
    EXPECT_NE(trace.find(name), std::string::npos) << name;
  const std::string shares = io::read_file(path("a/trace/step-00000003.txt"));
  for (const char* part : {"  backward matmul\n", "  forward attention\n", "  update", "  all others\n"})
    EXPECT_NE(shares.find(part), std::string::npos) << shares;
  // The feed-forward network's gradients are final before backward reaches the mixer.
  EXPECT_LT(trace.find("\"gradient of layers.0.ffn"), trace.find("\"gradient of layers.0.mixer")) << trace;

  std::string config = io::read_file(path("a/config.txtpb"));
  const size_t at = config.find("  attention: automatic\n");
  ASSERT_NE(at, std::string::npos) << config;
  io::write_file_atomically(path("a/config.txtpb"), config.erase(at, std::string("  attention: automatic\n").size()));
  result = test::run_weft(train("a", {"train.tokens=1280"}));
  EXPECT_EQ(result.exit_code, 0) << result.err;
}

// A fixed first token is an id more, in training, evaluation and sampling; not with several documents in a row. The finished run can be
// analysed.
TEST_F(Run, FirstTokenAndAnalysis) {
  auto result = test::run_weft(train("a", {"data.first_token=true", "--json"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  auto sampled = test::run_weft({"sample", path("a"), "--prompt", "line", "--tokens", "60"});
  EXPECT_EQ(sampled.exit_code, 0) << sampled.err;
  auto evaluated = test::run_weft({"eval", path("a"), "--json"});
  EXPECT_EQ(evaluated.exit_code, 0) << evaluated.err;
  auto analysed = test::run_weft({"analyse", path("a"), "--json"});
  ASSERT_EQ(analysed.exit_code, 0) << analysed.err;
  for (const char* name :
       {"model.layers.0.mixer.head_importance/1", "pruned_loss/50", "secondary_sinks", "rollout/0", "flow/31"})
    EXPECT_NE(analysed.out.find(name), std::string::npos) << name;
  EXPECT_TRUE(io::file_exists(path("a/eval/analysis-00000040.json")));

  write("text2.txt", "another document\n");
  write("documents.txtpb", R"(
model { dim: 16 layers: 1 context: 32 mixer { softmax { heads: 2 } } }
data { tokenizer { bytes {} } first_token: true train { path: "text*.txt" } val { fraction: 0.1 } }
train { tokens: 1280 tokens_per_step: 128 micro_batch: 2 }
)");
  result = test::run_weft({"train", path("documents.txtpb"), "--run", path("b")});
  EXPECT_NE(result.exit_code, 0);
  EXPECT_NE(result.err.find("data.document_mask=false"), std::string::npos) << result.err;
}

TEST_F(Run, LeavesWhatTheDocumentsPromise) {
  auto result = test::run_weft(train("a", {"--json"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* name :
       {"config.txtpb", "overrides.txt", "environment.txtpb", "metrics.jsonl", "log.txt", "samples.txt", "report.html",
        "checkpoints/latest", "checkpoints/step-00000040/model.safetensors"})
    EXPECT_TRUE(io::file_exists(path("a/") + name)) << name;
  EXPECT_NE(result.out.find("\"val_loss\""), std::string::npos) << result.out;
  auto records = io::read_metrics(path("a/metrics.jsonl"));
  EXPECT_EQ(records.back().kind, "val");
  EXPECT_EQ(records.back().step, 40);
  double first = records.front().value("train/loss").value(),
         last = records[records.size() - 2].value("train/loss").value();
  EXPECT_LT(last, first - 0.3);

  auto evaluated = test::run_weft({"eval", path("a"), "--lengths", "16,32", "--json"});
  EXPECT_EQ(evaluated.exit_code, 0) << evaluated.err;
  EXPECT_NE(evaluated.out.find("\"length\": 16"), std::string::npos);
  auto sampled = test::run_weft({"sample", path("a"), "--prompt", "line", "--tokens", "20", "--n", "2"});
  EXPECT_EQ(sampled.exit_code, 0) << sampled.err;
  EXPECT_EQ(sampled.out.substr(0, 4), "line");
  EXPECT_EQ(test::run_weft({"sample", path("a"), "--prompt", "line", "--tokens", "20", "--n", "2"}).out, sampled.out);
  auto inspected = test::run_weft({"inspect", path("a")});
  EXPECT_EQ(inspected.exit_code, 0) << inspected.err;
  EXPECT_NE(inspected.out.find("val/loss"), std::string::npos);
}

TEST_F(Run, RefusesBadInputWithTheRightCode) {
  auto expect = [](const test::ProcessResult& result, int code, const std::string& text) {
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_NE(result.err.find(text), std::string::npos) << result.err;
  };
  ASSERT_EQ(test::run_weft(train("a")).exit_code, 0);
  expect(test::run_weft(train("a", {"optim.group[1].adamw.lr=1e-4"})), 2, "optim.group[1].adamw.lr");
  expect(test::run_weft(train("a", {"--resume", "never"})), 1, "already holds checkpoints");
  expect(test::run_weft(train("b", {"data.train.path=" + path("absent.txt")})), 1, "absent.txt");
  if (num_cuda_devices() == 0) expect(test::run_weft(train("c", {"train.device=cuda"})), 2, "no CUDA");
  expect(test::run_weft(train("d", {"model.mixer[0].softmax.heads=3"})), 2, "heads");
  expect(test::run_weft(train("e", {"--ranks", "2"})), 2, "= 1 rank.");
  expect(test::run_weft({"train", path("tiny.txtpb"), "--run", "/proc/weft"}), 1, "/proc/weft");
  expect(test::run_weft({"eval", path("nothing")}), 2, "is not a run");
  expect(test::run_weft({"inspect", path("text.txt")}), 2, "unknown kind");
  expect(test::run_weft({"gradcheck", "--mixer", "nonsense"}), 2, "no such mixer");
  write("bad.bin", std::string("\x88\xd8\x34\x01", 4) + std::string(1100, '\0'));
  expect(test::run_weft({"data", "info", path("bad.bin")}), 1, "bad.bin");
  EXPECT_EQ(test::run_weft({"data", "check", path("bad.bin")}).exit_code, 4);
}

TEST_F(Run, RefusesSizesThatNoMachineHolds) {
  auto refused = [&](const std::vector<std::string>& overrides, const std::string& text) {
    auto result = test::run_weft(train("huge", overrides));
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_NE(result.err.find(text), std::string::npos) << result.err;
  };
  refused({"train.micro_batch=9223372036854775807"},
          "train.micro_batch is 9223372036854775807, outside the allowed range");
  refused({"train.tokens_per_step=9223372036854775807"}, "outside the allowed range");
  refused({"model.layers=1000000000"}, "outside the allowed range");
  refused({"model.layers=60000", "model.dim=100000"}, "its matrices alone need");
}

// 30 documents, then 3000 of one token each, which marks a document and has no target.
TEST_F(Run, StepsWithoutTargetsAreCountedLikeOthers) {
  std::vector<int32_t> ids;
  for (int i = 0; i < 30; ++i) {
    ids.push_back(0);
    ids.insert(ids.end(), 20, 65);
  }
  ids.insert(ids.end(), 3000, 0);
  data::ShardWriter writer(path("ends.bin"), data::ShardKind::header, 2);
  writer.append(ids);
  writer.close();
  const std::vector<std::string> more{"data.tokenizer={bytes{}}", "data.train.path=" + path("ends.bin"),
                                      "data.end_of_text=0",       "log.every=1",
                                      "log.analysis_every=5",     "log.sample_prompt=A",
                                      "train.tokens_per_step=64", "train.tokens=2560"};
  auto expect_whole = [&](const std::string& run) {
    int64_t with_loss = 0, without = 0, validations = 0;
    for (const auto& record : io::apply_rewinds(io::read_metrics(path(run) + "/metrics.jsonl"))) {
      if (record.kind == "val") ++validations;
      if (record.kind == "val") { EXPECT_FALSE(record.value("val/loss")) << "the last tenth has no target"; }
      if (record.kind != "train") continue;
      double loss = record.value("train/loss").value();
      loss == 0 ? ++without : ++with_loss;
      if (loss == 0) { EXPECT_EQ(record.value("train/grad_norm").value(), 0); }
      if (loss == 0) { EXPECT_FALSE(record.value("train/bpb")); }
    }
    EXPECT_GT(with_loss, 0);
    EXPECT_GT(without, 0);
    EXPECT_EQ(with_loss + without, 40);
    EXPECT_EQ(validations, 4) << "each is recorded once, without a loss";
  };
  auto result = test::run_weft(train("whole", more));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("none of the tokens has a target"), std::string::npos) << result.err;
  expect_whole("whole");
  result = test::run_weft(train("whole", more));
  EXPECT_NE(result.err.find("nothing to do: the run is done"), std::string::npos) << result.err;
  expect_whole("whole");
  auto parts = more;
  parts.push_back("train.max_seconds=0.0001");
  EXPECT_EQ(test::run_weft(train("parts", parts)).exit_code, 3);
  ASSERT_EQ(test::run_weft(train("parts", more)).exit_code, 0);
  expect_whole("parts");
  EXPECT_TRUE(weights("whole") == weights("parts"));
}

TEST_F(Run, EveryOptimiserTrainsAndResumesToTheSameBits) {
  for (const char* optimiser : {"lion{}", "sgd{nesterov:true}", "sgd{momentum:0}", "schedule_free{}"}) {
    SCOPED_TRACE(optimiser);
    fs::remove_all(folder_ / "whole");
    fs::remove_all(folder_ / "parts");
    std::vector<std::string> more{std::string("optim.group=[{") + optimiser + "}]",
                                  "optim.schedule={inverse_sqrt{warmup:4}}", "train.compute=bf16"};
    auto result = test::run_weft(train("whole", more));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    auto records = io::read_metrics(path("whole/metrics.jsonl"));
    EXPECT_LT(records[records.size() - 2].value("train/loss").value(), records.front().value("train/loss").value());
    auto stopped = more;
    stopped.push_back("train.max_seconds=0.0001");
    ASSERT_EQ(test::run_weft(train("parts", stopped)).exit_code, 3);
    ASSERT_EQ(test::run_weft(train("parts", more)).exit_code, 0);
    EXPECT_TRUE(weights("whole") == weights("parts"));
    EXPECT_TRUE(moments("whole") == moments("parts"));
    // What was validated at the end is what the checkpoint holds.
    double last = records.back().value("val/loss").value();
    auto evaluated = test::run_weft({"eval", path("whole"), "--json"});
    ASSERT_EQ(evaluated.exit_code, 0) << evaluated.err;
    size_t at = evaluated.out.find("\"loss\": ");
    ASSERT_NE(at, std::string::npos) << evaluated.out;
    EXPECT_NEAR(std::stod(evaluated.out.substr(at + 8)), last, 1e-9);
  }
}

TEST_F(Run, RefusesAMicroBatchThatDoesNotFitAndNamesTheLargest) {
  auto result = test::run_weft(train("a", {"train.micro_batch=1048576", "train.tokens_per_step=33554432",
                                           "train.tokens=33554432", "model.dim=256", "model.layers=8"}));
  EXPECT_EQ(result.exit_code, 2) << result.err;
  for (const char* part :
       {"train.micro_batch is 1048576: a step takes ", " GiB of memory", " MiB, gradients ", "activations",
        " GiB are left on cpu", "Use train.micro_batch=", "the largest that fits", "train.recompute=blocks"})
    EXPECT_NE(result.err.find(part), std::string::npos) << part << "\n" << result.err;
}

TEST_F(Run, SaysThePeakBeforeAndAfter) {
  auto result = test::run_weft(train("a", {"--json"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find(" KiB (weights "), std::string::npos) << result.err;
  EXPECT_NE(result.err.find(" MiB (predicted "), std::string::npos) << result.err;
  EXPECT_NE(io::read_file(path("a/report.html")).find("predicted peak"), std::string::npos);
  auto number = [&](const std::string& name) {
    size_t at = result.out.find("\"" + name + "\": ");
    return at == std::string::npos ? 0 : std::stod(result.out.substr(at + name.size() + 4));
  };
  EXPECT_NEAR(number("predicted_peak_bytes") / number("peak_bytes"), 1, 0.03) << result.out;
}

TEST_F(Run, EvaluatesOtherTextsWithoutTouchingItsOwn) {
  ASSERT_EQ(test::run_weft(train("a")).exit_code, 0);
  auto loss = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words{"eval", path("a"), "--json"};
    words.insert(words.end(), more.begin(), more.end());
    auto result = test::run_weft(words);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out;
  };
  std::string own = loss({});
  write("x.txt", std::string(500, 'x') + "line 1 of a text\n");
  write("y.txt", "line 12 of a text that repeats itself\nline 13 of a text that repeats itself\n");
  std::string x = loss({"data.val.path=" + path("x.txt")}), y = loss({"data.val.path=" + path("y.txt")});
  EXPECT_NE(x, own);
  EXPECT_NE(y, own);
  EXPECT_NE(x, y);
  EXPECT_EQ(loss({}), own);
  EXPECT_EQ(test::run_weft({"eval", path("a"), "data.tokenizer={bytes{}}"}).exit_code, 2);
  EXPECT_EQ(test::run_weft({"eval", path("a"), "--lengths", "0"}).exit_code, 2);
  EXPECT_EQ(test::run_weft({"sample", path("a"), "--top-p", "0"}).exit_code, 2);
  auto info = test::run_weft({"data", "info", path("a/data/train-0_000000.bin"), "--json"});
  EXPECT_EQ(info.exit_code, 0) << info.err;
  EXPECT_EQ(info.out.substr(0, 1), "{");
}

// A run keeps its own shards: evaluation and samples need neither the text nor the folder's old name.
TEST_F(Run, CanBeMovedAndReadWithoutItsText) {
  ASSERT_EQ(test::run_weft(train("a")).exit_code, 0);
  auto before = test::run_weft({"eval", path("a"), "--json"});
  ASSERT_EQ(before.exit_code, 0) << before.err;
  fs::remove(folder_ / "text.txt");
  fs::rename(folder_ / "a", folder_ / "b");
  auto after = test::run_weft({"eval", path("b"), "--json"});
  EXPECT_EQ(after.exit_code, 0) << after.err;
  EXPECT_EQ(after.out.substr(after.out.find("step")), before.out.substr(before.out.find("step")));
  EXPECT_EQ(test::run_weft({"sample", path("b"), "--prompt", "line", "--tokens", "5"}).exit_code, 0);
  for (const auto& entry : fs::directory_iterator(folder_ / "b"))
    if (entry.path().filename().string().find("tfevents") != std::string::npos) {
      auto events = test::run_weft({"inspect", entry.path().string()});
      EXPECT_EQ(events.exit_code, 0) << events.err;
      EXPECT_NE(events.out.find("train/loss"), std::string::npos) << events.out;
    }
  write("text.txt", "another text\n");
  auto trained = test::run_weft({"train", path("tiny.txtpb"), "--run", path("b")});
  EXPECT_EQ(trained.exit_code, 1) << trained.err;
  EXPECT_NE(trained.err.find("text.txt has changed"), std::string::npos) << trained.err;
}

TEST_F(Run, BenchComparesRatiosWithABaseline) {
  auto measured = test::run_weft({"bench", "call", "--quick", "--json"});
  ASSERT_EQ(measured.exit_code, 0) << measured.err;
  auto with_ratios = [&](const std::string& ratio) {
    std::string text = measured.out;
    for (size_t at = 0; (at = text.find("\"ratio\": ", at)) != std::string::npos;) {
      at += 9;
      text.replace(at, text.find_first_of(",}\n", at) - at, ratio);
    }
    return text;
  };
  write("easy.json", with_ratios("0"));
  write("hard.json", with_ratios("1e9"));
  EXPECT_EQ(test::run_weft({"bench", "call", "--quick", "--baseline", path("easy.json")}).exit_code, 0);
  auto slower = test::run_weft({"bench", "call", "--quick", "--baseline", path("hard.json")});
  EXPECT_EQ(slower.exit_code, 4);
  EXPECT_NE(slower.err.find("slower: add"), std::string::npos) << slower.err;
  write("foreign.json", R"({"rows": [{"name": 3}]})");
  EXPECT_EQ(test::run_weft({"bench", "call", "--baseline", path("foreign.json")}).exit_code, 2);
  EXPECT_EQ(test::run_weft({"bench", "nonsense"}).exit_code, 2);
}

TEST_F(Run, GradcheckPassesForEveryMixer) {
  auto result = test::run_weft({"gradcheck", "--mixer", "all", "--shapes", "fuzz:1"});
  EXPECT_EQ(result.exit_code, 0) << result.out;
  EXPECT_NE(result.out.find("gqa"), std::string::npos);
}

}  // namespace
}  // namespace weft
