// Text files to token shards, on all cores.
//   tokenize_files({"corpus.jsonl"}, *tokenizer, {.output = "data/corpus"});     // data/corpus_000000.bin ...
// Inputs: UTF-8 text or JSONL, plain or compressed with gzip (with several members too, and dictzip). Other files are refused, and the Error
// says what they are: Parquet, zip, zstd, pictures, UTF-16 and so on. A file with a zero byte, or with more than a quarter of invalid UTF-8
// in any 64 KiB, is not text.
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

// A document is a text file, or with `blank_lines` each group of lines between blank lines, or a line of JSONL.
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
  int64_t shard_tokens = 100'000'000;  // per shard; Megatron shards go on to the end of the document
  TextOptions text = {};
  int64_t chunk_bytes = 1 << 20;  // text that one thread takes at a time; does not change the result
  // Called between chunks with the bytes of the input files that have been read, and the bytes of all. An exception thrown here stops the
  // work; a later call goes on with it.
  std::function<void(int64_t done, int64_t total)> progress = {};
  // Waits while another process writes the same output, and calls `progress`. Otherwise that is an Error.
  bool waits = false;
};

struct TokenizeResult {
  std::vector<std::string> shards;
  int64_t tokens = 0, documents = 0;
  int64_t bytes = 0;  // of text, uncompressed
};

// OUTPUT.json belongs to other inputs, another tokenizer or other options.
class OtherWorkError : public Error {
 public:
  explicit OtherWorkError(const Error& error) : Error(error) {}
};

// Each document is followed by the tokenizer's end-of-text id, if there is one. Without one, only Megatron shards keep documents apart; with
// another kind, several documents are an Error. The shards do not depend on the number of threads. If a call was killed, the same call goes
// on after its last full shard. If it had finished, the same call returns what is there. OtherWorkError (it says what differs), and Error if
// there are shards of that name without OUTPUT.json, or if another process is
// writing this output.
TokenizeResult tokenize_files(const std::vector<std::string>& inputs, const Tokenizer& tokenizer,
                              const TokenizeOptions& options);

// The result of a finished tokenize_files() with this output, read from its record. The inputs are not read. Empty if there is no record.
std::optional<TokenizeResult> tokenized_before(const std::string& output);

// Error if `bytes`, the content of a file, are not text in the sense above.
void require_text(std::string_view bytes, const std::string& path);

// Distinct characters of all documents, for make_character_tokenizer().
Alphabet alphabet_of_files(const std::vector<std::string>& inputs, const TextOptions& options = {});

}  // namespace weft::data
