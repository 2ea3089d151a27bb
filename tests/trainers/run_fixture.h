// A folder with a text and the config of a tiny model, trained by the weft command: 40 steps of 128 tokens.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "weft/io/files.h"

namespace weft::test {

class RunFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() / ("weft_run_" + std::to_string(getpid()) + "_" +
                                                  ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    std::string text;
    for (int i = 0; i < 400; ++i)
      text += "line " + std::to_string(i * 7919 % 1000) + " of a text that repeats itself\n";
    write("text.txt", text);
    write("tiny.txtpb", R"(
model { dim: 16 layers: 1 context: 32 mixer { softmax { heads: 2 dropout: 0.1 } } ffn { swiglu { hidden: 32 } } }
data { tokenizer { characters {} } train { path: "text.txt" } val { fraction: 0.1 } }
optim { group { match: "layers.*.weight" rank: 2 muon { lr: 0.01 } } group { match: "*" adamw { lr: 3e-3 } } skip {} }
train { tokens: 5120 tokens_per_step: 128 micro_batch: 2 threads: 1 }
eval { every: 10 } log { every: 5 samples_every: 20 sample_tokens: 10 } checkpoint { every: 5 keep_last: 2 }
)");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& name, const std::string& text) { std::ofstream(folder_ / name) << text; }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::vector<std::string> train(const std::string& run, std::vector<std::string> more = {}) const {
    std::vector<std::string> words{"train", path("tiny.txtpb"), "--run", path(run)};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  std::string weights(const std::string& run) const {
    return io::read_file(path(run) + "/checkpoints/step-00000040/model.safetensors");
  }
  std::string moments(const std::string& run) const {
    return io::read_file(path(run) + "/checkpoints/step-00000040/optimizer-0000-of-0001.safetensors");
  }

  std::filesystem::path folder_;
};

}  // namespace weft::test
