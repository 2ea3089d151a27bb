// weft data tokenize|bpe|pack|info|check: texts to token shards, texts to a tokenizer, shards to other shards, what is in them, whether
// they are sound.
#include <fmt/format.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/console/live_lines.h"
#include "trainers/console/progress.h"
#include "weft/data/loader.h"
#include "weft/data/shards.h"
#include "weft/data/tokenize.h"
#include "weft/io/files.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  std::vector<std::string> inputs;
  std::string out, tokenizer = "bytes", vocab_file, merges_file, alphabet_file, tokenizer_file, kind, field = "text",
                   pattern = "llama3";
  int64_t vocab = 0;
  int raw_width = 0;
  int64_t end_of_text = -1;
  bool blank_lines = false, joins_documents = false;
  std::optional<Arguments> tokenize = {}, bpe = {}, pack = {}, info = {}, check = {};
};

data::ShardKind kind_of(const std::string& name) {
  const std::string names[] = {"raw", "header", "megatron"};
  config::check_choice("--kind", name, names, "kind of shard");
  return name == "raw" ? data::ShardKind::raw : name == "header" ? data::ShardKind::header : data::ShardKind::megatron;
}

std::unique_ptr<data::Tokenizer> make_tokenizer(const Options& o) {
  const std::string names[] = {"bytes", "characters", "gpt2", "bpe"};
  config::check_choice("--tokenizer", o.tokenizer, names, "tokenizer");
  if (o.tokenizer == "bytes") return data::make_byte_tokenizer();
  if (o.tokenizer == "bpe") {
    if (o.tokenizer_file.empty())
      throw config::ConfigError("--tokenizer bpe: --file is missing.", "Name a tokenizer.json.");
    return data::make_bpe_tokenizer(o.tokenizer_file);
  }
  if (o.tokenizer == "gpt2") {
    if (o.vocab_file.empty() || o.merges_file.empty())
      throw config::ConfigError("--tokenizer gpt2: --vocab and --merges are missing.",
                                "Name vocab.json and merges.txt.");
    return data::make_gpt2_tokenizer(o.vocab_file, o.merges_file);
  }
  if (o.alphabet_file.empty())
    throw config::ConfigError("--tokenizer characters: --alphabet is missing.",
                              "Name the file of the alphabet; it is made from the texts if it does not exist.");
  if (!io::file_exists(o.alphabet_file))
    data::save_alphabet(o.alphabet_file, data::alphabet_of_files(o.inputs, {.field = o.field}));
  return data::make_character_tokenizer(data::load_alphabet(o.alphabet_file));
}

int tokenize(const Options& o, Console& console) {
  if (o.out.empty())
    throw config::ConfigError("weft data tokenize: --out is missing.",
                              "Name where the shards go, such as data/corpus.");
  auto tokenizer = make_tokenizer(o);
  LiveLines lines(live_options(STDERR_FILENO));
  data::TokenizeOptions how{.output = o.out, .text = {.blank_lines = o.blank_lines, .field = o.field}};
  if (!o.kind.empty()) how.kind = kind_of(o.kind);
  if (console.verbosity() != Verbosity::quiet)
    how.progress = [&](int64_t done, int64_t total) { lines.draw({bytes_bar(done, total)}); };
  data::TokenizeResult result = data::tokenize_files(o.inputs, *tokenizer, how);
  lines.finish();
  nlohmann::ordered_json out{
      {"shards", result.shards}, {"tokens", result.tokens}, {"documents", result.documents}, {"bytes", result.bytes}};
  console.result(console.is_json()
                     ? json_text(out)
                     : fmt::format("{} tokens of {} documents ({} bytes) in {} shards: {} ...\n", result.tokens,
                                   result.documents, result.bytes, result.shards.size(), result.shards.front()));
  return kSuccess;
}

