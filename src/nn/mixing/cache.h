// Memory of one decoding. Every call of Tokens that needs earlier tokens has a slot, named by module, kind and count.
// B batch rows, T tokens of a step.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "src/nn/mixing/chosen_keys.h"
#include "src/nn/mixing/runs.h"
#include "weft/comm/communicator.h"
#include "weft/nn/token_table.h"

namespace weft {

// Numbers per token [B, S, ...] of the last S tokens.
class CachedRows {
 public:
  // Returns what is kept with these [B, T, ...] behind it, then keeps the last `keep` of that. All memory is for `most` tokens.
  Tensor append(const Tensor& fresh, int64_t keep, int64_t most);
  void keep_rows(std::span<const int32_t> rows);
  int64_t bytes() const;

 private:
  void replace(const Tensor& kept, int64_t room, const Tensor& like);

  Tensor store_;
  int64_t begin_ = 0, end_ = 0;  // what is kept of it
};

class Cache {
 public:
  struct Keys {
    CachedRows k, v, bias;
  };
  struct Tail {  // of sums over a window, neighbours and gathered values: one entry per value
    std::vector<CachedRows> values;
  };
  struct Sum {
    Tensor total;                    // [B, 1, ...] of the document that each row is in
    std::vector<int32_t> documents;  // [B]: that document; empty without documents
  };

  struct Chosen {
    KeySet keys;
    ChosenRows rows;              // of those keys
    std::vector<int64_t> counts;  // by row, of all that were chosen so far, on whatever rank
  };

  struct Recurrent {
    Tensor state;     // [B, ...] of the document that each row is in
    Tensor document;  // i32 [B]: that document; undefined without documents
  };

  Cache(int64_t batch, int64_t max_tokens, dist::Communicator* ranks = nullptr);
  int64_t batch() const { return batch_; }
  int64_t max_tokens() const { return max_tokens_; }
  bool is_bounded() const { return max_tokens_ < kNoBound; }
  static constexpr int64_t kNoBound = int64_t{1} << 62;
  int64_t num_tokens() const { return num_tokens_; }  // before this step
  int64_t bytes() const;

  // Who decodes together, or null: everything is here. Keys that are shared out are on rank n % P, n the number of their token or, of chosen
  // ones, their own in the row.
  dist::Communicator* ranks() const { return ranks_; }
  bool is_mine(int64_t number) const { return !ranks_ || number % ranks_->size() == ranks_->rank(); }
  Tensor mine(const Tensor& fresh) const;                  // of the tokens of this step [B, T, ...]
  ops::AttentionTokens my_tokens() const;                  // up to those of this step
  int64_t num_mine(int64_t tokens) const;                  // of the first so many
  bool are_mine(const ops::AttentionTokens& keys) const {  // or some rows of those
    return keys.positions.shares_memory_with(my_positions_);
  }

  // Notes where the tokens of a step stand, before any slot is asked for, and goes on to the next step.
  void begin_step(const TokenTable& table);
  void finish_step() { num_tokens_ += step_, stored_ += step_, rows_ = rows_after_; }
  void keep_rows(std::span<const int32_t> rows);  // between steps
  void note_all_tokens() { keeps_all_ = true; }   // of a layer that reads them
  bool keeps_all_tokens() const { return keeps_all_; }

  // The slot `name` of tokens before this step, for one use in it. Error if some earlier step did not use it.
  template <class Slot>
  Slot& slot(const std::string& name) {
    return std::get<Slot>(used(name, Slot()));
  }

  // How many tokens each of this step sees, all of its document up to itself: row by row, 1 for padding. What is forgotten counts too.
  std::vector<float> counts() const;

  // Of the last `count` tokens, with those of this step.
  ops::AttentionTokens last(int64_t count) const;
  Tensor document_positions(int64_t count) const;
  Runs runs(int64_t count) const;  // with documents only
  // How many of the last tokens, with those of this step or before it, hold the last `count` of every row that are not padding.
  int64_t reach(int64_t count) {
    const int64_t tokens = reach(count, 0);
    longest_ = std::max(longest_, tokens);
    return tokens;
  }
  int64_t reach_before(int64_t count) const { return reach(count, step_); }

 private:
  using AnySlot = std::variant<Keys, Tail, Sum, Chosen, Recurrent>;
  struct Entry {
    AnySlot slot;
    int64_t num_tokens = 0;
  };
  AnySlot& used(const std::string& name, AnySlot fresh);
  int64_t reach(int64_t count, int64_t left_out) const;  // without the last tokens

  struct Row {
    int32_t document = -1;  // of its last token that is not padding
    int64_t count = 0;      // of that document's tokens
  };
  void count_tokens(const TokenTable& table);
  void forget();  // where tokens stood that nobody reads any more

  int64_t batch_, max_tokens_, num_tokens_ = 0, step_ = 0;
  dist::Communicator* ranks_;
  int64_t stored_ = 0;   // of the tokens before this step it is known where they stand
  int64_t longest_ = 0;  // how many tokens back any slot looks
  bool has_documents_ = false, keeps_all_ = false;
  Tensor positions_, documents_, document_positions_;
  Tensor my_positions_, my_documents_;                               // of keys that are shared out
  std::vector<std::vector<int32_t>> cpu_positions_, cpu_documents_;  // [B][tokens], with documents only
  std::vector<Row> rows_, rows_after_;  // before this step and after it, with documents only
  std::vector<float> counts_;           // of the tokens of this step, with documents only
  std::map<std::string, Entry> slots_;
};

}  // namespace weft
