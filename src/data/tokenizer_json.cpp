// Reading a tokenizer.json as far as byte-level BPE goes. What is not known here is refused by name: another way of cutting texts or of
// merging would give other ids without a word.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "src/data/bpe.h"
#include "src/data/byte_alphabet.h"
#include "src/data/files.h"
#include "src/data/json_depth.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"

namespace weft::data {

namespace {

using nlohmann::json;

constexpr size_t kMaxFileBytes = size_t{256} << 20;
constexpr int kMaxDepth = 32;
constexpr size_t kMaxEndIds = 64;  // a template's, before a text or behind it
constexpr int64_t kMaxId = int64_t{1} << 24;
constexpr const char* kFix = "give the tokenizer.json of a byte-level BPE, such as GPT-2's, Llama 3's or Qwen 2's";

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path) {}

  TokenizerFile read() {
    const json file = parse();
    read_normalizer(file);
    read_pattern(member(file, "pre_tokenizer"));
    read_model(member(file, "model"));
    read_added(file);
    read_decoder(file);
    read_ends(file);
    read_merges(member(member(file, "model"), "merges"));
    finish(flag(member(file, "model"), "ignore_merges"));
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const { fail(str(path_, ": ", what), kFix); }

  json parse() {
    text_ = read_file(path_, kMaxFileBytes);
    if (is_nested_deeper(text_, kMaxDepth)) refuse(str("nested deeper than ", kMaxDepth, " levels"));
    try {
      json file = json::parse(text_);
      if (!file.is_object()) refuse("no JSON object");
      return file;
    } catch (const json::exception& error) { refuse(str("not valid JSON: ", show_utf8(error.what()))); }
  }

  // A member that must be there.
  const json& member(const json& object, const char* name) const {
    if (object.is_object() && object.contains(name)) return object[name];
    refuse(str("has no ", name));
  }
  static bool is_set(const json& object, const char* name) {
    return object.is_object() && object.contains(name) && !object[name].is_null() && object[name] != "";
  }
  bool flag(const json& object, const char* name) const {
    if (!is_set(object, name)) return false;
    if (!object[name].is_boolean()) refuse(str(name, " is neither true nor false"));
    return object[name].get<bool>();
  }
  std::string type_of(const json& object) const {
    if (object.is_object() && object.contains("type") && object["type"].is_string())
      return object["type"].get<std::string>();
    return std::string(object.type_name());
  }
  // A list with one member is that member.
  static const json& only(const json& list, const char* members) {
    const bool is_one = list.is_object() && list.contains("type") && list["type"] == "Sequence" &&
                        list.contains(members) && list[members].is_array() && list[members].size() == 1;
    return is_one ? list[members][0] : list;
  }

  void read_normalizer(const json& file) {
    if (!is_set(file, "normalizer")) return;
    const json& normalizer = only(file["normalizer"], "normalizers");
    if (type_of(normalizer) != "NFC")
      refuse(str("the normalizer ", show_utf8(type_of(normalizer)), " is not known here, only NFC is"));
    out_.is_composed = true;
  }

  void set_pattern(std::string_view regex) {
    for (const PiecePattern& pattern : piece_patterns())
      if (pattern.regex == regex) out_.pattern = &pattern;
    if (!out_.pattern)
      refuse(str("the pattern ", show_utf8(regex.substr(0, 200)),
                 " is not known here; those of GPT-2, Llama 3 and Qwen 2 are"));
  }

  void check_bytes(const json& step, bool has_regex) {
    if (type_of(step) != "ByteLevel")
      refuse(str("the pre_tokenizer ", show_utf8(type_of(step)), " stands where ByteLevel is known"));
    if (flag(step, "add_prefix_space")) refuse("add_prefix_space is true, which is not known here");
    const bool uses = !step.contains("use_regex") || flag(step, "use_regex");
    if (uses != has_regex) refuse(str("ByteLevel with use_regex ", uses ? "true" : "false", " is not known here"));
  }

  void read_pattern(const json& given) {
    const json& steps = only(given, "pretokenizers");
    if (type_of(steps) == "ByteLevel") {
      check_bytes(steps, true);
      return set_pattern(piece_patterns()[0].regex);
    }
    const bool is_pair = type_of(steps) == "Sequence" && steps.contains("pretokenizers") &&
                         steps["pretokenizers"].is_array() && steps["pretokenizers"].size() == 2;
    if (!is_pair)
      refuse(str("the pre_tokenizer ", show_utf8(type_of(steps)),
                 " is not known here: ByteLevel, or Split and ByteLevel"));
    const json& split = steps["pretokenizers"][0];
    const bool is_split = type_of(split) == "Split" && split.contains("pattern") && split["pattern"].is_object() &&
                          split["pattern"].contains("Regex") && split["pattern"]["Regex"].is_string() &&
                          split.contains("behavior") && split["behavior"] == "Isolated" && !flag(split, "invert");
    if (!is_split) refuse("the pre_tokenizer's first step is no Split by a Regex with Isolated pieces");
    check_bytes(steps["pretokenizers"][1], false);
    set_pattern(split["pattern"]["Regex"].get<std::string>());
  }

  void read_model(const json& model) {
    if (model.is_object() && model.contains("type") && model["type"] != "BPE")
      refuse(str("the model is ", show_utf8(type_of(model)), ", not BPE"));
    for (const char* name : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"})
      if (is_set(model, name)) refuse(str("model.", name, " is set, which is not known here"));
    if (flag(model, "byte_fallback")) refuse("model.byte_fallback is true: this is no byte-level BPE");
    // Every byte has a token: neither says anything about a text.
    if (is_set(model, "unk_token") && !model["unk_token"].is_string()) refuse("model.unk_token is no text");
    flag(model, "fuse_unk");
    const json& vocab = member(model, "vocab");
    if (!vocab.is_object()) refuse("model.vocab is no object");
    for (const auto& [token, id] : vocab.items()) add(token, id);
  }

  void add(const std::string& token, const json& id) {
    if (!id.is_number_integer() || id < 0 || id >= kMaxId)
      refuse(str("token \"", show_utf8(token), "\" has no id below ", kMaxId));
    const auto number = id.get<int32_t>();
    auto [at, is_new] = ids_.emplace(token, number);
    if (!is_new && at->second != number) refuse(str("token \"", show_utf8(token), "\" has two ids"));
    if (!is_new) return;
    const auto index = static_cast<size_t>(number);
    if (index >= names_.size()) names_.resize(index + 1);
    if (!names_[index].empty())
      refuse(str("the id ", number, " belongs to two tokens, one is \"", show_utf8(token), "\""));
    if (token.empty()) refuse(str("the token of id ", number, " is empty"));
    names_[index] = token;
  }

  void read_added(const json& file) {
    if (!is_set(file, "added_tokens")) return;
    if (!file["added_tokens"].is_array()) refuse("added_tokens is no list");
    for (const json& token : file["added_tokens"]) {
      const bool is_whole =
          token.is_object() && token.contains("content") && token["content"].is_string() && token.contains("id");
      if (!is_whole) refuse("an added token has no id or no content");
      const auto content = token["content"].get<std::string>();
      add(content, token["id"]);
      added_.push_back(ids_.at(content));
      for (const char* name : {"<|endoftext|>", "<|end_of_text|>"})
        if (content == name) out_.model.end_of_text = ids_.at(content);
    }
  }

  void read_decoder(const json& file) {
    if (!is_set(file, "decoder")) return;
    const json& decoder = only(file["decoder"], "decoders");
    if (type_of(decoder) != "ByteLevel")
      refuse(str("the decoder ", show_utf8(type_of(decoder)), " is not known here, only ByteLevel is"));
  }

  // ByteLevel moves offsets alone.
  void read_ends(const json& file) {
    if (!is_set(file, "post_processor")) return;
    const json& given = file["post_processor"];
    const bool is_list = type_of(given) == "Sequence";
    if (is_list && !(given.contains("processors") && given["processors"].is_array()))
      refuse("the post_processor Sequence has no list of processors");
    const json steps = is_list ? given["processors"] : json::array({given});
    bool has_template = false;
    for (const json& step : steps) {
      if (type_of(step) == "ByteLevel") continue;
      if (type_of(step) != "TemplateProcessing")
        refuse(str("the post_processor ", show_utf8(type_of(step)),
                   " is not known here, only ByteLevel and TemplateProcessing are"));
      if (has_template) refuse("the post_processor has two templates");
      has_template = true;
      read_template(step);
    }
  }

  // Of one text: {"SpecialToken": {"id": NAME}} around {"Sequence": {"id": "A"}}.
  void read_template(const json& step) {
    const json& pieces = member(step, "single");
    if (!pieces.is_array()) refuse("post_processor.single is no list");
    bool is_behind = false;
    for (const json& piece : pieces) {
      const bool is_special = piece.is_object() && piece.contains("SpecialToken");
      if (!is_special && !(piece.is_object() && piece.contains("Sequence")))
        refuse(str("post_processor.single has ", show_utf8(piece.dump().substr(0, 80)),
                   ", which is neither a SpecialToken nor a Sequence"));
      if (is_special) {
        add_special(step, member(piece["SpecialToken"], "id"), is_behind ? out_.behind : out_.before);
        continue;
      }
      if (is_behind) refuse("post_processor.single has the text twice");
      is_behind = true;
    }
    if (!is_behind) refuse("post_processor.single has no text");
  }

  void add_special(const json& step, const json& name, std::vector<int32_t>& to) const {
    const json& all = member(step, "special_tokens");
    if (!name.is_string() || !all.is_object() || !all.contains(name.get<std::string>()))
      refuse(str("post_processor.special_tokens lacks ", show_utf8(name.dump().substr(0, 80))));
    const json& ids = member(all[name.get<std::string>()], "ids");
    if (!ids.is_array()) refuse("post_processor.special_tokens has ids that are no list");
    for (const json& id : ids) {
      const bool is_known =
          id.is_number_unsigned() && id.get<uint64_t>() < names_.size() && !names_[id.get<size_t>()].empty();
      if (!is_known) refuse(str("post_processor: the id ", show_utf8(id.dump().substr(0, 80)), " is no token"));
      if (to.size() == kMaxEndIds)
        refuse(str("post_processor.single puts more than ", kMaxEndIds, " ids before or behind a text"));
      to.push_back(id.get<int32_t>());
    }
  }

  int32_t find(const std::string& token, size_t merge) const {
    auto at = ids_.find(token);
    if (at == ids_.end())
      refuse(str("merge ", merge, " uses or makes \"", show_utf8(token.substr(0, 80)), "\", which is no token"));
    return at->second;
  }

  void read_merges(const json& merges) {
    if (!merges.is_array()) refuse("model.merges is no list");
    out_.model.merges = MergeTable(merges.size());
    made_.assign(names_.size(), false);
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      const json& merge = merges[rank];
      std::string left, right;
      if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        left = merge[0].get<std::string>(), right = merge[1].get<std::string>();
      } else if (merge.is_string()) {
        const auto text = merge.get<std::string>();
        const size_t blank = text.find(' ');
        if (blank != std::string::npos) left = text.substr(0, blank), right = text.substr(blank + 1);
      }
      if (left.empty() || right.empty()) refuse(str("merge ", rank, " is not two tokens"));
      const int32_t made = find(left + right, rank);
      if (!out_.model.merges.insert(find(left, rank), find(right, rank), static_cast<uint32_t>(rank), made))
        refuse(str("merge ", rank, " stands in the file already"));
      made_[static_cast<size_t>(made)] = true;
    }
  }

