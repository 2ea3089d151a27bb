#include "trainers/huggingface/tokenizer_files.h"

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "src/data/bpe.h"
#include "trainers/huggingface/json_fields.h"
#include "trainers/run/prompt_start.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"
#include "weft/io/files.h"

namespace weft::huggingface {

namespace {

constexpr const char* kVocabName = "vocab.json";
constexpr const char* kMergesName = "merges.txt";
constexpr const char* kTokenizerConfigName = "tokenizer_config.json";
constexpr const char* kGpt2Class = "GPT2Tokenizer";
constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;

std::string ids_text(const std::vector<int32_t>& ids) {
  std::string text;
  for (int32_t id : ids) text += str(text.empty() ? "" : ", ", id);
  return text;
}

// The pair does not say how texts are cut into pieces: the class of the tokenizer does. Empty: as GPT-2 cuts them.
std::string problem_of_pair(const Folder& folder, Family family) {
  const std::string path = folder.file(kTokenizerConfigName);
  const std::string pair = str(kVocabName, " and ", kMergesName);
  if (!io::file_exists(path))
    return family == Family::gpt2 ? ""
                                  : str(pair, " do not say how texts are cut, and there is no ", kTokenizerConfigName);
  const nlohmann::json config = read_json(path, kMaxConfigBytes);
  JsonFields fields(config, path);
  const std::string kind = fields.text("tokenizer_class", family == Family::gpt2 ? kGpt2Class : "");
  if (kind != kGpt2Class && kind != str(kGpt2Class, "Fast"))
    return str(path, ": tokenizer_class is \"", data::show_utf8(kind), "\", and of ", pair, " alone ", kGpt2Class,
               " is read");
  for (const char* key : {"add_prefix_space", "add_bos_token"})
    if (fields.flag(key, false)) return str(path, ": ", key, " is true, which Weft does not have");
  return "";
}

void require_fit(const data::Tokenizer& tokenizer, int64_t vocab, const std::string& path) {
  WEFT_CHECK(tokenizer.vocab_size() <= vocab,
             str(path, ": has ", tokenizer.vocab_size(), " ids, and the model has ", vocab), "give the model's own");
}

std::string in_run(const std::string& run, const char* name) {
  return std::filesystem::absolute(run + "/" + name).string();
}

RunTokenizer take_json(const Folder& folder, int64_t vocab, const std::string& run) {
  const std::string path = folder.file(kTokenizerName);
  const auto tokenizer = data::make_bpe_tokenizer(path);
  require_fit(*tokenizer, vocab, path);
  RunTokenizer out{.name = "bpe", .files = {{kTokenizerName, io::read_file(path)}}};
  out.vocab = tokenizer->vocab_size(), out.end_of_text = tokenizer->end_of_text();
  out.config.mutable_bpe()->set_file(in_run(run, kTokenizerName));
  const data::TokenizerFile file = data::read_tokenizer_json(path);
  if (file.before.size() == 1)
    out.notes.push_back(str("id ", file.before[0], " stands before every prompt, as ", kTokenizerName, " has it"));
  if (file.before.size() > 1)
    out.notes.push_back(str("the ids ", ids_text(file.before), " that ", kTokenizerName,
                            " puts before a text are not put there: a run has one at most"));
  if (!file.behind.empty())
    out.notes.push_back(str("the ids ", ids_text(file.behind), " that ", kTokenizerName,
                            " puts behind a text are not put there: a prompt would end with them"));
  return out;
}

RunTokenizer take_pair(const Folder& folder, int64_t vocab, const std::string& run) {
  const std::string words = folder.file(kVocabName), merges = folder.file(kMergesName);
  const auto tokenizer = data::make_gpt2_tokenizer(words, merges);
  require_fit(*tokenizer, vocab, words);
  RunTokenizer out{.name = "gpt2", .files = {{kVocabName, io::read_file(words)}, {kMergesName, io::read_file(merges)}}};
  out.vocab = tokenizer->vocab_size(), out.end_of_text = tokenizer->end_of_text();
  out.config.mutable_gpt2()->set_vocab(in_run(run, kVocabName));
  out.config.mutable_gpt2()->set_merges(in_run(run, kMergesName));
  return out;
}

RunTokenizer no_tokenizer(const std::string& note) {
  RunTokenizer out{.notes = {note}};
  out.config.mutable_ids();
  return out;
}

}  // namespace

RunTokenizer take_tokenizer(const Folder& folder, Family family, int64_t vocab, const std::string& run) {
  const std::string not_taken = "the tokenizer is not taken, the run has ids: ";
  try {
    if (io::file_exists(folder.file(kTokenizerName))) return take_json(folder, vocab, run);
    if (!io::file_exists(folder.file(kVocabName)) || !io::file_exists(folder.file(kMergesName)))
      return no_tokenizer(str("there is neither ", kTokenizerName, " nor ", kVocabName, " with ", kMergesName,
                              ": the run has ids, written as numbers"));
    const std::string problem = problem_of_pair(folder, family);
    return problem.empty() ? take_pair(folder, vocab, run) : no_tokenizer(not_taken + problem);
  } catch (const Error& error) { return no_tokenizer(not_taken + error.problem()); }
}

FolderTokenizer give_tokenizer(const config::Loaded& run, int64_t vocab) {
  const config::Data& data = run.experiment.data();
  const config::Tokenizer& given = data.tokenizer();
  FolderTokenizer out;
  std::unique_ptr<data::Tokenizer> tokenizer;
  if (given.has_bpe()) {
    tokenizer = data::make_bpe_tokenizer(given.bpe().file());
    out.files = {{kTokenizerName, io::read_file(given.bpe().file())}};
    const std::vector<int32_t> before = data::read_tokenizer_json(given.bpe().file()).before;
    if (!before.empty() && !data.weights_only())
      out.notes.push_back(str("readers put the ids ", ids_text(before), " before a text, as ", kTokenizerName,
                              " says, and the run was trained without them"));
  } else if (given.has_gpt2()) {
    tokenizer = data::make_gpt2_tokenizer(given.gpt2().vocab(), given.gpt2().merges());
    out.files = {{kVocabName, io::read_file(given.gpt2().vocab())},
                 {kMergesName, io::read_file(given.gpt2().merges())},
                 {kTokenizerConfigName, nlohmann::ordered_json{{"tokenizer_class", kGpt2Class}}.dump(2) + "\n"}};
  } else {
    if (given.has_bytes()) tokenizer = data::make_byte_tokenizer();
    out.notes.push_back("the run's tokenizer has no file there: readers give ids");
  }
  if (data.has_end_of_text()) out.end_of_text = data.end_of_text();
  else if (tokenizer && tokenizer->end_of_text()) out.end_of_text = *tokenizer->end_of_text();
  if (const auto start = train::prompt_start(data)) out.begin_of_text = *start;
  // It is the id behind the tokenizer's: the last one, unless the model has more than it needs.
  if (data.first_token() && tokenizer) out.begin_of_text = tokenizer->vocab_size();
  else if (data.first_token() && !run.experiment.model().has_vocab()) out.begin_of_text = vocab - 1;
  return out;
}

}  // namespace weft::huggingface
