// Streams of shards, and how documents are marked in them.
#include <algorithm>

#include "src/data/tokenize_record.h"
#include "weft/core/error.h"
#include "weft/data/loader.h"

namespace weft::data {

struct Dataset::Parts {
  std::vector<Shard> shards;
  std::vector<int64_t> begins;  // of each shard in the stream, and the end
};

Dataset::Dataset(std::vector<Shard> shards) {
  WEFT_CHECK(!shards.empty(), "dataset: no shards", "give at least one shard");
  auto parts = std::make_shared<Parts>();
  parts->begins.push_back(0);
  for (const Shard& shard : shards) parts->begins.push_back(parts->begins.back() + shard.num_tokens());
  parts->shards = std::move(shards);
  end_ = parts->begins.back();
  parts_ = std::move(parts);
}

// Index of the shard that holds a token of the stream.
static size_t shard_of(const std::vector<int64_t>& begins, int64_t token) {
  return static_cast<size_t>(std::upper_bound(begins.begin(), begins.end(), token) - begins.begin()) - 1;
}

void Dataset::read(int64_t begin, std::span<int32_t> out, int64_t vocab) const {
  auto count = static_cast<int64_t>(out.size());
  WEFT_CHECK(begin >= 0 && begin <= num_tokens() && count <= num_tokens() - begin,
             str("dataset: tokens ", begin, " to ", begin + count, " of ", num_tokens()), "read inside the dataset");
  int64_t token = begin_ + begin;
  while (!out.empty()) {
    size_t i = shard_of(parts_->begins, token);
    auto part = static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(out.size()), parts_->begins[i + 1] - token));
    parts_->shards[i].read(token - parts_->begins[i], out.first(part), vocab);
    out = out.subspan(part);
    token += static_cast<int64_t>(part);
  }
}

bool Dataset::has_documents() const {
  return std::all_of(parts_->shards.begin(), parts_->shards.end(),
                     [](const Shard& shard) { return shard.has_documents(); });
}

const std::vector<Shard>& Dataset::shards() const { return parts_->shards; }

int64_t Dataset::next_document(int64_t token) const {
  WEFT_CHECK(token >= 0, str("dataset: token ", token), "tokens count from 0");
  if (token >= num_tokens()) return num_tokens();
  int64_t stream = begin_ + token;
  size_t i = shard_of(parts_->begins, stream);
  // A shard begins a document, so its end is one too.
  int64_t next = parts_->begins[i] + parts_->shards[i].next_document(stream - parts_->begins[i]);
  return std::min(next, end_) - begin_;
}

Dataset Dataset::slice(int64_t begin, int64_t end) const {
  WEFT_CHECK(begin >= 0 && begin < end && end <= num_tokens(),
             str("dataset: slice ", begin, " to ", end, " of ", num_tokens(), " tokens"),
             "take at least one token inside the dataset");
  Dataset part = *this;
  part.begin_ = begin_ + begin;
  part.end_ = begin_ + end;
  return part;
}

std::string_view to_string(DocumentRule rule) {
  switch (rule) {
    case DocumentRule::none: return "none";
    case DocumentRule::ends_with_id: return "ends_with_id";
    case DocumentRule::begins_with_id: return "begins_with_id";
    case DocumentRule::index: return "index";
  }
  return "";
}

DocumentRule document_rule_of(const Dataset& dataset, std::optional<int32_t> end_of_text, int64_t vocab) {
  const Shard& first = dataset.shards().front();
  for (const Shard& shard : dataset.shards())
    WEFT_CHECK(shard.kind() == first.kind() && shard.has_documents() == first.has_documents(),
               str("data: ", first.path(), " is ", first.kind(), ", and ", shard.path(), " is ", shard.kind(),
                   ", which marks documents in another way"),
               "give them as two sources");
  if (dataset.has_documents())
    return dataset.next_document(0) < dataset.num_tokens() ? DocumentRule::index : DocumentRule::none;
  if (!end_of_text) return DocumentRule::none;
  auto is_end_of_text = [&](int64_t token) {
    int32_t id = -1;
    dataset.read(token, {&id, 1}, vocab);
    return id == *end_of_text;
  };
  if (std::all_of(dataset.shards().begin(), dataset.shards().end(),
                  [](const Shard& shard) { return is_tokenized_shard(shard.path()); }))
    return DocumentRule::ends_with_id;
  if (is_end_of_text(0)) return DocumentRule::begins_with_id;
  bool ends = first.kind() == ShardKind::raw || is_end_of_text(dataset.num_tokens() - 1);
  return ends ? DocumentRule::ends_with_id : DocumentRule::begins_with_id;
}

std::pair<Dataset, Dataset> split_tail(const Dataset& dataset, double fraction) {
  WEFT_CHECK(fraction > 0 && fraction < 1, str("split_tail: fraction ", fraction),
             "use a fraction between 0 and 1, such as 0.1");
  auto first = static_cast<int64_t>(static_cast<double>(dataset.num_tokens()) * (1.0 - fraction));
  WEFT_CHECK(first > 0 && first < dataset.num_tokens(),
             str("split_tail: a fraction ", fraction, " of ", dataset.num_tokens(), " tokens leaves one part empty"),
             "use more data");
  return {dataset.slice(0, first), dataset.slice(first, dataset.num_tokens())};
}

}  // namespace weft::data
