// Checkpoints: round trip, damage, death and full disk at every write, fall back, retention.
#include "weft/io/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "tests/io/faults.h"
#include "tests/io/temp_folder.h"
#include "tests/support/random.h"

namespace weft::io {
namespace {

using test::error_of;
using test::expect_parts;
using test::Fault;
using test::TempFolder;

CheckpointData make_data(int64_t step) {
  Tensor w = Tensor::full({3, 5}, static_cast<double>(step)), m = Tensor::full({3, 5}, 0.5 + static_cast<double>(step));
  return {.step = step,
          .tokens = step * 100,
          .mesh = {{"data", 2}, {"context", 1}},
          .model = {{"layers.0.w", w}, {"layers.0.b", Tensor::from({BFloat16(1.0f)}, {1})}},
          .optimizer = {{"m.layers.0.w", m}},
          .state = str("state of ", step),
          .config = "model {}\n"};
}

void expect_is(const Checkpoint& checkpoint, int64_t step) {
  EXPECT_EQ(checkpoint.info.step, step);
  EXPECT_EQ(checkpoint.info.tokens, step * 100);
  EXPECT_EQ(checkpoint.state, str("state of ", step));
  EXPECT_EQ(checkpoint.config, "model {}\n");
  EXPECT_EQ(checkpoint.model.load("layers.0.w").to_vector<float>(), std::vector<float>(15, static_cast<float>(step)));
  EXPECT_EQ(checkpoint.optimizer.load("m.layers.0.w").to_vector<float>(),
            std::vector<float>(15, 0.5f + static_cast<float>(step)));
}

// Exit code of `body` in a child process, -1 if a signal ended it.
int in_child(const std::function<int()>& body) {
  pid_t pid = ::fork();
  if (pid == 0) ::_exit(body());
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void overwrite(const std::string& path, const std::function<void(std::string&)>& change) {
  std::string bytes = read_file(path);
  change(bytes);
  FileWriter writer(path);
  writer.write(bytes);
  writer.commit();
}

bool has_litter(const std::string& folder) {
  auto names = list_folder(folder);
  return std::any_of(names.begin(), names.end(), [](const std::string& name) { return name.ends_with(".partial"); });
}

TEST(Checkpoint, RoundTripsEverything) {
  TempFolder folder;
  std::string root = folder / "run/checkpoints";
  std::string path = save_checkpoint(root, make_data(1000));
  EXPECT_EQ(path, root + "/step-00001000");
  EXPECT_EQ(read_file(root + "/latest"), "step-00001000\n");
  EXPECT_EQ(list_folder(path), (std::vector<std::string>{"config.txtpb", "manifest", "model.safetensors",
                                                         "optimizer-0000-of-0001.safetensors", "state"}));
  Checkpoint checkpoint = load_checkpoint(path);
  expect_is(checkpoint, 1000);
  ASSERT_EQ(checkpoint.info.mesh.size(), 2u);
  EXPECT_EQ(checkpoint.info.mesh[0].name, "data");
  EXPECT_EQ(checkpoint.info.mesh[0].size, 2);
  ASSERT_EQ(checkpoint.info.tensors.size(), 3u);
  EXPECT_EQ(checkpoint.info.tensors[0].name, "layers.0.w");
  EXPECT_EQ(checkpoint.info.tensors[0].dtype, "F32");
  EXPECT_EQ(checkpoint.info.tensors[0].shard_end, (std::vector<int64_t>{3, 5}));
  EXPECT_EQ(checkpoint.info.files.size(), 4u);
}

TEST(Checkpoint, SavingAStepAgainReplacesIt) {
  TempFolder folder;
  save_checkpoint(folder.path(), make_data(5));
  CheckpointData data = make_data(5);
  data.state = "other";
  EXPECT_EQ(load_checkpoint(save_checkpoint(folder.path(), data)).state, "other");
  EXPECT_FALSE(has_litter(folder.path()));
}

TEST(Checkpoint, WithoutOptimizerKeepsAllElse) {
  TempFolder folder;
  const std::string path = save_checkpoint(folder.path(), make_data(5));
  save_checkpoint(folder.path(), make_data(6));
  EXPECT_TRUE(has_optimizer(read_checkpoint_info(path)));
  const std::string weights = read_file(path + "/model.safetensors");
  drop_optimizer(path);
  const Checkpoint checkpoint = load_checkpoint(path);
  EXPECT_FALSE(has_optimizer(checkpoint.info));
  EXPECT_TRUE(checkpoint.optimizer.tensors().empty());
  EXPECT_EQ(read_file(path + "/model.safetensors"), weights);
  EXPECT_EQ(checkpoint.state, make_data(5).state);
  EXPECT_EQ(checkpoint.config, make_data(5).config);
  EXPECT_EQ(checkpoint.info.mesh.size(), 2u);
  EXPECT_EQ(read_file(folder / "latest"), "step-00000006\n");
  EXPECT_FALSE(has_litter(folder.path()));
  drop_optimizer(path);  // once more changes nothing
  EXPECT_FALSE(has_optimizer(read_checkpoint_info(path)));
}

TEST(Checkpoint, EveryFlippedByteIsFoundAndNamed) {
  TempFolder folder;
  std::string path = save_checkpoint(folder.path(), make_data(7));
  for (const std::string& name : list_folder(path)) {
    std::string good = read_file(path + "/" + name);
    for (size_t at = 0; at < good.size(); at += good.size() / 23 + 1) {
      overwrite(path + "/" + name, [&](std::string& bytes) { bytes[at] = static_cast<char>(bytes[at] ^ 0x10); });
      expect_parts(error_of([&] { load_checkpoint(path); }), {path, name, "use another checkpoint"});
    }
    overwrite(path + "/" + name, [&](std::string& bytes) { bytes = good; });
  }
  expect_is(load_checkpoint(path), 7);
}

TEST(Checkpoint, DamageNamesTheTensor) {
  TempFolder folder;
  std::string path = save_checkpoint(folder.path(), make_data(7)), model = path + "/model.safetensors",
              good = read_file(model);
  overwrite(model, [](std::string& bytes) { bytes[bytes.size() - 1] ^= 1; });
  expect_parts(error_of([&] { load_checkpoint(path); }),
               {"model.safetensors has a wrong checksum", "first damaged tensor is 'layers.0.b'"});
  overwrite(model, [&](std::string& bytes) { bytes = good.substr(0, good.size() - 10); });
  expect_parts(error_of([&] { load_checkpoint(path); }),
               {"model.safetensors has", "the manifest says", "'layers.0.w'"});
  overwrite(model, [&](std::string& bytes) { (bytes = good)[9] = 'x'; });
  expect_parts(error_of([&] { load_checkpoint(path); }),
               {"wrong checksum; all tensors are whole, the header is damaged"});
}

TEST(Checkpoint, TruncatedAndMissingFilesAreNamed) {
  TempFolder folder;
  for (const char* name :
       {"manifest", "model.safetensors", "optimizer-0000-of-0001.safetensors", "state", "config.txtpb"}) {
    std::string path = save_checkpoint(folder.path(), make_data(1));
    overwrite(path + "/" + name, [](std::string& bytes) { bytes.resize(bytes.size() / 2); });
    expect_parts(error_of([&] { load_checkpoint(path); }), {path, name});
    remove_folder(path + "/" + name);
    expect_parts(error_of([&] { load_checkpoint(path); }), {path, name});
  }
  expect_parts(error_of([&] { load_checkpoint(folder / "nothing"); }), {"there is no manifest", "give a folder like"});
}

TEST(Checkpoint, KillAtEveryWriteLeavesAGoodCheckpointToResumeFrom) {
  for (int64_t next : {20, 10}) {  // a new step, and one that replaces a folder that is there
    TempFolder folder;
    save_checkpoint(folder.path(), make_data(10));
    bool has_finished = false;
    for (int at = 0; !has_finished; ++at) {
      ASSERT_LT(at, 200);
      has_finished = 0 == in_child([&] {
                       test::set_fault(Fault::kill, at);
                       save_checkpoint(folder.path(), make_data(next));
                       return 0;
                     });
      std::vector<std::string> messages;
      auto found = load_latest_checkpoint(folder.path(), messages);
      ASSERT_TRUE(found) << "killed at call " << at;
      EXPECT_TRUE(messages.empty()) << messages[0];
      expect_is(*found, found->info.step == next ? next : 10);
      if (has_finished) { EXPECT_EQ(found->info.step, next); }
      if (found->info.step == 20) break;
    }
    std::vector<std::string> messages;
    save_checkpoint(folder.path(), make_data(30));  // what the dead process left is in nobody's way
    expect_is(*load_latest_checkpoint(folder.path(), messages), 30);
    prune_checkpoints(folder.path(), {});
    EXPECT_FALSE(has_litter(folder.path()));
  }
}

TEST(Checkpoint, FullDiskAtEveryWriteIsOneErrorAndLosesNothing) {
  TempFolder folder;
  save_checkpoint(folder.path(), make_data(10));
  test::set_fault(Fault::none, 0);
  bool has_finished = false;
  int num_failures = 0;
  for (int at = 0; !has_finished; ++at) {
    ASSERT_LT(at, 200);
    test::set_fault(Fault::disk_full, at);
    try {
      save_checkpoint(folder.path(), make_data(20));
      has_finished = true;
    } catch (const Error& error) {
      expect_parts(error.what(), {"No space left on device", "free some disk space"});
      ++num_failures;
    }
    test::set_fault(Fault::none, 0);
    EXPECT_FALSE(has_litter(folder.path())) << "at call " << at;
    std::vector<std::string> messages;
    auto found = load_latest_checkpoint(folder.path(), messages);
    ASSERT_TRUE(found);
    EXPECT_TRUE(messages.empty());
    expect_is(*found, has_finished ? 20 : 10);
  }
  EXPECT_GT(num_failures, 8);
}

TEST(Checkpoint, UnwritableFolderIsOneError) {
  TempFolder folder;
  ::chmod(folder.path().c_str(), 0555);
  EXPECT_EQ(0, in_child([&] {
              if (::geteuid() == 0 && ::seteuid(65534) != 0) return 2;
              try {
                save_checkpoint(folder.path() + "/checkpoints", make_data(1));
              } catch (const Error& error) {
                return std::string(error.what()).find("Permission denied") != std::string::npos ? 0 : 3;
              }
              return 4;
            }));
  ::chmod(folder.path().c_str(), 0755);
}

TEST(Checkpoint, FallsBackToTheLastGoodOneAndSaysWhy) {
  TempFolder folder;
  for (int64_t step : {10, 20, 30}) save_checkpoint(folder.path(), make_data(step));
  overwrite(checkpoint_path(folder.path(), 30) + "/model.safetensors", [](std::string& bytes) { bytes.back() ^= 1; });
  std::vector<std::string> messages;
  auto found = load_latest_checkpoint(folder.path(), messages);
  expect_is(*found, 20);
  ASSERT_EQ(messages.size(), 2u);
  expect_parts(messages[0], {"step-00000030", "model.safetensors has a wrong checksum", "'layers.0.b'"});
  expect_parts(messages[1], {"falling back", "step-00000020"});
  messages.clear();
  EXPECT_EQ(find_latest_checkpoint(folder.path(), messages), checkpoint_path(folder.path(), 20));
}

TEST(Checkpoint, LatestDecidesOverHigherStepsOfAnAbandonedBranch) {
  TempFolder folder;
  std::vector<std::string> messages;
  for (int64_t step : {10, 30, 20}) save_checkpoint(folder.path(), make_data(step));
  EXPECT_EQ(load_latest_checkpoint(folder.path(), messages)->info.step, 20);
  remove_folder(folder / "latest");
  EXPECT_EQ(load_latest_checkpoint(folder.path(), messages)->info.step, 30);
  EXPECT_TRUE(messages.empty());
  write_file_atomically(folder / "latest", "../../etc\n");
  EXPECT_EQ(load_latest_checkpoint(folder.path(), messages)->info.step, 30);
  expect_parts(messages.at(0), {"latest names no checkpoint: '../../etc'"});
  messages.clear();
  write_file_atomically(folder / "latest", "step-00000025\n");
  EXPECT_EQ(load_latest_checkpoint(folder.path(), messages)->info.step, 20);
  expect_parts(messages.at(0), {"step-00000025, which is not there"});
}

TEST(Checkpoint, NoneIsNoErrorButOnlyDamagedOnesAre) {
  TempFolder folder;
  std::vector<std::string> messages;
  EXPECT_FALSE(load_latest_checkpoint(folder / "none", messages));
  make_folders(folder / "step-00000001.partial");
  EXPECT_FALSE(load_latest_checkpoint(folder.path(), messages));
  EXPECT_TRUE(messages.empty());
  save_checkpoint(folder.path(), make_data(3));
  overwrite(checkpoint_path(folder.path(), 3) + "/manifest", [](std::string& bytes) { bytes[0] ^= 1; });
  expect_parts(error_of([&] { load_latest_checkpoint(folder.path(), messages); }),
               {"none of 1 is good", "manifest is damaged", "another run folder"});
}

TEST(Checkpoint, RetentionKeepsTheLastEveryNthAndTheBest) {
  TempFolder folder;
  for (int64_t step = 100; step <= 1000; step += 100) save_checkpoint(folder.path(), make_data(step));
  auto removed = prune_checkpoints(folder.path(), {.keep_last = 2, .keep_every = 500, .best_step = 300});
  EXPECT_EQ(removed, (std::vector<int64_t>{100, 200, 400, 600, 700, 800}));
  EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<int64_t>{300, 500, 900, 1000}));
  EXPECT_TRUE(prune_checkpoints(folder.path(), {.keep_last = 4}).empty());
  save_checkpoint(folder.path(), make_data(550));  // the run went back to 500
  EXPECT_EQ(prune_checkpoints(folder.path(), {.keep_last = 1}), (std::vector<int64_t>{300, 500}));
  EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<int64_t>{550, 900, 1000}));
  expect_parts(error_of([&] { prune_checkpoints(folder.path(), {.keep_last = 0}); }),
               {"keep_last is 0", "keep at least one"});
}

