// The weft program as a process, in a folder of its own with run.txtpb, a model of two mixers.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/trainers/config_text.h"
#include "trainers/command/command.h"

namespace weft::cli {

namespace fs = std::filesystem;
using config::test::expect_parts;

struct Outcome {
  int code = -1;
  std::string out, err;
};

struct Row {
  const char* arguments;
  std::vector<std::string> parts;
};

class Cli : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / str("weft_cli_test_", static_cast<int64_t>(getpid()));
    fs::create_directories(folder_);
    std::ofstream(folder_ / "run.txtpb") << config::test::kTwoMixers;
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Runs `weft ARGUMENTS` in the test's folder; the arguments are shell text.
  Outcome weft(const std::string& arguments, const std::string& environment = "") {
    std::string command =
        str("cd ", folder_.string(), " && ", environment, " " WEFT_BINARY " ", arguments, " >out 2>err </dev/null");
    int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, content("out"), content("err")};
  }

  std::string content(const char* name) {
    std::ostringstream text;
    text << std::ifstream(folder_ / name).rdbuf();
    return text.str();
  }

  fs::path folder_;
};

}  // namespace weft::cli