// Learns a tokenizer from texts.
int learn_bpe(const Options& o, Console& console) {
  if (o.out.empty())
    throw config::ConfigError("weft data bpe: --out is missing.", "Name the file, such as tokenizer.json.");
  if (o.vocab == 0)
    throw config::ConfigError("weft data bpe: --vocab is missing.", "Say how many ids to learn, such as 4096.");
  const std::string names[] = {"gpt2", "llama3", "qwen2"};
  config::check_choice("--pattern", o.pattern, names, "pattern");
  std::vector<std::string> inputs;
  for (const std::string& input : o.inputs)
    for (const std::string& path : data::expand_path(input)) inputs.push_back(path);
  const data::BpeTrained done = data::train_bpe(
      inputs, o.out, {.vocab = o.vocab, .pattern = o.pattern, .blank_lines = o.blank_lines, .field = o.field});
  console.result(
      console.is_json()
          ? json_text(nlohmann::ordered_json{
                {"tokenizer", o.out}, {"vocab", done.vocab}, {"merges", done.merges}, {"pieces", done.pieces}})
          : fmt::format("{} ids, {} merges, from {} different pieces, in {}\n", done.vocab, done.merges, done.pieces,
                        o.out));
  return kSuccess;
}

// A file without header and index is ids only if its name says so, or the width is given.
data::Shard open_shard(const std::string& path, const Options& o) {
  return data::Shard::open(path, {.raw_width = o.raw_width ? o.raw_width : path.ends_with(".bin") ? 2 : 0});
}

// What `pack` writes.
struct Packing {
  data::ShardKind kind;
  std::optional<int32_t> end_of_text;
  bool joins_documents;
};

void check_documents(const Packing& packing, const std::vector<data::Shard>& shards) {
  constexpr const char* kJoin = "--join-documents if they may run into each other.";
  int64_t known = 0;
  for (const data::Shard& shard : shards) {
    known += shard.num_documents();
    if (packing.kind != data::ShardKind::megatron || shard.has_documents()) continue;
    if (!packing.end_of_text && !packing.joins_documents)
      throw config::ConfigError(
          str("weft data pack: ", shard.path(), " does not say where its documents begin, and a Megatron pair does."),
          str("Give --end-of-text ID, the id that separates them, or ", kJoin));
  }
  if (packing.kind != data::ShardKind::megatron && known > 1 && !packing.end_of_text && !packing.joins_documents)
    throw config::ConfigError(str("weft data pack: the inputs have ", known, " documents, and a shard of kind ",
                                  packing.kind, " keeps no index of them."),
                              str("Use --kind megatron, or --end-of-text ID to write that id behind each, or ", kJoin));
}

// Inputs that follow each other and mark documents alike: a document may be split between them.
std::vector<data::Dataset> streams_of(const std::vector<data::Shard>& shards) {
  std::vector<data::Dataset> streams;
  for (size_t begin = 0, end = 0; begin < shards.size(); begin = end) {
    auto is_alike = [&](const data::Shard& shard) {
      return shard.kind() == shards[begin].kind() && shard.has_documents() == shards[begin].has_documents();
    };
    while (end < shards.size() && is_alike(shards[end])) ++end;
    streams.emplace_back(std::vector<data::Shard>(shards.begin() + static_cast<ptrdiff_t>(begin),
                                                  shards.begin() + static_cast<ptrdiff_t>(end)));
  }
  return streams;
}

constexpr int64_t kAnyVocab = int64_t{1} << 31;

// The first token behind the document that holds token `begin`.
int64_t document_end(const data::Dataset& stream, int64_t begin, const Packing& packing, data::DocumentRule rule) {
  if (stream.has_documents()) return stream.next_document(begin);
  if (packing.kind != data::ShardKind::megatron || rule == data::DocumentRule::none) return stream.num_tokens();
  std::vector<int32_t> ids;
  for (int64_t at = begin; at < stream.num_tokens(); at += static_cast<int64_t>(ids.size())) {
    ids.resize(static_cast<size_t>(std::min<int64_t>(4096, stream.num_tokens() - at)));
    stream.read(at, ids, kAnyVocab);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] != *packing.end_of_text) continue;
      int64_t token = at + static_cast<int64_t>(i);
      if (rule == data::DocumentRule::ends_with_id) return token + 1;
      if (token > begin) return token;
    }
  }
  return stream.num_tokens();
}

