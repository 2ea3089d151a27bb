// Reading GPT-2's vocabulary: vocab.json (token in the byte alphabet -> id) and merges.txt (one merge per line).
// Both are checked completely here, so that encoding needs no checks.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "src/data/bpe.h"
#include "src/data/byte_alphabet.h"
#include "src/data/files.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"

namespace weft::data {

namespace {

constexpr size_t kMaxFileBytes = size_t{256} << 20;
constexpr std::string_view kEndOfText = "<|endoftext|>";
constexpr const char* kFix = "give the two files of one GPT-2 style tokenizer, vocab.json and merges.txt";

// Takes one flat object of text -> number, without building a tree of values.
class VocabReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  VocabReader(const std::string& path, std::unordered_map<std::string, int32_t>& ids) : path_(path), ids_(ids) {}

  bool start_object(size_t) override {
    if (is_inside_) refuse("an object as a value");
    return is_inside_ = true;
  }
  bool end_object() override { return true; }
  bool key(std::string& text) override {
    key_ = text;
    return true;
  }
  bool number_unsigned(uint64_t number) override {
    if (!is_inside_) refuse("a number");
    WEFT_CHECK(number < static_cast<uint64_t>(std::numeric_limits<int32_t>::max()),
               str(path_, ": token \"", key_, "\" has the id ", number), kFix);
    bool is_new = ids_.emplace(key_, static_cast<int32_t>(number)).second;
    WEFT_CHECK(is_new, str(path_, ": token \"", key_, "\" occurs twice"), kFix);
    return true;
  }
  bool number_integer(int64_t number) override { return refuse(str("the number ", number)); }
  bool number_float(double, const std::string& text) override { return refuse("the number " + text); }
  bool null() override { return refuse("null"); }
  bool boolean(bool) override { return refuse("true or false"); }
  bool string(std::string&) override { return refuse("a text"); }
  bool binary(nlohmann::json::binary_t&) override { return refuse("binary data"); }
  bool start_array(size_t) override { return refuse("a list"); }
  bool end_array() override { return true; }
  bool parse_error(size_t at, const std::string&, const nlohmann::json::exception& error) override {
    fail(str(path_, ": byte ", at, ": not valid JSON: ", error.what()), kFix);
  }

 private:
  bool refuse(const std::string& what) const {
    fail(str(path_, ": ", what, is_inside_ ? str(" after the token \"", key_, "\"") : std::string(" at the top"),
             " where the file must map tokens to ids"),
         kFix);
  }
  const std::string& path_;
  std::unordered_map<std::string, int32_t>& ids_;
  std::string key_;
  bool is_inside_ = false;
};

using IdOfBytes = std::unordered_map<std::string, int32_t>;

IdOfBytes read_vocab(const std::string& path, const ByteAlphabet& alphabet, BpeModel& model) {
  std::string content = read_file(path, kMaxFileBytes);
  std::unordered_map<std::string, int32_t> tokens;
  VocabReader reader(path, tokens);
  nlohmann::json::sax_parse(content, &reader);
  model.bytes.resize(tokens.size());
  model.is_special.assign(tokens.size(), true);
  IdOfBytes ids;
  std::vector<bool> is_used(tokens.size(), false);
  std::string bytes;
  for (const auto& [token, id] : tokens) {
    auto index = static_cast<size_t>(id);
    WEFT_CHECK(index < tokens.size(),
               str(path, ": token \"", token, "\" has the id ", id, " in a vocabulary of ", tokens.size()),
               "number the tokens 0, 1, 2 ... without gaps");
    WEFT_CHECK(!is_used[index], str(path, ": the id ", id, " belongs to two tokens, one is \"", token, "\""),
               "number the tokens 0, 1, 2 ... without gaps");
    WEFT_CHECK(!token.empty() && alphabet.to_bytes(token, bytes),
               str(path, ": token \"", token, "\" (id ", id, ") is not in GPT-2's byte alphabet"), kFix);
    is_used[index] = true;
    ids.emplace(bytes, id);
    model.bytes[index] = bytes;
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    auto found = ids.find(std::string(1, static_cast<char>(byte)));
    WEFT_CHECK(found != ids.end(), str(path, ": no token for byte ", byte), kFix);
    model.byte_ids[byte] = found->second;
    model.is_special[static_cast<size_t>(found->second)] = false;
  }
  if (auto found = ids.find(std::string(kEndOfText)); found != ids.end()) model.end_of_text = found->second;
  return ids;
}

struct Line {
  int64_t number;
  std::string_view text;
};

// The lines with a merge: not the version comment, not an empty end.
std::vector<Line> merge_lines(const std::string& path, std::string_view content) {
  std::vector<Line> lines;
  for (int64_t number = 1; !content.empty(); ++number) {
    size_t end = std::min(content.find('\n'), content.size());
    std::string_view text = content.substr(0, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    if (text.ends_with('\r')) text.remove_suffix(1);
    if (number == 1 && text.starts_with("#version")) continue;
    if (text.empty() && content.empty()) break;
    lines.push_back({number, text});
  }
  WEFT_CHECK(!lines.empty(), str(path, ": no merges"), kFix);
  return lines;
}

void read_merges(const std::string& path, const ByteAlphabet& alphabet, const IdOfBytes& ids, BpeModel& model) {
  std::string content = read_file(path, kMaxFileBytes);
  std::vector<Line> lines = merge_lines(path, content);
  model.merges = MergeTable(lines.size());
  std::string left, right;
  for (size_t rank = 0; rank < lines.size(); ++rank) {
    auto [number, text] = lines[rank];
    size_t blank = text.find(' ');
    bool is_merge = blank != std::string_view::npos && blank > 0 && blank + 1 < text.size() &&
                    alphabet.to_bytes(text.substr(0, blank), left) && alphabet.to_bytes(text.substr(blank + 1), right);
    WEFT_CHECK(
        is_merge,
        str(path, ":", number, ": not two tokens with a blank between them: \"", show_utf8(text.substr(0, 80)), "\""),
        kFix);
    auto find = [&](const std::string& bytes) {
      auto found = ids.find(bytes);
      WEFT_CHECK(found != ids.end(),
                 str(path, ":", number, ": the merge \"", show_utf8(text.substr(0, 80)),
                     "\" uses or makes a token that the vocabulary does not have"),
                 kFix);
      return found->second;
    };
    int32_t left_id = find(left), right_id = find(right), id = find(left + right);
    WEFT_CHECK(id != model.end_of_text, str(path, ":", number, ": this merge makes the special token ", kEndOfText),
               kFix);
    WEFT_CHECK(model.merges.insert(left_id, right_id, static_cast<uint32_t>(rank), id),
               str(path, ":", number, ": this merge stands in the file already"), kFix);
    model.is_special[static_cast<size_t>(id)] = false;
  }
}

}  // namespace

BpeModel read_gpt2_files(const std::string& vocab_path, const std::string& merges_path) {
  ByteAlphabet alphabet;
  BpeModel model;
  IdOfBytes ids = read_vocab(vocab_path, alphabet, model);
  read_merges(merges_path, alphabet, ids, model);
  Fingerprint print;
  for (const std::string& bytes : model.bytes) print.add(bytes);
  model.fingerprint = print.add(read_file(merges_path, kMaxFileBytes)).value();
  return model;
}

}  // namespace weft::data
