#include "src/data/tokenize_record.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "src/data/files.h"
#include "weft/core/error.h"

namespace weft::data {

namespace {

constexpr size_t kMaxRecordBytes = size_t{64} << 20;

std::string hex(const Fingerprint& print) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(print.value()));
  return text;
}

InputFacts facts_of(const std::string& path) {
  struct stat info {};
  WEFT_CHECK(::stat(path.c_str(), &info) == 0, str("cannot read ", path, ": No such file"),
             "give the path of a text or JSONL file");
  return {path, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
}

const InputFacts* find(const std::vector<InputFacts>& inputs, const std::string& path) {
  auto at = std::find_if(inputs.begin(), inputs.end(), [&](const InputFacts& f) { return f.path == path; });
  return at == inputs.end() ? nullptr : &*at;
}

}  // namespace

TokenizeIdentity::TokenizeIdentity(const std::vector<std::string>& paths, const Tokenizer& tokenizer,
                                   const TokenizeOptions& options, ShardKind kind, int width) {
  Fingerprint print, option_print;
  for (const std::string& path : paths) {
    const InputFacts& f = inputs.emplace_back(facts_of(path));
    print.add(f.path).add(static_cast<uint64_t>(f.bytes));
    print.add(static_cast<uint64_t>(f.modified_s)).add(static_cast<uint64_t>(f.modified_ns));
  }
  print.add(tokenizer.fingerprint());
  for (Fingerprint* p : {&print, &option_print}) {
    p->add(to_string(kind)).add(static_cast<uint64_t>(width));
    p->add(static_cast<uint64_t>(options.shard_tokens)).add(static_cast<uint64_t>(options.chunk_bytes));
    p->add(static_cast<uint64_t>(options.text.format)).add(uint64_t{options.text.blank_lines});
    p->add(options.text.field);
  }
  fingerprint = hex(print);
  options_print = hex(option_print);
  tokenizer_print = hex(Fingerprint().add(tokenizer.fingerprint()));
}

std::string difference(const TokenizeIdentity& recorded, const TokenizeIdentity& now) {
  if (recorded.fingerprint == now.fingerprint) return "";
  if (recorded.tokenizer_print.empty())  // written before it held the parts
    return "other inputs (or files changed since), another tokenizer, or other options";
  for (const InputFacts& f : now.inputs) {
    const InputFacts* before = find(recorded.inputs, f.path);
    if (!before) return str("other inputs: ", f.path, " is new");
    if (*before != f) return str("other inputs (files changed since): ", f.path, " has changed");
  }
  for (const InputFacts& f : recorded.inputs)
    if (!find(now.inputs, f.path)) return str("other inputs: ", f.path, " is missing");
  if (recorded.inputs != now.inputs) return "other inputs: the same files in another order";
  return recorded.tokenizer_print != now.tokenizer_print ? "another tokenizer" : "other options";
}

bool is_tokenized_shard(const std::string& path) {
  size_t digits = 0, end = path.size() < 4 ? 0 : path.size() - 4;
  while (digits < end && path[end - digits - 1] >= '0' && path[end - digits - 1] <= '9') ++digits;
  if (!path.ends_with(".bin") || digits < 6 || digits == end || path[end - digits - 1] != '_') return false;
  const std::string record = path.substr(0, end - digits - 1) + ".json";
  if (!file_exists(record)) return false;
  // A look is enough, and somebody else's file of that name is no error.
  constexpr std::string_view kKind = "\"weft tokenize 1\"";
  return std::filesystem::file_size(record) <= kMaxRecordBytes &&
         read_file(record, kMaxRecordBytes).find(kKind) != std::string::npos;
}

void TokenizeRecord::save(const std::string& path) const {
  nlohmann::json inputs = nlohmann::json::array(), facts = nlohmann::json::array();
  for (const InputFacts& f : identity.inputs) {
    inputs.push_back(f.path);
    facts.push_back({{"bytes", f.bytes}, {"modified", {f.modified_s, f.modified_ns}}});
  }
  nlohmann::json json = {{"kind", "weft tokenize 1"},
                         {"fingerprint", identity.fingerprint},
                         {"inputs", inputs},
                         {"input_facts", facts},
                         {"tokenizer_fingerprint", identity.tokenizer_print},
                         {"options_fingerprint", identity.options_print},
                         {"tokenizer", tokenizer},
                         {"complete", is_complete},
                         {"shards", result.shards},
                         {"shard_tokens", shard_tokens},
                         {"tokens", result.tokens},
                         {"documents", result.documents},
                         {"bytes", result.bytes},
                         {"next",
                          {{"file", next.file},
                           {"offset", next.offset},
                           {"line", next.line},
                           {"tokens", next.tokens},
                           {"document_ends", next.document_ends}}}};
  // Paths may hold bytes that are not UTF-8; they are shown replaced rather than stopping the work.
  write_file(path, json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

TokenizeRecord TokenizeRecord::load(const std::string& path) {
  TokenizeRecord record;
  try {
    nlohmann::json json = nlohmann::json::parse(read_file(path, kMaxRecordBytes));
    bool is_record = json.is_object() && json.value("kind", "") == "weft tokenize 1";
    WEFT_CHECK(is_record, str(path, ": not a record of a tokenisation"), "choose another output name");
    json.at("fingerprint").get_to(record.identity.fingerprint);
    record.identity.tokenizer_print = json.value("tokenizer_fingerprint", "");
    record.identity.options_print = json.value("options_fingerprint", "");
    const nlohmann::json facts = json.value("input_facts", nlohmann::json::array());
    for (const nlohmann::json& path : json.at("inputs")) {
      InputFacts& f = record.identity.inputs.emplace_back(InputFacts{.path = path.get<std::string>()});
      if (record.identity.inputs.size() > facts.size()) continue;
      const nlohmann::json& fact = facts[record.identity.inputs.size() - 1];
      fact.at("bytes").get_to(f.bytes);
      fact.at("modified").at(0).get_to(f.modified_s);
      fact.at("modified").at(1).get_to(f.modified_ns);
    }
    json.at("tokenizer").get_to(record.tokenizer);
    json.at("complete").get_to(record.is_complete);
    json.at("shards").get_to(record.result.shards);
    json.at("shard_tokens").get_to(record.shard_tokens);
    json.at("tokens").get_to(record.result.tokens);
    json.at("documents").get_to(record.result.documents);
    json.at("bytes").get_to(record.result.bytes);
    const nlohmann::json& next = json.at("next");
    next.at("file").get_to(record.next.file);
    next.at("offset").get_to(record.next.offset);
    next.at("line").get_to(record.next.line);
    next.at("tokens").get_to(record.next.tokens);
    next.at("document_ends").get_to(record.next.document_ends);
  } catch (const nlohmann::json::exception& error) {
    fail(str(path, ": a damaged record of a tokenisation: ", error.what()),
         "delete it and the shards beside it, then start again");
  }
  const ResumePoint& next = record.next;
  bool is_sane = record.shard_tokens.size() == record.result.shards.size() && next.offset >= 0 && next.tokens >= 0 &&
                 next.document_ends >= 0;
  WEFT_CHECK(is_sane, str(path, ": a damaged record of a tokenisation"),
             "delete it and the shards beside it, then start again");
  return record;
}

}  // namespace weft::data
