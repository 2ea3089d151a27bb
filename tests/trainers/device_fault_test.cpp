// What a run says when its GPU fails, and what it leaves: the emulated GPU fails on request.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/trainers/process.h"
#include "weft/io/files.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

class DeviceFault : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("weft-fault-" + std::to_string(getpid()));
    fs::create_directories(folder_);
    std::ofstream text(folder_ / "text.txt");
    for (int i = 0; i < 200; ++i) text << "line " << i * 7919 % 1000 << " of a text that repeats itself\n";
    std::ofstream(folder_ / "tiny.txtpb") << R"(
model { dim: 8 layers: 1 context: 16 mixer { softmax { heads: 2 } } ffn { swiglu { hidden: 8 } } }
data { tokenizer { characters {} } train { path: "text.txt" } val { fraction: 0.1 } }
train { tokens: 192 tokens_per_step: 32 micro_batch: 2 threads: 1 device: cuda }
eval { every: 0 } log { every: 1 sample_tokens: 1 } checkpoint { every: 2 keep_last: 2 }
)";
  }
  void TearDown() override { fs::remove_all(folder_); }

  test::ProcessResult train(const std::string& fault) {
    return run(fault, {"train", (folder_ / "tiny.txtpb").string(), "--run", (folder_ / "run").string()});
  }

  test::ProcessResult run(const std::string& fault, const std::vector<std::string>& arguments) {
    if (fault.empty()) unsetenv("WEFT_EMULATED_GPU");
    else setenv("WEFT_EMULATED_GPU", fault.c_str(), 1);
    auto result = test::run_weft(arguments);
    unsetenv("WEFT_EMULATED_GPU");
    return result;
  }

  fs::path folder_;
};

void expect_texts(const test::ProcessResult& result, const std::vector<std::string>& texts) {
  EXPECT_NE(result.exit_code, 0);
  for (const std::string& text : texts)
    EXPECT_NE(result.err.find(text), std::string::npos) << text << "\n" << result.err;
  EXPECT_LE(result.err.size(), 4000u);
}

TEST_F(DeviceFault, OfAnOldGpuIsNamed) {
  expect_texts(train("architecture=75"), {"cuda:0: compute capability 7.5 is not supported", "8.0 or newer"});
}

TEST_F(DeviceFault, OfAnOldGpuLeavesDoctorToSaySo) {
  setenv("WEFT_EMULATED_GPU", "architecture=75", 1);
  auto old = test::run_weft({"doctor"});
  unsetenv("WEFT_EMULATED_GPU");
  auto good = test::run_weft({"doctor"});
  EXPECT_EQ(old.exit_code, 0) << old.err;
  EXPECT_EQ(good.exit_code, 0) << good.err;
  const std::string name = "cuda:0 emulated on the CPU, compute capability ";
  EXPECT_NE(old.out.find(name + "7.5, 64.0 GiB, not usable: compute capability 7.5 is not supported"),
            std::string::npos)
      << old.out;
  EXPECT_NE(good.out.find(name + "9.0, 64.0 GiB, supported"), std::string::npos) << good.out;
}

TEST_F(DeviceFault, OfMemoryNamesTensorAndPlace) {
  ASSERT_EQ(train("").exit_code, 0);
  expect_texts(run("memory=8000", {"eval", (folder_ / "run").string()}),
               {"tensor [", "f32: out of memory: ", "bytes asked for", "of 8000 free, on cuda:0",
                "use a smaller batch or sequence"});
}

TEST_F(DeviceFault, OfMemoryIsForeseenByATraining) {
  expect_texts(train("memory=300000"), {"train.micro_batch is 2: a step takes", "left on cuda:0", "Not even 1 fits"});
}

// Kernels fail in some step after the first checkpoint: one error that names an op; the checkpoint is there, and the run goes on from it.
TEST_F(DeviceFault, OfAKernelLeavesTheLastCheckpoint) {
  auto whole = train("");
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  const std::string last = (folder_ / "run/checkpoints/step-00000006/model.safetensors").string();
  const std::string expected = io::read_file(last);
  int64_t fault = 100;
  test::ProcessResult broken;
  do {  // as many kernels as it takes to get past the second step
    fs::remove_all(folder_ / "run");
    fault += fault / 4;
    broken = train("fault=" + std::to_string(fault));
    ASSERT_NE(broken.exit_code, 0) << "no step 3 within " << fault << " kernels";
  } while (!fs::exists(folder_ / "run/checkpoints/step-00000002/model.safetensors"));
  expect_texts(broken, {"CUDA error cudaErrorIllegalAddress: an illegal memory access was encountered",
                        "this process cannot use the GPU any more", "where: ", "last kernels, newest first",
                        " blocks of ", " threads, ", " bytes of shared memory", "last tensors ["});
  auto resumed = train("");
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_NE(resumed.err.find("resumed at step"), std::string::npos) << resumed.err;
  EXPECT_TRUE(io::read_file(last) == expected);
}

TEST_F(DeviceFault, OfAWordIsRefused) {
  expect_texts(train("fire=1"), {"WEFT_EMULATED_GPU=fire=1", "memory=BYTES"});
  expect_texts(train("memory=1G"), {"WEFT_EMULATED_GPU=memory=1G", "memory=BYTES"});
}

}  // namespace
}  // namespace weft