// Copies tokens and returns the last id, or nothing if there is none.
std::optional<int32_t> copy_tokens(const data::Dataset& stream, int64_t begin, int64_t end, data::ShardWriter& writer) {
  std::vector<int32_t> ids;
  for (; begin < end; begin += static_cast<int64_t>(ids.size())) {
    ids.resize(static_cast<size_t>(std::min<int64_t>(end - begin, 1 << 20)));
    stream.read(begin, ids, kAnyVocab);
    writer.append(ids);
  }
  return ids.empty() ? std::nullopt : std::optional(ids.back());
}

void copy_stream(const data::Dataset& stream, const Packing& packing, data::ShardWriter& writer) {
  const bool has_index = packing.kind == data::ShardKind::megatron;
  const bool marks = stream.has_documents() && !has_index && packing.end_of_text;
  const data::DocumentRule rule = data::document_rule_of(stream, packing.end_of_text, kAnyVocab);
  for (int64_t begin = 0; begin < stream.num_tokens();) {
    int64_t end = document_end(stream, begin, packing, rule);
    auto last = copy_tokens(stream, begin, end, writer);
    if (marks && last != packing.end_of_text) writer.append({&*packing.end_of_text, 1});
    if (has_index) writer.end_document();
    begin = end;
  }
}

// Joins shards into one, perhaps of another kind.
int pack(const Options& o, Console& console) {
  if (o.out.empty())
    throw config::ConfigError("weft data pack: --out is missing.", "Name the new shard, such as data/all.bin.");
  Packing packing{kind_of(o.kind.empty() ? "header" : o.kind),
                  o.end_of_text < 0 ? std::nullopt : std::optional(static_cast<int32_t>(o.end_of_text)),
                  o.joins_documents};
  std::vector<data::Shard> shards;
  int64_t largest = std::max<int64_t>(0, o.end_of_text);
  for (const std::string& input : o.inputs)
    for (const std::string& path : data::expand_path(input)) {
      shards.push_back(open_shard(path, o));
      largest = std::max(largest, data::check_ids(shards.back(), kAnyVocab));
    }
  check_documents(packing, shards);
  data::ShardWriter writer(o.out, packing.kind, data::id_width(largest + 1));
  for (const data::Dataset& stream : streams_of(shards)) copy_stream(stream, packing, writer);
  const int64_t tokens = writer.num_tokens();
  writer.close();
  console.result(console.is_json() ? json_text(nlohmann::ordered_json{{"shard", o.out}, {"tokens", tokens}})
                                   : fmt::format("{} tokens in {}\n", tokens, o.out));
  return kSuccess;
}

// info lists; check reads every id. A shard that is not sound: exit code 4 after all have been looked at.
int look(const Options& o, bool checks, Console& console) {
  auto rows = nlohmann::ordered_json::array();
  std::string text;
  bool all_good = true;
  for (const std::string& input : o.inputs)
    for (const std::string& path : data::expand_path(input)) {
      nlohmann::ordered_json row{{"path", path}};
      try {
        data::Shard shard = open_shard(path, o);
        row.update({{"kind", std::string(data::to_string(shard.kind()))},
                    {"ids", std::string(shard.type())},
                    {"tokens", shard.num_tokens()},
                    {"documents", shard.num_documents()}});
        if (checks) row["largest_id"] = data::check_ids(shard, o.vocab ? o.vocab : int64_t{1} << 31);
        text += fmt::format("{}  {} {}  {} tokens  {} documents{}\n", path, std::string(data::to_string(shard.kind())),
                            std::string(shard.type()), shard.num_tokens(), shard.num_documents(),
                            checks ? fmt::format("  largest id {}  good", row["largest_id"].dump()) : "");
      } catch (const Error& error) {
        if (!checks) throw;
        all_good = false;
        row["error"] = error.problem();
        text += fmt::format("{}  BAD: {}\n", path, error.problem());
      }
      rows.push_back(row);
    }
  console.result(console.is_json() ? json_text(nlohmann::ordered_json{{"shards", rows}, {"good", all_good}}) : text);
  return all_good ? kSuccess : kCheckFailed;
}

}  // namespace

