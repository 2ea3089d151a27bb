// A tokenizer.json as a test writes it.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "src/data/byte_alphabet.h"
#include "src/data/pretokenize.h"
#include "tests/data/support.h"
#include "weft/data/tokenizer.h"

namespace weft::test {

inline const data::PiecePattern& pattern_of(std::string_view name) {
  for (const data::PiecePattern& pattern : data::piece_patterns())
    if (pattern.name == name) return pattern;
  throw std::runtime_error("no pattern");
}

// A tokenizer.json of the bytes and these merges, in the way of Llama 3.
inline nlohmann::json file_of(const std::vector<std::pair<std::string, std::string>>& merges,
                              const std::string& name = "llama3") {
  const data::ByteAlphabet alphabet;
  nlohmann::json vocab = nlohmann::json::object(), list = nlohmann::json::array();
  for (int byte = 0; byte < 256; ++byte) vocab[alphabet.to_text(std::string(1, static_cast<char>(byte)))] = byte;
  for (const auto& [left, right] : merges) {
    list.push_back({alphabet.to_text(left), alphabet.to_text(right)});
    const std::string made = alphabet.to_text(left + right);
    if (!vocab.contains(made)) vocab[made] = vocab.size();
  }
  const nlohmann::json bytes = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  const nlohmann::json split = {
      {"type", "Split"}, {"pattern", {{"Regex", pattern_of(name).regex}}}, {"behavior", "Isolated"}, {"invert", false}};
  return {{"normalizer", nullptr},
          {"added_tokens",
           nlohmann::json::array({{{"id", vocab.size()}, {"content", "<|end_of_text|>"}, {"special", true}}})},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, bytes}}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", list}}}};
}

inline std::unique_ptr<data::Tokenizer> make(const TempFolder& folder, const nlohmann::json& file) {
  write_bytes(folder / "tokenizer.json", file.dump());
  return data::make_bpe_tokenizer(folder / "tokenizer.json");
}

}  // namespace weft::test
