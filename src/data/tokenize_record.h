// OUTPUT.json: what tokenisation this is, which shards are finished, and where it goes on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "weft/data/tokenize.h"

namespace weft::data {

// A place in the input between two tokens: a chunk and what of it is already in finished shards.
struct ResumePoint {
  size_t file = 0;
  int64_t offset = 0, line = 1;           // of the chunk, see Chunk
  int64_t tokens = 0, document_ends = 0;  // of the chunk
};

struct TokenizeRecord {
  std::string fingerprint;  // of inputs, tokenizer and options
  std::vector<std::string> inputs;
  std::string tokenizer;
  TokenizeResult result;              // of the finished shards; `bytes` and `documents` up to the resume point
  std::vector<int64_t> shard_tokens;  // of each finished shard
  ResumePoint next;
  bool is_complete = false;

  void save(const std::string& path) const;
  static TokenizeRecord load(const std::string& path);
};

std::string fingerprint_of(const std::vector<std::string>& inputs, const Tokenizer& tokenizer,
                           const TokenizeOptions& options, ShardKind kind, int width);

}  // namespace weft::data
