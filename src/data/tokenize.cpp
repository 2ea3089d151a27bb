// Chunks are read in order, encoded on all cores, and appended in order; after each full shard the record is saved.
#include "weft/data/tokenize.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "src/data/files.h"
#include "src/data/shard_data.h"
#include "src/data/text_source.h"
#include "src/data/tokenize_record.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"

namespace weft::data {

namespace {

constexpr const char* kDamagedFix = "delete the record and its shards, then start again";

struct Encoded {
  std::vector<int32_t> ids;
  std::vector<size_t> document_ends;  // how many ids stand before each end
  std::exception_ptr error;
};

// Chunks of all inputs from a resume point on, with the progress.
class Inputs {
 public:
  Inputs(const std::vector<std::string>& paths, const TextOptions& text, ChunkReader::Cut cut, int64_t chunk_bytes,
         ResumePoint from)
      : paths_(paths), text_(text), cut_(std::move(cut)), chunk_bytes_(chunk_bytes), from_(from), file_(from.file) {
    WEFT_CHECK(!paths.empty(), "tokenize: no inputs", "give at least one text or JSONL file");
    WEFT_CHECK(chunk_bytes > 0 && chunk_bytes <= 1 << 30, str("tokenize: chunk_bytes is ", chunk_bytes),
               "use 1 to 2^30 bytes");
    for (const std::string& path : paths) {
      std::error_code code;
      auto size = std::filesystem::file_size(path, code);
      WEFT_CHECK(!code, str("cannot read ", path, ": ", code.message()), "give the path of a text or JSONL file");
      begins_.push_back(total_);
      total_ += static_cast<int64_t>(size);
    }
  }

  // Up to `count` more chunks; none at the end.
  std::vector<Chunk> take(size_t count) {
    std::vector<Chunk> chunks;
    for (Chunk chunk; chunks.size() < count && file_ < paths_.size();) {
      if (!reader_) {
        bool is_first = file_ == from_.file;
        reader_ = std::make_unique<ChunkReader>(paths_[file_], file_, layout(file_), cut_, chunk_bytes_,
                                                is_first ? from_.offset : 0, is_first ? from_.line : 1);
      }
      if (reader_->next(chunk)) {
        chunks.push_back(std::move(chunk));
      } else {
        reader_.reset();
        ++file_;
      }
    }
    return chunks;
  }

  Layout layout(size_t file) const { return layout_of(paths_[file], text_); }
  int64_t total() const { return total_; }
  int64_t done() const {
    return file_ == paths_.size() ? total_ : begins_[file_] + (reader_ ? reader_->bytes_consumed() : 0);
  }

 private:
  const std::vector<std::string>& paths_;
  const TextOptions& text_;
  ChunkReader::Cut cut_;
  int64_t chunk_bytes_;
  ResumePoint from_;
  size_t file_;
  std::unique_ptr<ChunkReader> reader_;
  std::vector<int64_t> begins_;
  int64_t total_ = 0;
};

size_t chunks_at_once() { return static_cast<size_t>(num_threads()) * 4; }

std::string shard_of(const std::string& output, size_t number) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "_%06zu.bin", number);
  return output + digits;
}

// The shards lie beside the record, also after their folder was moved.
void rebase(TokenizeRecord& record, const std::string& output) {
  for (size_t i = 0; i < record.result.shards.size(); ++i) record.result.shards[i] = shard_of(output, i);
}

