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

struct InputFacts {
  std::string path;
  int64_t bytes = 0, modified_s = 0, modified_ns = 0;
  bool operator==(const InputFacts&) const = default;
};

// What decides the ids of a tokenisation. Error on an input that is not there.
struct TokenizeIdentity {
  TokenizeIdentity() = default;
  TokenizeIdentity(const std::vector<std::string>& inputs, const Tokenizer& tokenizer, const TokenizeOptions& options,
                   ShardKind kind, int width);

  std::vector<InputFacts> inputs;
  std::string tokenizer_print, options_print;  // fingerprints of the parts
  std::string fingerprint;                     // of all of it
};

struct TokenizeRecord {
  TokenizeIdentity identity;
  std::string tokenizer;              // its name
  TokenizeResult result;              // of the finished shards; `bytes` and `documents` up to the resume point
  std::vector<int64_t> shard_tokens;  // of each finished shard
  ResumePoint next;
  bool is_complete = false;

  void save(const std::string& path) const;
  static TokenizeRecord load(const std::string& path);
};

// Whether a record stands beside a file that has the name of one of its shards.
bool is_tokenized_shard(const std::string& path);

// What the work of a record was done with, seen from another identity: "other inputs: c.txt is new"; "" if they are equal.
std::string difference(const TokenizeIdentity& recorded, const TokenizeIdentity& now);

}  // namespace weft::data
