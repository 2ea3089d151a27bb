// What the tests of tokenisation share: a tokenizer, texts, and the ids of shards.
#pragma once

#include <gtest/gtest.h>
#include <zlib.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/data/support.h"
#include "weft/core/rng.h"
#include "weft/data/tokenize.h"

namespace weft::data {

using Ids = std::vector<int32_t>;

inline constexpr int32_t kEnd = 256;

// Bytes with an end-of-text id, cut at blanks only: stands for GPT-2 where its files are absent.
class EndedBytes final : public Tokenizer {
 public:
  Ids encode(std::string_view text) const override { return bytes_->encode(text); }
  std::string decode(std::span<const int32_t> ids) const override { return bytes_->decode(ids); }
  int64_t vocab_size() const override { return 257; }
  int64_t byte_length(int32_t id) const override { return id == kEnd ? 0 : 1; }
  std::optional<int32_t> end_of_text() const override { return kEnd; }
  std::string name() const override { return "ended bytes"; }
  uint64_t fingerprint() const override { return 257; }
  size_t last_cut(std::string_view text) const override { return text.rfind(' ') + 1; }

 private:
  std::unique_ptr<Tokenizer> bytes_ = make_byte_tokenizer();
};

inline Ids ids_of(const TokenizeResult& result, ShardOptions options = {}) {
  Ids all;
  for (const std::string& path : result.shards) {
    Shard shard = Shard::open(path, options);
    Ids ids(static_cast<size_t>(shard.num_tokens()));
    shard.read(0, ids);
    all.insert(all.end(), ids.begin(), ids.end());
  }
  return all;
}

inline std::string words(Rng rng, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) {
    text += std::string(1 + rng.below(9, i), static_cast<char>('a' + rng.below(26, i + 1000000)));
    text += " \n"[rng.below(8, i + 2000000) == 0];
  }
  return text;
}

inline Ids joined(const Tokenizer& tokenizer, const std::vector<std::string>& documents) {
  Ids ids;
  for (const std::string& text : documents) {
    Ids more = tokenizer.encode(text);
    ids.insert(ids.end(), more.begin(), more.end());
    ids.push_back(kEnd);
  }
  return ids;
}

inline void write_gzip(const std::string& path, std::string_view content) {
  gzFile file = ::gzopen(path.c_str(), "wb");
  ASSERT_EQ(::gzwrite(file, content.data(), static_cast<unsigned>(content.size())), static_cast<int>(content.size()));
  ::gzclose(file);
}

}  // namespace weft::data
