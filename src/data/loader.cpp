// Rows of a batch, and the place of each sample in the data.
#include "weft/data/loader.h"

#include <algorithm>
#include <limits>

#include "src/data/order.h"
#include "weft/core/error.h"

namespace weft::data {

namespace {

Batch empty_batch(int64_t count, int64_t context) {
  auto make = [&] { return Tensor::empty({count, context}, kI32, Device::cpu()); };
  return {make(), make(), make(), make(), make()};
}

// Fills row `row` from tokens begin .. begin + length of the stream, the last being only a target; the rest is padding.
void fill_row(Batch& batch, int64_t row, const Dataset& dataset, int64_t begin, int64_t length,
              const RowOptions& options) {
  const int64_t context = options.context;
  auto row_of = [&](Tensor& t) {
    return std::span(t.mutable_data<int32_t>() + row * context, static_cast<size_t>(context));
  };
  auto tokens = row_of(batch.tokens), targets = row_of(batch.targets), positions = row_of(batch.positions),
       documents = row_of(batch.documents), document_positions = row_of(batch.document_positions);
  auto used = static_cast<size_t>(length);
  dataset.read(begin, tokens.first(used), options.vocab);
  dataset.read(begin + 1, targets.first(used), options.vocab);
  if (options.first_token >= 0) tokens[0] = options.first_token;
  int64_t next_document = options.documents == DocumentRule::index ? dataset.next_document(begin) : 0;
  int32_t document = 0, position = 0;
  for (size_t t = 0; t < used; ++t) {
    positions[t] = static_cast<int32_t>(t);
    documents[t] = document;
    document_positions[t] = position++;
    bool is_last = false;  // of its document
    switch (options.documents) {
      case DocumentRule::none: break;
      case DocumentRule::ends_with_id: is_last = tokens[t] == options.end_of_text; break;
      case DocumentRule::begins_with_id: is_last = targets[t] == options.end_of_text; break;
      case DocumentRule::index: is_last = begin + static_cast<int64_t>(t) + 1 == next_document; break;
    }
    if (!is_last) continue;
    targets[t] = -1;
    ++document;
    position = 0;
    if (options.documents == DocumentRule::index) next_document = dataset.next_document(next_document);
  }
  for (size_t t = used; t < static_cast<size_t>(context); ++t) {
    tokens[t] = 0;
    targets[t] = documents[t] = -1;
    positions[t] = static_cast<int32_t>(t);
    document_positions[t] = 0;
  }
}

void check_rows(const RowOptions& rows, const Dataset& dataset) {
  WEFT_CHECK(rows.context > 0 && rows.context < std::numeric_limits<int32_t>::max(),
             str("loader: context is ", rows.context), "use a context of at least 1 token");
  WEFT_CHECK(rows.vocab > 0, str("loader: vocab is ", rows.vocab), "set the vocabulary size of the model");
  if (rows.documents == DocumentRule::ends_with_id || rows.documents == DocumentRule::begins_with_id)
    WEFT_CHECK(rows.end_of_text >= 0 && rows.end_of_text < rows.vocab,
               str("loader: documents are found by the id of end of text, which is ", rows.end_of_text,
                   " in a vocabulary of ", rows.vocab),
               "set end_of_text to the id that separates documents, or turn the document mask off");
  WEFT_CHECK(rows.first_token < 0 || rows.documents == DocumentRule::none,
             "loader: a fixed first token with rows of several documents",
             "make a row one document (data.document_mask=false), or leave the first token as it is");
  WEFT_CHECK(rows.first_token < 0 || rows.first_token >= rows.vocab,
             str("loader: the fixed first token ", rows.first_token, " is an id of the data, of ", rows.vocab),
             "use an id that no text has, such as the number of ids");
  if (rows.documents == DocumentRule::index)
    WEFT_CHECK(dataset.has_documents(), "loader: a shard does not say where its documents begin",
               "use Megatron shards, or an end-of-text id");
}

RowOptions rows_of(RowOptions rows, const MixtureSource& source) {
  rows.documents = source.documents.value_or(rows.documents);
  return rows;
}

void check_batch(int64_t first, int64_t count) {
  WEFT_CHECK(first >= 0 && count > 0, str("loader: batch of ", count, " rows from ", first),
             "ask for at least one row from 0 on");
}

}  // namespace

struct Loader::State {
  State(std::vector<MixtureSource> s, RowOptions r, uint64_t seed, const std::vector<double>& weights)
      : sources(std::move(s)), rows(r), rng(Rng(seed)["data order"]), mixture(weights) {}

