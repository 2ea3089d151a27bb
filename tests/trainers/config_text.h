// A small valid config for tests, and a check of error texts.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "trainers/config/config.h"

namespace weft::config::test {

inline const char* const kTiny = R"(seed: 1
model {
  dim: 64 layers: 4 context: 32
  mixer { softmax { heads: 4 } }
}
data {
  train { path: "text.txt" }
  val { fraction: 0.1 }
}
train { tokens: 6400 }
)";

inline const char* const kTwoMixers = R"(
model {
  dim: 64 layers: 4 context: 32
  mixer { softmax { heads: 4 window: 8 } }
  mixer { softmax { heads: 4 kv_heads: 2 } }
  pattern: "0 0 0 1"
}
data { train { path: "a.txt" } train { path: "b.txt" weight: 2 } val { path: "v.txt" } }
train { tokens: 6400 }
)";

inline Loaded load_string(std::string_view text, const std::vector<std::string>& overrides = {}) {
  Loaded out = read_string(text, "tiny.txtpb", "/config", overrides);
  resolve(out);
  return out;
}

// The text of the ConfigError that loading raises; fails the test if there is none.
inline std::string error_of(std::string_view text, const std::vector<std::string>& overrides = {}) {
  try {
    load_string(text, overrides);
  } catch (const ConfigError& error) { return error.problem() + "\n" + error.fix(); }
  ADD_FAILURE() << "no error";
  return "";
}

inline void expect_parts(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "missing '" << part << "' in:\n" << text;
}

}  // namespace weft::config::test
