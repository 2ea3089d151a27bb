// Text files to token shards, on all cores.
//   tokenize_files({"corpus.jsonl"}, *tokenizer, {.output = "data/corpus"});     // data/corpus_000000.bin ...
// Inputs: UTF-8 text, JSONL, either of them also compressed with gzip (several members and dictzip files too). What is no
// text is refused by name: Parquet, zip, zstd, pictures, UTF-16 and the like, a zero byte anywhere, and more than a
// quarter of invalid UTF-8 in any 64 KiB.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weft/data/shards.h"
#include "weft/data/tokenizer.h"

namespace weft::data {

enum class TextFormat : uint8_t { automatic, text, jsonl };

// What a document is: a text file, or with `blank_lines` each run of lines between blank lines; a line of JSONL.
// Documents without text are left out.
struct TextOptions {
  TextFormat format = TextFormat::automatic;  // jsonl for *.jsonl and *.ndjson (also with .gz or .dz), else text
  bool blank_lines = false;                   // text only: blank lines separate documents and belong to none
  std::string field = "text";                 // of a JSONL object
};

struct TokenizeOptions {
  std::string output = {};             // shards are OUTPUT_000000.bin ..., the record of the work is OUTPUT.json
  std::optional<ShardKind> kind = {};  // unset: `header`, or `megatron` if the tokenizer has no end-of-text id
  int width = 0;                       // bytes per id; 0: what the vocabulary needs
  int64_t shard_tokens = 100'000'000;  // a shard is full then; Megatron shards end with the document
  TextOptions text = {};
  int64_t chunk_bytes = 1 << 20;  // text that one thread takes at a time; does not change the result
  // Called between chunks with bytes of the input files read and their sum; an exception stops the work resumably.
  std::function<void(int64_t done, int64_t total)> progress = {};
  // For another process that writes the same output, calling `progress`; otherwise that is an Error.
  bool waits = false;
};

struct TokenizeResult {
  std::vector<std::string> shards;
  int64_t tokens = 0, documents = 0;
  int64_t bytes = 0;  // of text, uncompressed
};

// Each document is followed by the tokenizer's end-of-text id if it has one; without one, only Megatron shards keep
// documents apart, and another kind is an Error if there are several. The shards do not depend on the number of
// threads. A call that was killed goes on behind its last full shard when it is repeated; a finished one returns what
// is there. Error if OUTPUT.json belongs to other inputs, another tokenizer or other options (it says which), if there are
// shards of that name without it, and if another process is writing this output.
TokenizeResult tokenize_files(const std::vector<std::string>& inputs, const Tokenizer& tokenizer,
                              const TokenizeOptions& options);

// What a finished tokenize_files() with this output left, without a look at its inputs; nothing if there is none.
std::optional<TokenizeResult> tokenized_before(const std::string& output);

// Error if `bytes`, the content of a file, are no text as above.
void require_text(std::string_view bytes, const std::string& path);

// Distinct characters of all documents, for make_character_tokenizer().
Alphabet alphabet_of_files(const std::vector<std::string>& inputs, const TextOptions& options = {});

}  // namespace weft::data
