// samples.txt of a run: "=== step 20, 312 bytes" and a text of that size, for each sample. The size lets any text stand in it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weft::train {

struct Sample {
  int64_t step = 0;
  std::string text;    // prompt and what the model made of it
  uint64_t begin = 0;  // of its head line in the file
};

class SamplesFile {
 public:
  explicit SamplesFile(std::string path);  // reads what is there

  const std::vector<Sample>& all() const { return samples_; }
  int64_t count(int64_t step) const;
  void add(int64_t step, const std::string& text);  // synced
  // Cuts off the samples of later steps than `step`, those of `step` too if there are fewer than `num_wanted`, and what is no whole sample;
  // it is appended to the file `aside`. Returns whether there was anything.
  bool rewind(int64_t step, int64_t num_wanted, const std::string& aside);

 private:
  std::string path_;
  std::vector<Sample> samples_;
  uint64_t size_ = 0;         // of the file
  uint64_t whole_bytes_ = 0;  // up to the end of the last whole sample
};

}  // namespace weft::train
