// Learning merges (Sennrich et al., 1508.07909) on bytes: again and again the most frequent pair of neighbours becomes a token. Counts are kept
// per pair and changed only where a merge changes a piece.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <queue>
#include <set>
#include <unordered_map>
#include <utility>

#include "src/data/bpe.h"
#include "src/data/byte_alphabet.h"
#include "src/data/files.h"
#include "src/data/text_source.h"
#include "src/data/utf8.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"

namespace weft::data {

namespace {

constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr const char* kEndOfText = "<|endoftext|>";

using PieceCounts = std::unordered_map<std::string, int64_t, BytesHash, std::equal_to<>>;

const PiecePattern& pattern_named(const std::string& name) {
  std::string names;
  for (const PiecePattern& pattern : piece_patterns()) {
    if (pattern.name == name) return pattern;
    names += str(names.empty() ? "" : ", ", pattern.name);
  }
  fail(str("train_bpe: there is no pattern '", name, "'"), "use " + names);
}

PieceCounts count_pieces(const std::vector<std::string>& inputs, const PiecePattern& pattern, const BpeTraining& o) {
  PieceCounts counts;
  const TextOptions how{.blank_lines = o.blank_lines, .field = o.field};
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Layout layout = layout_of(inputs[i], how);
    ChunkReader reader(inputs[i], i, layout, pattern.rule.last_cut, 1 << 20, 0, 1);
    for (Chunk chunk; reader.next(chunk);)
      for_each_document(chunk, inputs[i], layout, o.field, [&](std::string_view given, bool) {
        const std::string made = pattern.is_composed ? composed(given) : std::string();
        const std::string_view text = pattern.is_composed ? std::string_view(made) : given;
        for (size_t at = 0; at < text.size();) {
          const size_t end = pattern.rule.piece_end(text, at);
          const std::string_view piece = text.substr(at, end - at);
          auto found = counts.find(piece);
          if (found != counts.end()) ++found->second;
          else counts.emplace(piece, 1);
          at = end;
        }
      });
  }
  return counts;
}

using Pair = std::pair<int32_t, int32_t>;
struct PairHash {
  size_t operator()(const Pair& p) const {
    return static_cast<size_t>((uint64_t{static_cast<uint32_t>(p.first)} << 32 | static_cast<uint32_t>(p.second)) *
                               0x9e3779b97f4a7c15u);
  }
};

class Learner {
 public:
  Learner(const PieceCounts& counts, const std::array<int32_t, 256>& byte_ids) {
    for (const auto& [piece, count] : counts) {
      Word word{.count = count};
      for (const char byte : piece) word.ids.push_back(byte_ids[static_cast<unsigned char>(byte)]);
      if (word.ids.size() > 1) words_.push_back(std::move(word));
    }
    for (size_t w = 0; w < words_.size(); ++w)
      for (size_t i = 0; i + 1 < words_[w].ids.size(); ++i) {
        const Pair pair{words_[w].ids[i], words_[w].ids[i + 1]};
        counts_[pair] += words_[w].count;
        places_[pair].push_back(w);
      }
    for (const auto& [pair, count] : counts_) queue_.push({count, pair});
  }

  // The most frequent pair, of equal ones that of the smallest ids. False if no pair is left.
  bool next(Pair& pair) {
    while (!queue_.empty()) {
      const Entry top = queue_.top();
      queue_.pop();
      const int64_t now = counts_[top.pair];
      if (now < 1) continue;
      if (now != top.count) {
        queue_.push({now, top.pair});
        continue;
      }
      pair = top.pair;
      return true;
    }
    return false;
  }

  void merge(const Pair& pair, int32_t id) {
    std::set<Pair> grown;
    for (const size_t w : std::exchange(places_[pair], {})) {
      Word& word = words_[w];
      std::vector<int32_t> merged;
      for (size_t i = 0; i < word.ids.size(); ++i) {
        const bool is_pair = i + 1 < word.ids.size() && word.ids[i] == pair.first && word.ids[i + 1] == pair.second;
        if (!is_pair) {
          merged.push_back(word.ids[i]);
          continue;
        }
        if (!merged.empty()) {
          change({merged.back(), word.ids[i]}, -word.count);
          change({merged.back(), id}, word.count);
          grown.insert({merged.back(), id});
          places_[{merged.back(), id}].push_back(w);
        }
        if (i + 2 < word.ids.size()) {
          change({word.ids[i + 1], word.ids[i + 2]}, -word.count);
          change({id, word.ids[i + 2]}, word.count);
          grown.insert({id, word.ids[i + 2]});
          places_[{id, word.ids[i + 2]}].push_back(w);
        }
        merged.push_back(id);
        ++i;
      }
      word.ids = std::move(merged);
    }
    counts_[pair] = 0;
    for (const Pair& p : grown)
      if (counts_[p] > 0) queue_.push({counts_[p], p});
  }

