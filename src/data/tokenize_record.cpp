#include "src/data/tokenize_record.h"

#include <sys/stat.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "src/data/files.h"
#include "weft/core/error.h"

namespace weft::data {

namespace {

constexpr size_t kMaxRecordBytes = size_t{64} << 20;

}  // namespace

std::string fingerprint_of(const std::vector<std::string>& inputs, const Tokenizer& tokenizer,
                           const TokenizeOptions& options, ShardKind kind, int width) {
  Fingerprint print;
  for (const std::string& path : inputs) {
    struct stat info {};
    WEFT_CHECK(::stat(path.c_str(), &info) == 0, str("cannot read ", path, ": No such file"),
               "give the path of a text or JSONL file");
    print.add(path).add(static_cast<uint64_t>(info.st_size));
    print.add(static_cast<uint64_t>(info.st_mtim.tv_sec)).add(static_cast<uint64_t>(info.st_mtim.tv_nsec));
  }
  print.add(tokenizer.fingerprint()).add(to_string(kind)).add(static_cast<uint64_t>(width));
  print.add(static_cast<uint64_t>(options.shard_tokens)).add(static_cast<uint64_t>(options.chunk_bytes));
  print.add(static_cast<uint64_t>(options.text.format)).add(uint64_t{options.text.blank_lines}).add(options.text.field);
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(print.value()));
  return text;
}

void TokenizeRecord::save(const std::string& path) const {
  nlohmann::json json = {{"kind", "weft tokenize 1"},
                         {"fingerprint", fingerprint},
                         {"inputs", inputs},
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
    json.at("fingerprint").get_to(record.fingerprint);
    json.at("inputs").get_to(record.inputs);
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