  std::vector<MixtureSource> sources;
  RowOptions rows;
  Rng rng;
  Mixture mixture;
};

Loader::Loader(std::vector<MixtureSource> sources, RowOptions rows, uint64_t seed) {
  WEFT_CHECK(!sources.empty(), "loader: no data", "give at least one dataset");
  std::vector<double> weights;
  for (const MixtureSource& source : sources) {
    check_rows(rows_of(rows, source), source.dataset);
    WEFT_CHECK(source.dataset.num_tokens() > rows.context,
               str("loader: dataset ", weights.size(), " has ", source.dataset.num_tokens(), " tokens, a sample needs ",
                   rows.context + 1),
               "use a shorter context or more data");
    weights.push_back(source.weight);
  }
  state_ = std::make_unique<State>(std::move(sources), rows, seed, weights);
}

Loader::~Loader() = default;
Loader::Loader(Loader&&) noexcept = default;

// One window less than would fit, so that the random first token has T places to be; a short dataset has one window.
int64_t Loader::samples_per_epoch(int64_t source) const {
  WEFT_CHECK(source >= 0 && source < static_cast<int64_t>(state_->sources.size()),
             str("loader: source ", source, " of ", state_->sources.size()), "ask for a source that is there");
  int64_t tokens = state_->sources[static_cast<size_t>(source)].dataset.num_tokens(), context = state_->rows.context;
  return std::max<int64_t>(1, (tokens - context) / context);
}

Loader::Place Loader::place(int64_t sample) const {
  WEFT_CHECK(sample >= 0, str("loader: sample ", sample), "samples count from 0");
  auto [source, index] = state_->mixture.turn(sample);
  int64_t tokens = state_->sources[static_cast<size_t>(source)].dataset.num_tokens(), context = state_->rows.context;
  int64_t windows = samples_per_epoch(source), epoch = index / windows;
  Rng rng = state_->rng[static_cast<uint64_t>(source)][static_cast<uint64_t>(epoch)];
  int64_t places = std::min(context, tokens - windows * context);
  auto first = static_cast<int64_t>(rng["first token"].below(static_cast<uint64_t>(places), 0));
  int64_t window = Permutation(windows, rng["windows"])(index % windows);
  return {source, epoch, first + window * context};
}

Batch Loader::batch(int64_t first_sample, int64_t count) const {
  check_batch(first_sample, count);
  Batch batch = empty_batch(count, state_->rows.context);
  for (int64_t row = 0; row < count; ++row) {
    Place at = place(first_sample + row);
    const MixtureSource& source = state_->sources[static_cast<size_t>(at.source)];
    fill_row(batch, row, source.dataset, at.begin, state_->rows.context, rows_of(state_->rows, source));
  }
  return batch;
}

static int64_t windows_in(const Dataset& dataset, int64_t context) {
  WEFT_CHECK(dataset.num_tokens() >= 2, str("validation: ", dataset.num_tokens(), " token has nothing to predict"),
             "use more data");
  return (dataset.num_tokens() - 2) / context + 1;
}

ValidationWindows::ValidationWindows(Dataset dataset, RowOptions rows) {
  check_rows(rows, dataset);
  num_windows_ = windows_in(dataset, rows.context);
  rows_ = [dataset = std::move(dataset), rows](int64_t first_window, int64_t count) {
    Batch batch = empty_batch(count, rows.context);
    for (int64_t row = 0; row < count; ++row) {
      int64_t begin = (first_window + row) * rows.context;
      fill_row(batch, row, dataset, begin, std::min(rows.context, dataset.num_tokens() - 1 - begin), rows);
    }
    return batch;
  };
}

Batch ValidationWindows::batch(int64_t first_window, int64_t count) const {
  check_batch(first_window, count);
  WEFT_CHECK(count <= num_windows() - first_window,
             str("validation: windows ", first_window, " to ", first_window + count, " of ", num_windows()),
             "ask for windows that are there");
  return rows_(first_window, count);
}

}  // namespace weft::data