Action define_data(Arguments& app) {
  auto o = std::make_shared<Options>();
  app.require_subcommand();
  auto sub = [&](const char* name, const char* help) {
    Arguments command = app.add_subcommand(name, help);
    command.add_option("INPUT", o->inputs, "Files; * and ? match names").required();
    return command;
  };
  o->tokenize = sub("tokenize", "UTF-8 text or JSONL (also gzip) to token shards");
  o->tokenize->add_option("--out", o->out, "Shards are OUT_000000.bin ...").type_name("PATH");
  o->tokenize->add_option("--tokenizer", o->tokenizer, "bytes, characters, gpt2 or bpe").type_name("NAME");
  o->tokenize->add_option("--file", o->tokenizer_file, "tokenizer.json of bpe").type_name("FILE");
  o->tokenize->add_option("--vocab", o->vocab_file, "GPT-2 vocab.json").type_name("FILE");
  o->tokenize->add_option("--merges", o->merges_file, "GPT-2 merges.txt").type_name("FILE");
  o->tokenize->add_option("--alphabet", o->alphabet_file, "Alphabet of characters; made from the texts if absent")
      .type_name("FILE");
  o->tokenize->add_option("--kind", o->kind, "raw, header or megatron").type_name("KIND");
  o->tokenize->add_option("--field", o->field, "JSONL: the field that holds the text; default text").type_name("NAME");
  o->tokenize->add_flag("--blank-lines", o->blank_lines, "Blank lines separate the documents of a text");
  o->bpe = sub("bpe", "Learn a byte-level BPE from UTF-8 text or JSONL");
  o->bpe->add_option("--out", o->out, "The tokenizer.json to write").type_name("FILE");
  o->bpe->add_option("--vocab", o->vocab, "Ids: 256 bytes, merges and <|endoftext|>").type_name("N").takes_size();
  o->bpe->add_option("--pattern", o->pattern, "How texts are cut: gpt2, llama3 or qwen2").type_name("NAME");
  o->bpe->add_option("--field", o->field, "JSONL: the field that holds the text; default text").type_name("NAME");
  o->bpe->add_flag("--blank-lines", o->blank_lines, "Blank lines separate the documents of a text");
  o->pack = sub("pack", "Join shards into one of another kind");
  o->pack->add_option("--out", o->out, "The new shard").type_name("PATH");
  o->pack->add_option("--kind", o->kind, "raw, header or megatron").type_name("KIND");
  o->pack
      ->add_option("--end-of-text", o->end_of_text,
                   "The id that separates documents: found in inputs without an index for a Megatron pair, and written "
                   "behind each document of a pair for the other kinds")
      .range(int64_t{0}, (int64_t{1} << 31) - 1)
      .type_name("ID");
  o->pack->add_flag("--join-documents", o->joins_documents, "Documents may run into each other");
  o->info = sub("info", "Kind, ids, tokens and documents of shards");
  o->check = sub("check", "Read every id of shards");
  o->check->add_option("--vocab", o->vocab, "Ids must be below this").type_name("N");
  for (Arguments command : {*o->pack, *o->info, *o->check})
    command.add_option("--raw-width", o->raw_width, "Bytes per id of files without header; default 2 for *.bin")
        .one_of({2, 4})
        .type_name("N");
  return [o](Console& console, const Extensions&) {
    if (o->tokenize->is_named()) return tokenize(*o, console);
    if (o->bpe->is_named()) return learn_bpe(*o, console);
    if (o->pack->is_named()) return pack(*o, console);
    return look(*o, o->check->is_named(), console);
  };
}

}  // namespace weft::cli