class Job {
 public:
  Job(const std::vector<std::string>& inputs, const Tokenizer& tokenizer, const TokenizeOptions& options)
      : paths_(inputs), tokenizer_(tokenizer), options_(options), record_path_(options.output + ".json") {
    bool has_end = tokenizer.end_of_text().has_value();
    kind_ = options.kind.value_or(has_end ? ShardKind::header : ShardKind::megatron);
    width_ = options.width ? options.width : id_width(tokenizer.vocab_size());
    WEFT_CHECK(!options.output.empty(), "tokenize: no output name", "set output, such as data/corpus");
    WEFT_CHECK(width_ == 4 || (width_ == 2 && tokenizer.vocab_size() <= 65536),
               str("tokenize: width ", width_, " for a vocabulary of ", tokenizer.vocab_size()),
               "use 4 bytes per id, or 2 up to 65536 ids");
    bool is_size_good =
        options.shard_tokens > 0 && (kind_ != ShardKind::header || options.shard_tokens < int64_t{1} << 31);
    WEFT_CHECK(is_size_good, str("tokenize: shard_tokens is ", options.shard_tokens),
               "use 1 to 2^31 - 1 tokens per shard");
    WEFT_CHECK(!inputs.empty(), "tokenize: no inputs", "give at least one text or JSONL file");
    identity_ = TokenizeIdentity(inputs, tokenizer, options, kind_, width_);
  }

  TokenizeResult run() {
    if (has_finished()) return record_.result;
    std::unique_ptr<FileLock> lock = take_lock();
    open_record();  // anew: another process may have gone on with it
    if (record_.is_complete) return record_.result;
    resume_ = record_.next;
    total_ = record_.result;
    Inputs inputs(
        paths_, options_.text, [this](std::string_view text) { return tokenizer_.last_cut(text); },
        options_.chunk_bytes, resume_);
    report(inputs);
    for (std::vector<Chunk> chunks; !(chunks = inputs.take(chunks_at_once())).empty();) {
      std::vector<Encoded> encoded(chunks.size());
      parallel_items(static_cast<int64_t>(chunks.size()), [&](int64_t i) {
        auto index = static_cast<size_t>(i);
        encoded[index] = encode(chunks[index], inputs.layout(chunks[index].file));
      });
      for (size_t i = 0; i < chunks.size(); ++i) append(chunks[i], encoded[i]);
      report(inputs);
    }
    if (writer_) close_shard();
    WEFT_CHECK(!record_.result.shards.empty(),
               str("tokenize: no text in ", paths_.size(), " inputs, the first is ", paths_[0]),
               "give files with text");
    record_.is_complete = true;
    record_.result.documents = total_.documents;
    record_.result.bytes = total_.bytes;
    record_.save(record_path_);
    return record_.result;
  }

 private:
  // Finished work is returned without a lock, which a folder that is read only would not give.
  bool has_finished() {
    if (!file_exists(record_path_)) return false;
    TokenizeRecord found = TokenizeRecord::load(record_path_);
    if (!found.is_complete) return false;
    adopt(std::move(found));
    return true;
  }

