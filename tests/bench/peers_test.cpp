// The scripts that measure PyTorch beside Weft (tools/bench/peers) are Python, and what they read of `weft bench` is there.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <sstream>

#include "tools/bench/bench.h"
#include "weft/core/error.h"

namespace weft::bench {
namespace {

struct Output {
  int status = -1;
  std::string text;
};

Output output_of(const std::string& command) {
  Output out;
  std::FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (!pipe) return out;
  char part[4096];
  for (size_t count; (count = fread(part, 1, sizeof part, pipe)) > 0;) out.text.append(part, count);
  out.status = pclose(pipe);
  return out;
}

class Peers : public ::testing::Test {
 protected:
  void SetUp() override {
    if (output_of("python3 -c 'pass'").status != 0)
      GTEST_SKIP() << "there is no python3: the scripts are not looked at";
  }
};

TEST_F(Peers, EveryScriptCompiles) {
  const Output out = output_of(
      "python3 -B -c 'import sys\nfor f in sys.argv[1:]: compile(open(f).read(), f, \"exec\"); print(f)' " WEFT_PEERS
      "/*.py");
  EXPECT_EQ(out.status, 0) << out.text;
  EXPECT_NE(out.text.find("/ratios.py\n"), std::string::npos) << out.text;
}

TEST_F(Peers, ReadRowsAndFieldsThatThereAre) {
  const Output out = output_of("python3 -B " WEFT_PEERS "/rows.py");
  ASSERT_EQ(out.status, 0) << out.text;
  const std::vector<Row> attention = cpu_attention_rows();
  const std::set<std::string> of_steps = {"value", "limit", "ratio", "goal"};
  std::istringstream lines(out.text);
  int num_attention = 0;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string family, name, shape, dtype, fields;
    for (std::string* word : {&family, &name, &shape, &dtype, &fields}) std::getline(words, *word, '\t');
    if (family == "train") {
      EXPECT_NO_THROW(check_train({.rows = str(name, " ", shape, " ", dtype)})) << line;
      std::istringstream each(fields);
      for (std::string field; std::getline(each, field, ',');) EXPECT_TRUE(of_steps.contains(field)) << line;
      continue;
    }
    ASSERT_EQ(family, "attention") << line;
    ++num_attention;
    const auto row = std::find_if(attention.begin(), attention.end(),
                                  [&](const Row& r) { return r.name == name && r.shape == shape && r.dtype == dtype; });
    ASSERT_NE(row, attention.end()) << line;
    EXPECT_TRUE(std::any_of(row->extra.begin(), row->extra.end(), [&](const auto& e) { return e.first == fields; }))
        << line;
  }
  EXPECT_EQ(num_attention, 12);
}

}  // namespace
}  // namespace weft::bench
