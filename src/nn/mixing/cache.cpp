#include "src/nn/mixing/cache.h"

#include <algorithm>

#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/nn/context_group.h"

namespace weft {

std::shared_ptr<Cache> make_cache(int64_t batch, int64_t max_tokens) {
  return std::make_shared<Cache>(batch, max_tokens == 0 ? Cache::kNoBound : max_tokens);
}
std::shared_ptr<Cache> make_cache(int64_t batch, int64_t max_tokens, dist::Communicator& ranks) {
  return std::make_shared<Cache>(batch, max_tokens == 0 ? Cache::kNoBound : max_tokens,
                                 ranks.size() > 1 ? &ranks : nullptr);
}
int64_t cached_tokens(const Cache& cache) { return cache.num_tokens(); }
int64_t cached_bytes(const Cache& cache) { return cache.bytes(); }

void keep_rows(Cache& cache, std::span<const int32_t> rows) { cache.keep_rows(rows); }
bool keeps_all_tokens(const Cache& cache) { return cache.keeps_all_tokens(); }

namespace {

Tensor rows_of(const Tensor& x, std::span<const int32_t> rows) {
  if (!x.defined()) return x;
  Shape shape = x.shape();
  shape[0] = static_cast<int64_t>(rows.size());
  Tensor kept = Tensor::empty(shape, x.dtype(), x.device());
  for (size_t i = 0; i < rows.size(); ++i) {
    Tensor place = kept.slice(0, static_cast<int64_t>(i), static_cast<int64_t>(i) + 1);
    assign(place, x.slice(0, rows[i], rows[i] + 1));
  }
  return kept;
}

template <class T>
void keep_rows_of(std::vector<T>& all, std::span<const int32_t> rows) {
  if (all.empty()) return;
  std::vector<T> kept;
  for (int32_t row : rows) kept.push_back(all[static_cast<size_t>(row)]);
  all = std::move(kept);
}

}  // namespace

void CachedRows::keep_rows(std::span<const int32_t> rows) { store_ = rows_of(store_, rows); }

int64_t CachedRows::bytes() const { return static_cast<int64_t>(store_.num_bytes()); }

void CachedRows::replace(const Tensor& kept, int64_t room, const Tensor& like) {
  Shape shape = like.shape();
  shape[1] = room;
  Tensor store = Tensor::zeros(shape, like.dtype(), like.device());
  const int64_t count = kept.defined() ? kept.size(1) : 0;
  if (count > 0) {
    Tensor place = store.slice(1, 0, count);
    assign(place, kept);
  }
  store_ = store, begin_ = 0, end_ = count;
}

Tensor CachedRows::append(const Tensor& fresh, int64_t keep, int64_t most) {
  const int64_t T = fresh.size(1), held = end_ - begin_;
  if (!store_.defined() || end_ + T > store_.size(1)) {
    const Tensor kept = held > 0 ? store_.slice(1, begin_, end_) : Tensor();
    const int64_t room = std::min(most, 2 * keep);  // so that rows are moved once in `keep` tokens
    if (held + T > room) {                          // more at once than will be kept
      const Var parts[] = {kept, fresh};
      Tensor all = held > 0 ? concatenate(parts, 1).value() : fresh;
      replace(all.slice(1, std::max<int64_t>(0, held + T - keep), held + T), room, fresh);
      return all;
    }
    replace(kept, room, fresh);
  }
  Tensor place = store_.slice(1, end_, end_ + T);
  assign(place, fresh);
  end_ += T;
  Tensor all = store_.slice(1, begin_, end_);
  begin_ = std::max(begin_, end_ - keep);
  return all;
}

Cache::Cache(int64_t batch, int64_t max_tokens, dist::Communicator* ranks)
    : batch_(batch), max_tokens_(max_tokens), ranks_(ranks) {
  WEFT_CHECK(batch >= 1 && max_tokens >= 1, str("make_cache: batch ", batch, ", max_tokens ", max_tokens),
             "both must be 1 or more");
}

int64_t Cache::bytes() const {
  int64_t sum = 0;
  for (const auto& [name, entry] : slots_) {
    if (auto* keys = std::get_if<Keys>(&entry.slot)) sum += keys->k.bytes() + keys->v.bytes() + keys->bias.bytes();
    if (auto* tail = std::get_if<Tail>(&entry.slot))
      for (const CachedRows& rows : tail->values) sum += rows.bytes();
    if (auto* total = std::get_if<Sum>(&entry.slot)) sum += static_cast<int64_t>(total->total.num_bytes());
    if (auto* chosen = std::get_if<Chosen>(&entry.slot))
      for (const Var* x : {&chosen->keys.k, &chosen->keys.v})
        sum += x->defined() ? static_cast<int64_t>(x->value().num_bytes()) : 0;
    if (auto* kept = std::get_if<Recurrent>(&entry.slot)) sum += static_cast<int64_t>(kept->state.num_bytes());
  }
  return sum;
}

void Cache::begin_step(const TokenTable& table) {
  const int64_t T = table.num_tokens();
  WEFT_CHECK(batch_ == table.batch(), str("decode: ", table.batch(), " rows for a cache of ", batch_),
             "make the cache for this batch");
  WEFT_CHECK(num_tokens_ + T <= max_tokens_,
             str("decode: ", num_tokens_, " tokens are cached and ", T, " come, room is for ", max_tokens_),
             "make the cache larger");
  WEFT_CHECK(num_tokens_ == 0 || has_documents_ == table.documents().defined(),
             str("decode: documents are ", has_documents_ ? "" : "not ", "given for the tokens in the cache, and ",
                 has_documents_ ? "not " : "", "for these"),
             "give them for all tokens, or for none");
  WEFT_CHECK(!table.other_order(), "decode: the tokens of a step do not stand one after the other",
             "hand them over in the order of their positions, padding last in its row");
  has_documents_ = table.documents().defined();
  step_ = T;
  if (!is_bounded()) forget();
  auto note_in = [&](Tensor& all, int64_t room, const Tensor& fresh, int64_t begin) {
    if (!all.defined()) all = Tensor::zeros({batch_, room}, kI32, fresh.device());
    Tensor place = all.slice(1, begin, begin + fresh.size(1));
    assign(place, fresh);
  };
  auto note = [&](Tensor& all, const Tensor& fresh) { note_in(all, is_bounded() ? max_tokens_ : T, fresh, stored_); };
  auto note_mine = [&](Tensor& all, const Tensor& fresh) {
    note_in(all, std::max<int64_t>(1, num_mine(max_tokens_)), mine(fresh), num_mine(num_tokens_));
  };
  if (ranks_ && is_bounded()) {
    note_mine(my_positions_, table.positions());
    if (has_documents_) note_mine(my_documents_, table.documents());
  }
  note(positions_, table.positions());
  note(document_positions_, table.document_positions());
  if (!has_documents_) return;
  note(documents_, table.documents());
  cpu_positions_.resize(static_cast<size_t>(batch_)), cpu_documents_.resize(static_cast<size_t>(batch_));
  auto note_row = [&](std::vector<int32_t>& row, std::span<const int32_t> fresh, size_t b) {
    row.resize(static_cast<size_t>(stored_));
    auto begin = fresh.begin() + static_cast<std::ptrdiff_t>(b * static_cast<size_t>(T));
    row.insert(row.end(), begin, begin + static_cast<std::ptrdiff_t>(T));
  };
  for (size_t b = 0; b < cpu_positions_.size(); ++b) {
    note_row(cpu_positions_[b], table.cpu_positions(), b);
    note_row(cpu_documents_[b], table.cpu_documents(), b);
  }
  count_tokens(table);
}

void Cache::count_tokens(const TokenTable& table) {
  const auto T = static_cast<size_t>(step_);
  rows_.resize(static_cast<size_t>(batch_));
  rows_after_ = rows_;
  counts_.assign(rows_.size() * T, 1);
  for (size_t i = 0; i < counts_.size(); ++i) {
    const int32_t document = table.cpu_documents()[i];
    if (document < 0) continue;
    Row& row = rows_after_[i / T];
    row = {document, row.document == document ? row.count + 1 : 1};
    counts_[i] = static_cast<float>(row.count);
  }
}

std::vector<float> Cache::counts() const {
  if (has_documents_) return counts_;
  std::vector<float> counts;
  for (int64_t b = 0; b < batch_; ++b)
    for (int64_t t = 0; t < step_; ++t) counts.push_back(static_cast<float>(num_tokens_ + t + 1));
  return counts;
}

// Makes room for the tokens of this step: behind those that slots look back to, twice as much, so that few steps move them.
void Cache::forget() {
  if (!positions_.defined() || stored_ + step_ <= positions_.size(1)) return;
  const int64_t kept = std::min(stored_, longest_);
  for (Tensor* all : {&positions_, &documents_, &document_positions_}) {
    if (!all->defined()) continue;
    Tensor store = Tensor::zeros({batch_, 2 * (kept + step_)}, kI32, all->device()), place = store.slice(1, 0, kept);
    assign(place, all->slice(1, stored_ - kept, stored_));
    *all = store;
  }
  for (auto* rows : {&cpu_positions_, &cpu_documents_})
    for (std::vector<int32_t>& row : *rows) {
      row.resize(static_cast<size_t>(stored_));
      row.erase(row.begin(), row.begin() + (stored_ - kept));
    }
  stored_ = kept;
}

void Cache::keep_rows(std::span<const int32_t> rows) {
  WEFT_CHECK(!rows.empty(), "keep_rows: no rows", "name those that go on; a decoding without any has ended");
  std::vector<bool> is_kept(static_cast<size_t>(batch_));
  for (int32_t row : rows) {
    WEFT_CHECK(row >= 0 && row < batch_, str("keep_rows: row ", row, " of a batch of ", batch_), "rows count from 0");
    WEFT_CHECK(!is_kept[static_cast<size_t>(row)], str("keep_rows: row ", row, " twice"), "name each once");
    is_kept[static_cast<size_t>(row)] = true;
  }
  for (Tensor* all : {&positions_, &documents_, &document_positions_, &my_positions_, &my_documents_})
    *all = rows_of(*all, rows);
  keep_rows_of(cpu_positions_, rows), keep_rows_of(cpu_documents_, rows), keep_rows_of(rows_, rows);
  for (auto& [name, entry] : slots_) {
    if (auto* keys = std::get_if<Keys>(&entry.slot))
      for (CachedRows* x : {&keys->k, &keys->v, &keys->bias}) x->keep_rows(rows);
    if (auto* tail = std::get_if<Tail>(&entry.slot))
      for (CachedRows& x : tail->values) x.keep_rows(rows);
    if (auto* sum = std::get_if<Sum>(&entry.slot))
      sum->total = rows_of(sum->total, rows), keep_rows_of(sum->documents, rows);
    if (auto* chosen = std::get_if<Chosen>(&entry.slot)) {
      for (Var* x : {&chosen->keys.k, &chosen->keys.v}) *x = rows_of(x->value(), rows);
      for (Tensor* x : {&chosen->keys.tokens.positions, &chosen->keys.tokens.documents}) *x = rows_of(*x, rows);
      chosen->rows = chosen_rows(chosen->keys), keep_rows_of(chosen->counts, rows);
    }
    if (auto* kept = std::get_if<Recurrent>(&entry.slot))
      kept->state = rows_of(kept->state, rows), kept->document = rows_of(kept->document, rows);
  }
  batch_ = static_cast<int64_t>(rows.size());
}

Cache::AnySlot& Cache::used(const std::string& name, AnySlot fresh) {
  Entry& entry = slots_.try_emplace(name, Entry{std::move(fresh), 0}).first->second;
  WEFT_CHECK(entry.num_tokens == num_tokens_,
             str("decode: '", name, "' has seen ", entry.num_tokens, " of the ", num_tokens_, " tokens before these"),
             "make the same calls of Tokens in every step of a decoding, each once");
  entry.num_tokens += step_;
  return entry.slot;
}

ops::AttentionTokens Cache::last(int64_t count) const {
  auto of = [&](const Tensor& all) {
    return all.defined() ? all.slice(1, stored_ + step_ - count, stored_ + step_) : all;
  };
  return {of(positions_), of(documents_)};
}

int64_t Cache::num_mine(int64_t tokens) const {
  const int64_t P = ranks_->size();
  return (tokens + P - 1 - ranks_->rank()) / P;
}

Tensor Cache::mine(const Tensor& fresh) const {
  const int64_t P = ranks_->size(), T = fresh.size(1), first = num_mine(num_tokens_) * P + ranks_->rank() - num_tokens_;
  return fresh.slice(1, std::min(first, T), T, P);
}

ops::AttentionTokens Cache::my_tokens() const {
  const int64_t count = num_mine(num_tokens_ + step_);
  return {my_positions_.slice(1, 0, count), my_documents_.defined() ? my_documents_.slice(1, 0, count) : Tensor()};
}

Tensor Cache::document_positions(int64_t count) const {
  return document_positions_.slice(1, stored_ + step_ - count, stored_ + step_);
}

Runs Cache::runs(int64_t count) const {
  std::vector<int32_t> positions, documents;
  for (size_t b = 0; b < cpu_positions_.size(); ++b) {
    positions.insert(positions.end(), cpu_positions_[b].end() - count, cpu_positions_[b].end());
    documents.insert(documents.end(), cpu_documents_[b].end() - count, cpu_documents_[b].end());
  }
  return Runs(batch_, count, positions, documents);
}

int64_t Cache::reach(int64_t count, int64_t left_out) const {
  if (!has_documents_ || count == 0) return count;
  int64_t most = 0;
  for (const std::vector<int32_t>& row : cpu_documents_) {
    int64_t found = 0, reached = 0;
    for (auto i = row.rbegin() + left_out; i != row.rend() && found < count; ++i, ++reached) found += *i >= 0 ? 1 : 0;
    most = std::max(most, reached);
  }
  return most;
}

}  // namespace weft
