// The weft program as a child process. WEFT_BINARY is its path.
#pragma once

#include "tests/support/process.h"

namespace weft::test {

inline std::vector<std::string> weft_words(std::vector<std::string> words) {
  words.insert(words.begin(), WEFT_BINARY);
  return words;
}

// Starts `weft words...` with the given descriptors as its streams; stdin is empty.
inline pid_t start_weft(std::vector<std::string> words, int out = -1, int err = -1) {
  return start_program(weft_words(std::move(words)), out, err);
}

inline ProcessResult run_weft(const std::vector<std::string>& words) { return run_program(weft_words(words)); }

}  // namespace weft::test