TEST(Checkpoint, KillWhilePruningLeavesNoDamagedCheckpoint) {
  TempFolder folder;
  bool has_finished = false;
  for (int at = 0; !has_finished; ++at) {
    ASSERT_LT(at, 100);
    for (int64_t step : {1, 2}) save_checkpoint(folder.path(), make_data(step));
    has_finished = 0 == in_child([&] {
                     test::set_fault(Fault::kill, at);
                     prune_checkpoints(folder.path(), {.keep_last = 1});
                     return 0;
                   });
    for (int64_t step : list_checkpoints(folder.path()))
      expect_is(load_checkpoint(checkpoint_path(folder.path(), step)), step);
  }
}

TEST(Checkpoint, LeftOversOfACutPruneAreRemoved) {
  TempFolder folder;
  save_checkpoint(folder.path(), make_data(5));
  make_folders(folder / "step-00000003.removed.partial");
  write_file_atomically(folder / "step-00000003.removed.partial/model.safetensors", "half");
  write_file_atomically(folder / "latest.partial", "step-000");
  write_file_atomically(folder / "notes.partial", "somebody else's");
  remove_partial_checkpoints(folder.path());
  EXPECT_EQ(list_folder(folder.path()), (std::vector<std::string>{"latest", "notes.partial", "step-00000005"}));
  remove_partial_checkpoints(folder / "absent");
}

