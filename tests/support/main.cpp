// main() of every test program: new memory is NaN, guards behind blocks are checked after each test, those of GPUs in suites that are named
// for devices, and a failure prints the seed (WEFT_TEST_SEED sets it).
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "tests/support/random.h"
#include "weft/core/allocator.h"
#include "weft/core/stream.h"

namespace weft::test {

uint64_t seed() {
  static const uint64_t value = [] {
    const char* text = std::getenv("WEFT_TEST_SEED");
    return text ? std::strtoull(text, nullptr, 10) : 20260101u;
  }();
  return value;
}

namespace {

int num_words = 0;
char** words = nullptr;
int64_t expected_guard_errors = 0;

// Other suites leave a GPU alone: to ask it takes longer than most tests.
int64_t num_guard_errors(const ::testing::TestInfo& info) {
  int64_t count = allocator(Device::cpu()).stats().num_guard_errors;
  if (std::string_view(info.test_suite_name()).find("Devices") != std::string_view::npos)
    for (int d = 0; d < num_cuda_devices(); ++d) count += allocator(Device::cuda(d)).stats().num_guard_errors;
  return count;
}

class GuardListener : public ::testing::EmptyTestEventListener {
  void OnTestStart(const ::testing::TestInfo& info) override {
    errors_ = num_guard_errors(info);
    expected_guard_errors = 0;
  }
  void OnTestEnd(const ::testing::TestInfo& info) override {
    EXPECT_EQ(num_guard_errors(info), errors_ + expected_guard_errors) << "a kernel wrote behind the end of its tensor";
    if (info.result()->Failed()) std::printf("WEFT_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed()));
  }
  int64_t errors_ = 0;
};

}  // namespace

void expect_guard_errors(int64_t count) { expected_guard_errors = count; }

std::string argument(std::string_view name) {
  const std::string start = "--" + std::string(name) + "=";
  for (int i = 1; i < num_words; ++i)
    if (std::string_view(words[i]).starts_with(start)) return words[i] + start.size();
  return "";
}

void set_arguments(int count, char** values) { num_words = count, words = values; }

}  // namespace weft::test

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  weft::test::set_arguments(argc, argv);
  weft::set_memory_poison(true);
  ::testing::UnitTest::GetInstance()->listeners().Append(new weft::test::GuardListener);
  return RUN_ALL_TESTS();
}
