// Text to token ids and back.
//   auto tokenizer = data::make_gpt2_tokenizer("vocab.json", "merges.txt");
//   std::vector<int32_t> ids = tokenizer->encode("Hello world");     // 15496 995
// Special tokens are never produced by encode(): "<|endoftext|>" in a text is ordinary text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weft::data {

// All members may be called from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // The bytes of the ids, one after another. If the ids end inside a character, the result is not valid UTF-8 (show_utf8 makes it
  // printable). Error on an id outside [0, vocab_size()).
  virtual std::string decode(std::span<const int32_t> ids) const = 0;

  virtual int64_t vocab_size() const = 0;
  virtual int64_t byte_length(int32_t id) const = 0;  // of the id's text; 0 for special ids
  virtual std::optional<int32_t> end_of_text() const { return std::nullopt; }
  virtual std::string name() const = 0;      // "bytes", "characters", "gpt2", "bpe", "ids"
  virtual uint64_t fingerprint() const = 0;  // of everything that decides the ids

  // Where a long text may be cut: the largest n with encode(text) = encode(first n bytes) + encode(the rest), whatever follows `text`. 0 if
  // there is no such n.
  virtual size_t last_cut(std::string_view text) const = 0;
};

// One id per byte, 256 ids.
std::unique_ptr<Tokenizer> make_byte_tokenizer();

// Ids that stand for no text, as tasks have them: "12 7 0" is three ids. encode() of anything else is an Error with its offset.
std::unique_ptr<Tokenizer> make_id_tokenizer(int64_t vocab);

// One id per code point of `alphabet` (ascending and distinct). encode() of anything else is an Error with its offset.
using Alphabet = std::vector<char32_t>;
std::unique_ptr<Tokenizer> make_character_tokenizer(Alphabet alphabet);

// Distinct code points of `text`, ascending. Error with the offset if it is not UTF-8.
Alphabet make_alphabet(std::string_view text);
// A text file: the line "weft characters 1", then one code point per line as U+0041.
void save_alphabet(const std::string& path, const Alphabet& alphabet);
Alphabet load_alphabet(const std::string& path);

// GPT-2 byte-level BPE from the pair of files vocab.json (encoder.json) and merges.txt (vocab.bpe).
// decode(encode(x)) is x for every byte string. Error (path and line or byte) on files that do not fit together.
std::unique_ptr<Tokenizer> make_gpt2_tokenizer(const std::string& vocab_path, const std::string& merges_path);

// Byte-level BPE from a tokenizer.json of Hugging Face's tokenizers, with the pattern of GPT-2, Llama 3 or Qwen 2. Ids are those that library
// gives without added tokens: no special token is found in a text, and none is put before it. Where the file asks for NFC (Qwen 2), decode()
// gives the composed text. Error that says what of the file is damaged or not known here.
std::unique_ptr<Tokenizer> make_bpe_tokenizer(const std::string& path);

// Learns a byte-level BPE of `vocab` ids from texts, and writes it as a tokenizer.json. Of equally frequent pairs the one of older tokens
// is merged first, as Hugging Face's trainer does. A text that has fewer pairs gives fewer ids. The last id is "<|endoftext|>".
struct BpeTraining {
  int64_t vocab = 0;
  std::string pattern = "llama3";  // or gpt2, qwen2
  bool blank_lines = false;        // of texts, as in TextOptions (weft/data/tokenize.h)
  std::string field = "text";      // of JSONL
};
struct BpeTrained {
  int64_t vocab = 0, merges = 0, pieces = 0;  // pieces: different ones
};
BpeTrained train_bpe(const std::vector<std::string>& inputs, const std::string& output, const BpeTraining& options);

// `bytes` for people to read. Bytes that are not valid UTF-8 become U+FFFD. Characters that control a terminal are written as \x1b or
// \u202e: control characters except newline and tab, and marks that change the direction of text.
std::string show_utf8(std::string_view bytes);

}  // namespace weft::data
