// Training batches from token shards. The tokens of a sample depend only on (seed, global sample index). Ranks, micro-batches and workers
// each ask for the samples that they need, and a run resumes from one integer.
//   Loader loader({{Dataset({Shard::open("train.bin")}), 1.0}}, {.context = 1024, .vocab = 50257}, /*seed=*/1);
//   Batch batch = loader.batch(cursor, 8);
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "weft/core/tensor.h"
#include "weft/data/shards.h"

namespace weft::data {

// One stream of tokens: shards one after another, or a part of them. It is a handle: copies share the shards.
class Dataset {
 public:
  explicit Dataset(std::vector<Shard> shards);  // Error if there are none
  explicit Dataset(std::vector<int32_t> ids) : Dataset(std::vector<Shard>{Shard::in_memory(std::move(ids))}) {}

  int64_t num_tokens() const { return end_ - begin_; }
  void read(int64_t begin, std::span<int32_t> out, int64_t vocab) const;  // see Shard::read
  bool has_documents() const;                                             // all its shards know where documents begin
  const std::vector<Shard>& shards() const;                               // of a slice too: those of the whole stream
  int64_t next_document(int64_t token) const;  // begin of the first document behind `token`, or num_tokens()
  Dataset slice(int64_t begin, int64_t end) const;

 private:
  struct Parts;
  std::shared_ptr<const Parts> parts_;
  int64_t begin_ = 0, end_ = 0;
};

// The first 1 - fraction of the tokens and the rest (the last tenth for 0.1). Error if one of them would be empty.
std::pair<Dataset, Dataset> split_tail(const Dataset& dataset, double fraction);

// How the documents in a row are found. `none`: the whole row is one document. With every rule, a row, a file or a data set may begin and
// end inside a document.
enum class DocumentRule : uint8_t {
  none,
  ends_with_id,    // a document ends after its end-of-text id
  begins_with_id,  // a document begins with its end-of-text id
  index,           // the shards say where documents begin
};
std::string_view to_string(DocumentRule rule);

// How documents are marked in a stream of shards, by their format:
// - Megatron pairs have an index: `index`. If the index has one document only, the rule is `none`.
// - Without an end-of-text id (nullopt), documents cannot be found: `none`.
// - Raw files (nanoGPT) end a document with the id, unless the first id is one.
// - Files with a header (llm.c) begin a document with the id. Those that `weft data tokenize` and a run make end it with the
//   id. These are recognised by the record of the work (OUTPUT.json) beside them. Without a record, a file that ends with the id and
//   does not begin with it is one of them.
// The first and the last document of a file may have parts in other files: data may be split inside a document. Error if the shards are not
// all of one kind.
DocumentRule document_rule_of(const Dataset& dataset, std::optional<int32_t> end_of_text, int64_t vocab);

struct RowOptions {
  int64_t context = 0;  // T, tokens per row
  int64_t vocab = 0;    // ids must be below
  DocumentRule documents = DocumentRule::none;
  int32_t end_of_text = -1;  // for the rules with an id
  int32_t first_token = -1;  // >= 0: replaces the first token of every row; at least `vocab`; not with documents
};

// int32 CPU tensors [B, T]. A row is T consecutive tokens of the stream.
struct Batch {
  Tensor tokens;
  Tensor targets = {};  // the next token of the stream; -1 (ignored) behind the last token of a document and in padding
  Tensor positions = {};           // 0 .. T-1
  Tensor documents = {};           // 0, 1, 2 .. within the row; -1 in padding
  Tensor document_positions = {};  // from 0 in each document, and at the row's first token
};

struct MixtureSource {
  Dataset dataset;
  double weight = 1;                           // share of the samples, relative to the other weights
  std::optional<DocumentRule> documents = {};  // of this source; unset: as RowOptions say
};

// An epoch of a source cuts it into windows of T + 1 tokens, from a random first token on. Each window is read once, in random order.
// Neighbouring windows share one token: the last target of one is the first input of the next. In each epoch fewer than 2 T tokens are left
// out, not the same ones each time. Sources alternate: after any number n of samples, each source has given weight * n of them, within one.
// Weights are rounded to fractions with a common denominator of at most 65536.
class Loader {
 public:
  Loader(std::vector<MixtureSource> sources, RowOptions rows, uint64_t seed);
  ~Loader();
  Loader(Loader&&) noexcept;

  Batch batch(int64_t first_sample, int64_t count) const;  // samples first_sample .. first_sample + count

  struct Place {
    int64_t source, epoch, begin;  // tokens begin .. begin + T of that source
  };
  Place place(int64_t sample) const;
  int64_t samples_per_epoch(int64_t source = 0) const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

// Rows for validation, which do not overlap. Every token but the first is a target exactly once. The last row is padded.
class ValidationWindows {
 public:
  using Rows = std::function<Batch(int64_t first, int64_t count)>;

  ValidationWindows(Dataset dataset, RowOptions rows);  // Error on fewer than two tokens
  ValidationWindows(Rows rows, int64_t num_rows) : rows_(std::move(rows)), num_windows_(num_rows) {}  // of no stream
  int64_t num_windows() const { return num_windows_; }
  Batch batch(int64_t first_window, int64_t count) const;

 private:
  Rows rows_;
  int64_t num_windows_;
};

}  // namespace weft::data