 private:
  struct Word {
    std::vector<int32_t> ids = {};
    int64_t count = 0;
  };
  struct Entry {
    int64_t count;
    Pair pair;
    bool operator<(const Entry& other) const { return count != other.count ? count < other.count : pair > other.pair; }
  };
  void change(const Pair& pair, int64_t by) { counts_[pair] += by; }

  std::vector<Word> words_;
  std::unordered_map<Pair, int64_t, PairHash> counts_;
  std::unordered_map<Pair, std::vector<size_t>, PairHash> places_;  // words, some named twice
  std::priority_queue<Entry> queue_;
};

nlohmann::ordered_json byte_level(bool uses_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", uses_regex}};
}

nlohmann::ordered_json file_of(const PiecePattern& pattern, const std::vector<std::string>& tokens,
                               const std::vector<std::string>& merges) {
  using Json = nlohmann::ordered_json;
  Json vocab = Json::object();
  // The order of an object's keys means nothing; ids say what they say.
  for (size_t id = 0; id < tokens.size(); ++id) vocab.get_ref<Json::object_t&>().emplace_back(tokens[id], id);
  Json split = {
      {"type", "Split"}, {"pattern", {{"Regex", pattern.regex}}}, {"behavior", "Isolated"}, {"invert", false}};
  Json pieces = &pattern == &piece_patterns()[0]
                    ? byte_level(true)
                    : Json{{"type", "Sequence"}, {"pretokenizers", {split, byte_level(false)}}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {{{"id", tokens.size()},
             {"content", kEndOfText},
             {"single_word", false},
             {"lstrip", false},
             {"rstrip", false},
             {"normalized", false},
             {"special", true}}}},
          {"normalizer", pattern.is_composed ? Json{{"type", "NFC"}} : Json()},
          {"pre_tokenizer", pieces},
          {"post_processor", nullptr},
          {"decoder", byte_level(true)},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", merges}}}};
}

}  // namespace

BpeTrained train_bpe(const std::vector<std::string>& inputs, const std::string& output, const BpeTraining& options) {
  WEFT_CHECK(options.vocab >= 257 && options.vocab <= kMaxVocab,
             str("train_bpe: a vocabulary of ", options.vocab, " ids"),
             str("use 257, the bytes and ", kEndOfText, ", to ", kMaxVocab));
  const PiecePattern& pattern = pattern_named(options.pattern);
  const ByteAlphabet alphabet;
  // Bytes in the order of their characters, as Hugging Face's trainer numbers them: equal counts are decided by ids.
  std::array<int, 256> order{};
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) {
    return alphabet.code_of(static_cast<unsigned char>(a)) < alphabet.code_of(static_cast<unsigned char>(b));
  });
  std::array<int32_t, 256> byte_ids{};
  std::vector<std::string> tokens, merges;
  std::unordered_map<std::string, int32_t> ids;
  for (const int byte : order) {
    byte_ids[static_cast<size_t>(byte)] = static_cast<int32_t>(tokens.size());
    tokens.push_back(alphabet.to_text(std::string(1, static_cast<char>(byte))));
    ids.emplace(tokens.back(), tokens.size() - 1);
  }
  const PieceCounts counts = count_pieces(inputs, pattern, options);
  WEFT_CHECK(!counts.empty(), "train_bpe: no text in the inputs", "give files with text");
  Learner learner(counts, byte_ids);
  for (Pair pair; static_cast<int64_t>(tokens.size()) + 1 < options.vocab && learner.next(pair);) {
    const std::string left = tokens[static_cast<size_t>(pair.first)], right = tokens[static_cast<size_t>(pair.second)];
    auto [at, is_new] = ids.emplace(left + right, static_cast<int32_t>(tokens.size()));
    if (is_new) tokens.push_back(left + right);
    merges.push_back(left + " " + right);
    learner.merge(pair, at->second);
  }
  write_file(output, file_of(pattern, tokens, merges).dump(1) + "\n");
  return {.vocab = static_cast<int64_t>(tokens.size()) + 1,
          .merges = static_cast<int64_t>(merges.size()),
          .pieces = static_cast<int64_t>(counts.size())};
}

}  // namespace weft::data