TEST(Checkpoint, MarksWhatIsNotFinite) {
  TempFolder folder;
  CheckpointData data = make_data(1);
  EXPECT_TRUE(read_checkpoint_info(save_checkpoint(folder.path(), data)).is_finite());
  const float inf = INFINITY, nan = NAN;
  const Tensor broken[] = {
      Tensor::from({1.0f, inf, -inf, 0.0f, nan}, {5}),
      Tensor::from({1.0, double(inf), -double(inf), 1e300, double(nan)}, {5}),
      Tensor::from({BFloat16(1.0f), BFloat16(inf), BFloat16(-inf), BFloat16(3e38f), BFloat16(nan)}, {5})};
  for (const Tensor& tensor : broken) {
    data.model = {{"fine", Tensor::full({3}, 1.0, tensor.dtype())}, {"broken", tensor}};
    CheckpointInfo info = read_checkpoint_info(save_checkpoint(folder.path(), data));
    EXPECT_FALSE(info.is_finite());
    for (const auto& stored : info.tensors) {
      if (stored.name == "broken") { EXPECT_EQ(stored.num_not_finite, 3); }
      if (stored.name == "fine") { EXPECT_EQ(stored.num_not_finite, 0); }
    }
  }
}

TEST(Checkpoint, TheLastFiniteOneIsNeverPruned) {
  TempFolder folder;
  for (int64_t step : {10, 20}) save_checkpoint(folder.path(), make_data(step));
  for (int64_t step : {30, 40, 50}) {
    CheckpointData data = make_data(step);
    data.model.push_back({"broken", Tensor::full({1}, NAN)});
    save_checkpoint(folder.path(), data);
    prune_checkpoints(folder.path(), {.keep_last = 1});
    EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<int64_t>{20, step}));
    EXPECT_EQ(last_finite_checkpoint(folder.path()), 20);
  }
  save_checkpoint(folder.path(), make_data(60));
  prune_checkpoints(folder.path(), {.keep_last = 1});
  EXPECT_EQ(list_checkpoints(folder.path()), std::vector<int64_t>{60});
}

