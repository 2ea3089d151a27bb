// The seam through which tokens see each other; Tokens is its face for layers. A maker knows where the tokens of a row are: all here
// (Local), the earlier ones in a cache (Decode), or some on other ranks (Context), which exchanges in keys(), prefix(), neighbours(),
// gather() and sum(). How often these are called is the layers' business and never depends on numbers, such as what a router chose;
// attend() and statistics() may be called for any heads, rows and queries, also for none, but where the keys serve one call, as chosen ones
// do (chosen_keys.h).
// B batch rows, T tokens here, H query heads, G key/value heads, K head width, V value width.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "src/nn/mixing/pieces.h"
#include "src/nn/mixing/runs.h"
#include "weft/autograd/recurrence.h"
#include "weft/nn/context_group.h"
#include "weft/nn/key_set.h"
#include "weft/nn/token_table.h"

namespace weft {

class Mixing {
 public:
  virtual ~Mixing() = default;

  // The normaliser's result: out [B, N, H, V] and its statistic [B, N, H], undefined where it has none.
  struct State {
    Var out, lse;
  };
  struct Call {
    ops::AttentionOptions options;
    Var sink = {};         // [B, N, H]: for whoever watches; see Tokens::attend
    bool is_shown = true;  // to whoever watches
  };
  // The tokens here among their neighbours.
  struct Neighbours {
    Var x;                        // [B', T', ...]: in the order of positions, document by document
    Tensor documents;             // [B', T'] i32, or undefined: tokens are neighbours where they have one number
    std::vector<int32_t> places;  // row by row, which of the B' T' each of these is; empty: the last T of each row
    bool have_gaps = false;       // tokens of a document are missing between others
  };
  // Tokens of the rows, in the order of positions.
  struct GatheredTokens {
    Tensor positions, documents, document_positions;  // [B, S]; documents may be undefined
    std::vector<int32_t> places;                      // row by row, which of the S each of these is; empty: the last T
  };

  virtual const Runs& runs() const = 0;
  // What attend() needs of the keys, however many queries follow.
  virtual KeySet keys(const Var& k_BTGK, const Var& v_BTGV, const KeyOptions& options) = 0;
  virtual State attend(const QuerySet& queries, const KeySet& keys, const Call& call) = 0;
  // Inclusive sum over the tokens of the document up to each, of the last `window` of them (0: all). x [B, T, ...].
  virtual Var prefix(const Var& x, int64_t window) = 0;
  // The recurrences along the tokens of each document, in the order of positions, from a state of zeros.
  virtual Var recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options) = 0;
  virtual Var decay_scan(const Var& x_BTD, const Var& log_decay) = 0;
  // The recurrence in chunks that are kept or forgotten as a whole: see Tokens::recur_chunks.
  struct Chunks {
    Var keeps_BTH;
    int64_t length = 1;
  };
  virtual Var recur_chunks(const RecurrenceVars& input, const ops::RecurrenceOptions& options,
                           const Chunks& chunks) = 0;
  // With at least the `before` tokens in front of each of these and the `after` behind it, as far as there are any.
  virtual Neighbours neighbours(const Var& x, int64_t before, int64_t after) = 0;
  // Of all tokens of the rows [B, S, ...]; with a window at least of the `window` that end at each of these. gathered() tells which they are.
  virtual std::vector<Var> gather(std::span<const Var> values, int64_t window) = 0;
  virtual const GatheredTokens& gathered(int64_t window) = 0;
  // Over all tokens of each row, or of the micro-batch, but padding: [B, T, ...] -> [B, ...] or [...].
  virtual Var sum(const Var& x, Over over) = 0;
  // Of keys that serve one call: of the queries here and of these keys, with those of all ranks. Otherwise of this call alone.
  virtual ops::AttentionStatistics statistics(const QuerySet& queries, const KeySet& keys, const State& state,
                                              const Call& call) = 0;
  // Of keys that keys() gave those of the tokens here, as one call with all queries takes them.
  virtual KeySet keys_here(const KeySet& keys) { return keys; }
  // Of keys that keys() gave those of all tokens of the rows, without values, as any call takes them. places: row by row, where each stands in
  // the order of gather(); empty: there. Every rank calls it.
  struct KeysOfRows {
    KeySet keys;
    std::vector<int32_t> places;
  };
  virtual KeysOfRows keys_of_rows(const KeySet& keys) { return {keys, gathered(0).places}; }
  // The sum over the ranks that share the rows.
  virtual Tensor sum_of_ranks(const Tensor& x) { return x; }
  // Shows whoever watches attention of which no single call has all heads and queries.
  virtual void show(const QuerySet&, const KeySet&, const State&, const Call&) {}
  // y, the output of a layer: what the layer asked other ranks for has a backward on every rank, also where nothing used it.
  virtual Var settled(const Var& y) { return y; }
  virtual void finish_step() {}  // of decoding
};

// lse of the state, or where there is none the log of the sum of sizes of weights.
Var log_sums(Mixing& mixing, const QuerySet& queries, const KeySet& keys, const Mixing::State& state,
             const Mixing::Call& call);

// The last `num_tokens` tokens of each row of x among all of x, which stand as the runs say.
Mixing::Neighbours by_position(const Var& x, const Runs& runs, int64_t num_tokens);
// Of y [B', T', ...], made token by token of a Neighbours' x, the tokens here [B, T, ...].
Var those_here(const Mixing::Neighbours& near, const Var& y, int64_t batch, int64_t num_tokens);
// y[t] = x[t - n] of the tokens here, within the document, zeros where there is none. x with n tokens before.
Var shifted(const Mixing::Neighbours& near, int64_t n, int64_t batch, int64_t num_tokens);
// Sums of x over the last `window` tokens of the document, of the tokens here; x with the window's other tokens before.
Var windowed(const Mixing::Neighbours& near, int64_t window, int64_t batch, int64_t num_tokens);

// The recurrences over gathered tokens: of the result the tokens here [B, T, ...].
Var recur_gathered(Mixing& mixing, const RecurrenceVars& input, const ops::RecurrenceOptions& options);
Var decay_scan_gathered(Mixing& mixing, const Var& x_BTD, const Var& log_decay);
Var recur_chunks_gathered(Mixing& mixing, const RecurrenceVars& input, const ops::RecurrenceOptions& options,
                          const Mixing::Chunks& chunks);
// The same where all tokens are given, cut into these pieces. `states` [B, H, K, V]: before the first piece, and then behind the last.
struct ChunkStates {
  // With the writes of the running chunk, and what becomes of it where they are forgotten: its decay alone, or with a step of the caller's
  // the state where the chunk began. Undefined: zeros.
  Var written, other;
};
Var recur_in_pieces(const RecurrenceVars& input, const ops::RecurrenceOptions& options, const Var& keeps_BTH,
                    const Pieces& pieces, ChunkStates& states);

// What whoever watches asks for, which ranks exchange more for: the same on all of them.
struct Watched {
  bool reports = false, weights = false;
};

std::unique_ptr<Mixing> make_local(const TokenTable& table);
std::unique_ptr<Mixing> make_context(const TokenTable& table, const ContextGroup& group, Watched watched = {});
std::unique_ptr<Mixing> make_decode(const TokenTable& table, std::shared_ptr<Cache> cache);

}  // namespace weft
