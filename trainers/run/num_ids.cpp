#include "trainers/run/num_ids.h"

#include <filesystem>
#include <set>

#include "trainers/config/translate.h"
#include "weft/data/recall.h"
#include "weft/data/shards.h"
#include "weft/data/tokenize.h"
#include "weft/data/tokenizer.h"

namespace weft::train {

namespace {

std::optional<int64_t> num_characters(const config::Data& d, int64_t most_bytes) {
  std::set<char32_t> all;
  for (const config::Source& source : d.train()) {
    if (most_bytes <= 0) return {};  // no file is looked for
    const std::vector<std::string> files = data::expand_path(source.path());
    for (const std::string& file : files) {
      most_bytes -= static_cast<int64_t>(std::filesystem::file_size(file));
      if (most_bytes < 0 || file.ends_with(".bin") || file.ends_with(".idx")) return {};
    }
    const data::Alphabet own = data::alphabet_of_files(files, {.field = source.field()});
    all.insert(own.begin(), own.end());
  }
  return static_cast<int64_t>(all.size());
}

std::optional<int64_t> of_tokenizer(const config::Data& d, int64_t most_text_bytes) {
  const config::Tokenizer& t = d.tokenizer();
  if (t.has_bpe()) return data::make_bpe_tokenizer(t.bpe().file())->vocab_size();
  if (t.has_gpt2()) return data::make_gpt2_tokenizer(t.gpt2().vocab(), t.gpt2().merges())->vocab_size();
  if (t.has_bytes()) return data::make_byte_tokenizer()->vocab_size();
  if (t.has_characters()) return num_characters(d, most_text_bytes);
  return {};
}

}  // namespace

std::optional<int64_t> num_ids_of(const config::Loaded& config, int64_t most_text_bytes) {
  const config::Experiment& e = config.experiment;
  if (e.model().has_vocab()) return e.model().vocab();
  if (e.data().has_task()) return data::RecallTask(recall_options(e.data().task()), e.model().context(), 0).vocab();
  const std::optional<int64_t> ids = of_tokenizer(e.data(), most_text_bytes);
  return ids ? std::optional(*ids + (e.data().first_token() ? 1 : 0)) : std::nullopt;
}

}  // namespace weft::train