  std::unique_ptr<FileLock> take_lock() {
    std::filesystem::path folder = std::filesystem::path(options_.output).parent_path();
    std::error_code code;
    if (!folder.empty()) std::filesystem::create_directories(folder, code);  // a failure shows when the lock is made
    std::unique_ptr<FileLock> lock;
    while (!(lock = FileLock::take(options_.output + ".lock"))) {
      WEFT_CHECK(options_.waits, str(options_.output, ": another process is writing shards of this name"),
                 "wait until it is done, or choose another output name");
      if (options_.progress) options_.progress(0, bytes_of_inputs());
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return lock;
  }

  int64_t bytes_of_inputs() const {
    int64_t sum = 0;
    for (const InputFacts& f : identity_.inputs) sum += f.bytes;
    return sum;
  }

  void open_record() {
    if (file_exists(record_path_)) {
      TokenizeRecord found = TokenizeRecord::load(record_path_);
      const bool has_shards = found.is_complete || !found.shard_tokens.empty();
      if (has_shards) return adopt(std::move(found));
      // What stopped before its first shard binds nobody to its inputs.
      rebase(found, options_.output);
      for (const std::string& shard : found.result.shards) remove_pair(shard);
    } else if (auto left = shard_without_record()) {
      fail(str(*left, " exists, and ", record_path_, ", which would tell what it is, does not"),
           "choose another output name, or delete the shards");
    }
    record_ = {};
    record_.identity = identity_;
    record_.tokenizer = tokenizer_.name();
    record_.save(record_path_);
  }

  static void remove_pair(const std::string& shard) {
    remove_file(shard);
    remove_file(megatron_index_path(shard));
  }

  [[noreturn]] void fail_other_work(const std::string& other) const try {
    fail(str(record_path_, " belongs to ", other), "choose another output name, or delete it with its shards");
  } catch (const Error& error) { throw OtherWorkError(error); }

  // Goes on with the work of a record, or returns it.
  void adopt(TokenizeRecord found) {
    record_ = std::move(found);
    rebase(record_, options_.output);
    std::string other = difference(record_.identity, identity_);
    if (!other.empty()) fail_other_work(other);
    WEFT_CHECK(record_.next.file < paths_.size(), str(record_path_, ": a damaged record of a tokenisation"),
               kDamagedFix);
    for (size_t i = 0; i < record_.result.shards.size(); ++i) {
      Shard shard = Shard::open(record_.result.shards[i], {.raw_width = kind_ == ShardKind::raw ? width_ : 0});
      WEFT_CHECK(
          shard.num_tokens() == record_.shard_tokens[i],
          str(shard.path(), " has ", shard.num_tokens(), " tokens, ", record_path_, " says ", record_.shard_tokens[i]),
          kDamagedFix);
    }
  }

  std::string shard_path(size_t number) const { return shard_of(options_.output, number); }

  // Any OUTPUT_NNNNNN.bin or .idx: a pattern that names the new shards would name it too.
  std::optional<std::string> shard_without_record() const {
    std::filesystem::path output(options_.output);
    const std::string name = output.filename().string() + "_";
    std::error_code code;
    for (const auto& entry : std::filesystem::directory_iterator(
             output.has_parent_path() ? output.parent_path() : std::filesystem::path("."), code)) {
      std::string found = entry.path().filename().string();
      if (!found.starts_with(name) || !(found.ends_with(".bin") || found.ends_with(".idx"))) continue;
      std::string number = found.substr(name.size(), found.size() - name.size() - 4);
      if (number.size() >= 6 && number.find_first_not_of("0123456789") == std::string::npos)
        return entry.path().string();
    }
    return std::nullopt;
  }

  Encoded encode(const Chunk& chunk, Layout layout) const {
    Encoded out;
    try {
      for_each_document(chunk, paths_[chunk.file], layout, options_.text.field, [&](std::string_view text, bool ends) {
        std::vector<int32_t> ids = tokenizer_.encode(text);
        if (out.ids.empty()) out.ids = std::move(ids);
        else out.ids.insert(out.ids.end(), ids.begin(), ids.end());
        if (!ends) return;
        if (auto end = tokenizer_.end_of_text()) out.ids.push_back(*end);
        out.document_ends.push_back(out.ids.size());
      });
    } catch (...) {
      out.error = std::current_exception();  // thrown by append(), so that the first bad place in the input is told
    }
    return out;
  }

  void append(const Chunk& chunk, const Encoded& encoded) {
    if (encoded.error) std::rethrow_exception(encoded.error);
    bool is_resumed = std::exchange(is_first_, false);
    size_t token = is_resumed ? static_cast<size_t>(resume_.tokens) : 0;
    size_t end = is_resumed ? static_cast<size_t>(resume_.document_ends) : 0;
    WEFT_CHECK(token <= encoded.ids.size() && end <= encoded.document_ends.size(),
               str(record_path_, ": a damaged record of a tokenisation"), kDamagedFix);
    if (!is_resumed || token + end == 0) total_.bytes += static_cast<int64_t>(chunk.text.size());
    while (token < encoded.ids.size() || end < encoded.document_ends.size()) {
      size_t stop = end < encoded.document_ends.size() ? encoded.document_ends[end] : encoded.ids.size();
      size_t part = std::min(stop - token, room());
      if (part > 0) {
        check_apart(chunk);
        open_writer().append(std::span(encoded.ids).subspan(token, part));
      }
      token += part;
      bool is_end = token == stop && end < encoded.document_ends.size();
      if (is_end) {
        ++end;
        ++total_.documents;
        if (kind_ == ShardKind::megatron) open_writer().end_document();
      }
      bool is_full =
          writer_ && writer_->num_tokens() >= options_.shard_tokens && (is_end || kind_ != ShardKind::megatron);
      if (!is_full) continue;
      close_shard();
      record_.next = {chunk.file, chunk.offset, chunk.line, static_cast<int64_t>(token), static_cast<int64_t>(end)};
      record_.save(record_path_);
    }
  }

  // How many more ids the shard takes before a document's end.
  size_t room() const {
    if (kind_ == ShardKind::megatron) return ~size_t{0};
    return static_cast<size_t>(options_.shard_tokens - (writer_ ? writer_->num_tokens() : 0));
  }

  void check_apart(const Chunk& chunk) const {
    bool is_apart = kind_ == ShardKind::megatron || tokenizer_.end_of_text() || total_.documents == 0;
    WEFT_CHECK(is_apart,
               str("tokenize: the document from byte ", chunk.offset, " of ", paths_[chunk.file],
                   " on would run into the one before it: the tokenizer ", tokenizer_.name(), " has no end-of-text id"),
               "write Megatron shards, which keep an index of documents");
  }

  ShardWriter& open_writer() {
    if (!writer_) writer_ = std::make_unique<ShardWriter>(shard_path(record_.result.shards.size()), kind_, width_);
    return *writer_;
  }

  // The caller saves the record: a shard without its record is written again.
  void close_shard() {
    writer_->close();
    record_.shard_tokens.push_back(writer_->num_tokens());
    record_.result.shards.push_back(shard_path(record_.result.shards.size()));
    record_.result.tokens += writer_->num_tokens();
    record_.result.documents = total_.documents;
    record_.result.bytes = total_.bytes;
    writer_.reset();
  }

  void report(const Inputs& inputs) const {
    if (options_.progress) options_.progress(inputs.done(), inputs.total());
  }

  const std::vector<std::string>& paths_;
  const Tokenizer& tokenizer_;
  const TokenizeOptions& options_;
  std::string record_path_;
  ShardKind kind_ = ShardKind::header;
  int width_ = 2;
  TokenizeIdentity identity_;
  TokenizeRecord record_;
  TokenizeResult total_;  // documents and bytes up to here
  ResumePoint resume_;
  bool is_first_ = true;  // the next chunk is the one at the resume point
  std::unique_ptr<ShardWriter> writer_;
};

}  // namespace

