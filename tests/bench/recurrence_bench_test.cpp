// `weft bench recurrence --quick`, with a part of its tokens: every form of the recurrence has its rows, and what they say of memory and
// caches is so at any speed and length.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tools/bench/bench.h"
#include "weft/core/parallel.h"

namespace weft::bench {
namespace {

std::string extra_of(const Row& row, const std::string& heading) {
  for (const auto& [name, text] : row.extra)
    if (name == heading) return text;
  return "";
}

TEST(RecurrenceBench, EveryFormHasItsRows) {
  set_num_threads(1);  // several would wait for each other on a busy machine, and waiting takes their cores' time
  const std::vector<Row> rows = run_recurrence({.quick = true, .effort = 1.0 / 16});
  auto of = [&](const std::string& name, const std::string& dtype) {
    std::vector<Row> found;
    for (const Row& row : rows)
      if (row.name == name && row.dtype == dtype && row.shape.starts_with("B1 H8 ")) found.push_back(row);
    return found;
  };
  for (const Row& row : rows)
    EXPECT_TRUE(std::isfinite(row.value) && row.value > 0 && row.ratio > 0) << row.name << " " << row.shape;
  const std::vector<std::string> forms = {"plain", "plain key channels", "plain value channels", "delta",
                                          "delta key channels"};
  for (const std::string& form : forms) {
    SCOPED_TRACE(form);
    for (const char* direction : {"forward ", "backward "}) {
      EXPECT_EQ(of(direction + form, "f32").size(), 1u);
      EXPECT_EQ(of(direction + form, "bf16").size(), 1u);
    }
    ASSERT_EQ(of("both " + form, "f32").size(), 1u);
    EXPECT_NE(extra_of(of("both " + form, "f32")[0], "time").find(" ms"), std::string::npos);
    for (const auto& [name, dtype] : {std::pair(" against f32", "bf16"), std::pair(" against softmax", "f32")}) {
      ASSERT_EQ(of("both " + form + name, dtype).size(), 1u);
      EXPECT_EQ(extra_of(of("both " + form + name, dtype)[0], "goal"), "1") << name;
    }
    const std::vector<Row> lengths = of("time per token " + form, "f32");
    ASSERT_EQ(lengths.size(), 2u);
    EXPECT_EQ(extra_of(lengths[0], "goal"), "") << "the shortest is the limit";
    EXPECT_EQ(extra_of(lengths[1], "goal"), "0.909");
    EXPECT_EQ(of("step " + form, "f32").size(), 1u);
    const std::vector<Row> decodings = of("decode " + form, "f32"), memories = of("memory " + form, "f32");
    ASSERT_EQ(decodings.size(), 2u);
    EXPECT_EQ(extra_of(decodings[0], "cache"), extra_of(decodings[1], "cache")) << "a state does not grow";
    ASSERT_EQ(memories.size(), 2u);
    EXPECT_LT(memories[1].value, 1.1 * memories[0].value) << "bytes per token";
  }
}

}  // namespace
}  // namespace weft::bench
