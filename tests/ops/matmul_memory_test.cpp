// Products in a process that may take no more memory: an Error that says so, never a crash inside oneDNN.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/ops/matmul.h"

namespace weft {
namespace {

enum Outcome { kFine, kRefused, kOther };

// The first products of a process, whose code is made in them, with so much of memory left. Runs in a process of its own.
Outcome multiply(int64_t spare_bytes) {
  set_num_threads(1);
  const Tensor x = Tensor::full({96, 160}, 1), batch = Tensor::full({3, 96, 160}, 1), bias = Tensor::full({96}, 1);
  const Tensor half = Tensor::full({96, 160}, 1, kBF16);
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const auto limit = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE) + spare_bytes);
  const rlimit address_space{limit, limit};
  if (setrlimit(RLIMIT_AS, &address_space) != 0) return kOther;
  try {
    const Tensor products[] = {ops::matmul(x, x, {.transpose_b = true}), ops::matmul(batch, x, {.transpose_b = true}),
                               ops::matmul(half, half, {.transpose_b = true}), ops::linear(x, x, bias),
                               ops::matmul(x, x, {.transpose_a = true})};
    const double expected[] = {160, 160, 160, 161, 96};
    for (size_t i = 0; i < 5; ++i)
      if (products[i].reshape({-1}).slice(0, 0, 1).item() != expected[i]) return kOther;
  } catch (const Error& error) {
    return std::string(error.what()).find("memory") != std::string::npos ? kRefused : kOther;
  }
  return kFine;
}

TEST(Matmul, SaysThatThereIsNoMemoryInsteadOfCrashing) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer takes address space for itself";
#endif
  int count[3] = {};
  for (int64_t kib = 0; kib <= 32 * 1024; kib = kib < 4096 ? kib + 128 : kib + 1024) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) _exit(multiply(kib * 1024));
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status) << " with " << kib << " KiB left";
    ASSERT_LT(WEXITSTATUS(status), kOther) << "with " << kib << " KiB left";
    ++count[WEXITSTATUS(status)];
  }
  EXPECT_GT(count[kRefused], 0);
  EXPECT_GT(count[kFine], 0);
}

}  // namespace
}  // namespace weft