std::optional<TokenizeResult> tokenized_before(const std::string& output) {
  std::string path = output + ".json";
  if (!file_exists(path)) return std::nullopt;
  TokenizeRecord record = TokenizeRecord::load(path);
  if (!record.is_complete) return std::nullopt;
  rebase(record, output);
  return record.result;
}

TokenizeResult tokenize_files(const std::vector<std::string>& inputs, const Tokenizer& tokenizer,
                              const TokenizeOptions& options) {
  return Job(inputs, tokenizer, options).run();
}

Alphabet alphabet_of_files(const std::vector<std::string>& inputs, const TextOptions& options) {
  std::unique_ptr<Tokenizer> any_characters = make_character_tokenizer({U'a'});  // for its cuts between characters
  Inputs source(inputs, options, [&](std::string_view text) { return any_characters->last_cut(text); }, 1 << 20, {});
  std::set<char32_t> all;
  for (std::vector<Chunk> chunks; !(chunks = source.take(chunks_at_once())).empty();) {
    std::vector<Alphabet> found(chunks.size());
    parallel_items(static_cast<int64_t>(chunks.size()), [&](int64_t i) {
      auto index = static_cast<size_t>(i);
      const Chunk& chunk = chunks[index];
      std::set<char32_t> own;
      for_each_document(chunk, inputs[chunk.file], source.layout(chunk.file), options.field,
                        [&](std::string_view text, bool) {
                          Alphabet alphabet = make_alphabet(text);
                          own.insert(alphabet.begin(), alphabet.end());
                        });
      found[index].assign(own.begin(), own.end());
    });
    for (const Alphabet& alphabet : found) all.insert(alphabet.begin(), alphabet.end());
  }
  WEFT_CHECK(!all.empty(), "alphabet: no text in the inputs", "give files with text");
  return Alphabet(all.begin(), all.end());
}

}  // namespace weft::data
