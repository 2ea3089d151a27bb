// Tokenizers that cut a text into pieces by a pattern, and encode each piece by byte-pair merges.
#include <mutex>
#include <utility>

#include "src/data/bpe.h"
#include "src/data/files.h"
#include "src/data/pretokenize.h"
#include "src/data/utf8.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"

namespace weft::data {

namespace {

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(std::string name, BpeModel model, const PieceRule& rule, bool is_composed = false)
      : name_(std::move(name)), model_(std::move(model)), rule_(rule), is_composed_(is_composed) {}

  std::vector<int32_t> encode(std::string_view given) const override {
    const std::string made = is_composed_ ? composed(given) : std::string();
    const std::string_view text = is_composed_ ? std::string_view(made) : given;
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 3 + 1);
    std::unique_ptr<BpeEncoder> encoder = borrow_encoder();
    for (size_t at = 0; at < text.size();) {
      size_t end = rule_.piece_end(text, at);
      encoder->encode(text.substr(at, end - at), ids);
      at = end;
    }
    return_encoder(std::move(encoder));
    return ids;
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (int32_t id : ids) text += model_.bytes[index(id)];
    return text;
  }

  int64_t vocab_size() const override { return static_cast<int64_t>(model_.bytes.size()); }
  int64_t byte_length(int32_t id) const override {
    size_t i = index(id);
    return model_.is_special[i] ? 0 : static_cast<int64_t>(model_.bytes[i].size());
  }
  std::optional<int32_t> end_of_text() const override {
    return model_.end_of_text < 0 ? std::nullopt : std::optional(model_.end_of_text);
  }
  std::string name() const override { return name_; }
  uint64_t fingerprint() const override { return Fingerprint().add(name_).add(model_.fingerprint).value(); }
  size_t last_cut(std::string_view text) const override { return rule_.last_cut(text); }

 private:
  size_t index(int32_t id) const {
    WEFT_CHECK(id >= 0 && id < vocab_size(),
               str("tokenizer ", name_, ": id ", id, " is outside its ", vocab_size(), " ids"),
               "decode with the tokenizer that made the ids");
    return static_cast<size_t>(id);
  }

  // Encoders keep their cache of pieces between calls; as many exist as calls have run at once.
  std::unique_ptr<BpeEncoder> borrow_encoder() const {
    {
      std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        auto encoder = std::move(idle_.back());
        idle_.pop_back();
        return encoder;
      }
    }
    return std::make_unique<BpeEncoder>(model_);
  }
  void return_encoder(std::unique_ptr<BpeEncoder> encoder) const {
    std::lock_guard lock(mutex_);
    idle_.push_back(std::move(encoder));
  }

  std::string name_;
  BpeModel model_;
  const PieceRule& rule_;
  bool is_composed_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<BpeEncoder>> idle_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_gpt2_tokenizer(const std::string& vocab_path, const std::string& merges_path) {
  return std::make_unique<BpeTokenizer>("gpt2", read_gpt2_files(vocab_path, merges_path), kGpt2Pieces);
}

std::unique_ptr<Tokenizer> make_bpe_tokenizer(const std::string& path) {
  TokenizerFile file = read_tokenizer_json(path);
  return std::make_unique<BpeTokenizer>("bpe", std::move(file.model), file.pattern->rule, file.is_composed);
}

}  // namespace weft::data