  void finish(bool takes_whole_pieces) {
    BpeModel& model = out_.model;
    const ByteAlphabet alphabet;
    const size_t count = names_.size();
    std::vector<bool> is_added(count, false);
    for (int32_t id : added_) is_added[static_cast<size_t>(id)] = true;
    if (count > 2 * ids_.size() + 65536) refuse(str("has ", ids_.size(), " tokens, and ids up to ", count - 1));
    model.bytes.resize(count);
    model.is_special.assign(count, true);
    model.byte_ids.fill(-1);
    for (size_t id = 0; id < count; ++id) {
      if (is_added[id] || names_[id].empty()) {
        if (made_[id]) refuse(str("a merge makes the added token \"", show_utf8(names_[id]), "\""));
        model.bytes[id] = names_[id];
        continue;
      }
      if (!alphabet.to_bytes(names_[id], model.bytes[id]))
        refuse(str("token \"", show_utf8(names_[id]), "\" (id ", id, ") is not in the byte alphabet"));
      const bool is_byte = model.bytes[id].size() == 1;
      if (is_byte) model.byte_ids[static_cast<unsigned char>(model.bytes[id][0])] = static_cast<int32_t>(id);
      model.is_special[id] = !(is_byte || made_[id] || takes_whole_pieces);
      if (takes_whole_pieces) model.whole_pieces.emplace(model.bytes[id], static_cast<int32_t>(id));
    }
    for (size_t byte = 0; byte < 256; ++byte)
      if (model.byte_ids[byte] < 0) refuse(str("has no token for byte ", byte));
    model.fingerprint = Fingerprint().add(text_).value();
  }

  const std::string& path_;
  std::string text_;
  std::unordered_map<std::string, int32_t> ids_;
  std::vector<std::string> names_;  // by id
  std::vector<int32_t> added_;
  std::vector<bool> made_;  // by id: a merge makes it
  TokenizerFile out_;
};

}  // namespace

TokenizerFile read_tokenizer_json(const std::string& path) { return Reader(path).read(); }

}  // namespace weft::data