TEST(Checkpoint, GoingBackSetsLaterOnesAside) {
  TempFolder folder;
  for (int64_t step : {10, 20, 30, 40}) save_checkpoint(folder.path(), make_data(step));
  std::vector<std::string> messages;
  auto places = set_aside_checkpoints(folder.path(), 20);
  EXPECT_EQ(places, (std::vector<std::string>{checkpoint_path(folder / "set-aside", 30),
                                              checkpoint_path(folder / "set-aside", 40)}));
  EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<int64_t>{10, 20}));
  expect_is(*load_latest_checkpoint(folder.path(), messages), 20);
  expect_is(load_checkpoint(places[1]), 40);
  EXPECT_TRUE(set_aside_checkpoints(folder.path(), 20).empty());
  save_checkpoint(folder.path(), make_data(30));
  EXPECT_EQ(set_aside_checkpoints(folder.path(), 10).back(), checkpoint_path(folder / "set-aside", 30) + ".2");
  EXPECT_EQ(set_aside_other_checkpoints(folder.path(), 20),
            std::vector<std::string>{checkpoint_path(folder / "set-aside", 10)});
  EXPECT_TRUE(messages.empty());
}

TEST(Checkpoint, KillWhileGoingBackNeverGoesForwardAgain) {
  bool has_finished = false;
  for (int at = 0; !has_finished; ++at) {
    ASSERT_LT(at, 100);
    TempFolder folder;
    for (int64_t step : {10, 20, 30, 40}) save_checkpoint(folder.path(), make_data(step));
    has_finished = 0 == in_child([&] {
                     test::set_fault(Fault::kill, at);
                     set_aside_checkpoints(folder.path(), 20);
                     return 0;
                   });
    std::vector<std::string> messages;
    const int64_t step = load_latest_checkpoint(folder.path(), messages)->info.step;
    EXPECT_TRUE(step == 20 || (step == 40 && list_checkpoints(folder.path()).size() == 4))
        << "killed at call " << at << ": " << step;
    EXPECT_TRUE(messages.empty());
    set_aside_checkpoints(folder.path(), step);  // what the next start does
    EXPECT_EQ(load_latest_checkpoint(folder.path(), messages)->info.step, step);
    EXPECT_EQ(list_checkpoints(folder.path()).back(), step);
  }
}

TEST(Checkpoint, LongStepsSortByNumber) {
  TempFolder folder;
  EXPECT_EQ(checkpoint_path("c", 123456789012), "c/step-123456789012");
  for (int64_t step : {int64_t{99999999}, int64_t{100000000}}) save_checkpoint(folder.path(), make_data(step));
  EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<int64_t>{99999999, 100000000}));
  for (const char* name : {"step-1", "step-0000000a", "step-000000001", "other"}) make_folders(folder / name);
  EXPECT_EQ(list_checkpoints(folder.path()).size(), 2u);
}

}  // namespace
}  // namespace weft::io
