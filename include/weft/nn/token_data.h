// What a forward is given beside the token ids: positions and documents, how it is run, and functions that watch it.
// B batch rows, T tokens here, S tokens of the row, D model width, H heads, V value width.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "weft/autograd/functions.h"
#include "weft/core/rng.h"

namespace weft {

// What is known per token. Integers are i32, shape [B, T].
struct TokenData {
  Tensor positions = {};           // global position in the row
  Tensor documents = {};           // document of the row it belongs to, -1 for padding; undefined: one document per row
  Tensor document_positions = {};  // position within the document (of padding: any valid one); undefined: as positions
  int64_t first_row = 0;           // global index of batch row 0 in the step
  bool are_consecutive = false;    // the tokens of a row stand one after the other
  // Copies on the CPU, if the caller has them: then layers that need them there do not wait for the device.
  Tensor cpu_positions = {}, cpu_documents = {}, cpu_document_positions = {};
};

// Positions 0 .. T-1 in every row, one document.
TokenData plain_tokens(int64_t batch, int64_t num_tokens, int64_t first_position = 0);

// Whether the tokens of each row stand one after the other. Read on the CPU: give the CPU's copy, if there is one.
bool are_consecutive(const Tensor& positions_BT);

// What a sum runs over: the tokens of each batch row, or all of the micro-batch on all ranks.
enum class Over : uint8_t { row, batch };

// State of one decoding, by module and call of Tokens, the same in every step. max_tokens 0: no bound, for layers of states and windows.
class Cache;
std::shared_ptr<Cache> make_cache(int64_t batch, int64_t max_tokens);
int64_t cached_tokens(const Cache& cache);
int64_t cached_bytes(const Cache& cache);  // of keys, values and sums
// Goes on with these rows of the batch alone, in this order: the others have ended. A row that goes on as padding instead costs as much as any
// other, and windows keep what stands between its tokens. With ranks, each calls it.
void keep_rows(Cache& cache, std::span<const int32_t> rows);
// Whether some layer has kept or read all tokens so far: a decoding that needs a bound on its length.
bool keeps_all_tokens(const Cache& cache);

class Mixing;
struct ContextGroup;

// Functions with which an analysis watches a forward, and may change it. They are given the path of the running module. Not in decoding.
// Each rank of TokensOptions::context has a probe of its own, which sees the tokens here: token t is number gathered_places()[t] of its row.
// All of them watch weights or none does (else it is an Error), for that is an exchange. What they return wants a gradient on all ranks or on none.
struct Probe {
  // Called for each call of attention with its weights [B, T, H, S], f32, or f64 in f64: queries as the tokens stand here, keys of the whole
  // row in the order of Tokens::gather(), which is that of positions, padding last. After sinks, with their signs, before dropout. is_softmax:
  // the weights of a query sum to 1, or to 1 minus the sink's share. T x S numbers per head, twice while they are made, and with a context a
  // copy of all keys of the call [B, S, G, K] on every rank: for short sequences only.
  std::function<void(std::string_view path, const Tensor& weights_BTHS, bool is_softmax)> weights = {};
  // Called with the outputs of the heads, after their gates and before the output projection. What it returns is used in their place.
  std::function<Var(std::string_view path, const Var& y_BTHV)> heads = {};
  // Called with the embedding. What it returns is used in its place.
  std::function<Var(const Var& x_BTD)> embedding = {};
  // Called with the residual stream: as "embedding" before the first layer, then behind each layer.
  std::function<void(std::string_view path, const Var& x_BTD)> state = {};
};

struct TokensOptions {
  bool is_training = false;                // dropout on, auxiliary losses collected
  Rng rng = Rng(0);                        // of this step
  double loss_share = 1;                   // share of the step's targets in this batch: a factor of auxiliary losses
  double progress = 0;                     // of the training: 0 at its first step, 1 at its last; layers may follow it
  bool takes_diagnostics = false;          // layers also report diagnostics, which costs time
  std::shared_ptr<Cache> cache = nullptr;  // decoding: `data` holds the new tokens only
  const Probe* probe = nullptr;            // outlives the Tokens
  // Ranks that share these rows: `data` holds the tokens of this rank, as many on each. It outlives backward. Every rank makes the same
  // calls. What is minimised is the sum of the losses of all ranks; losses of layers and what they add to buffers, which every rank has as
  // a whole, count on the first rank. weft/nn/context_group.h
  const ContextGroup* context = nullptr;
  ops::AttentionBackend attention = ops::AttentionBackend::automatic;  // whose kernels attend() runs
  // What takes the place of that which mixes these tokens, and may call it: src/nn/mixing/mixing.h.
  std::function<std::unique_ptr<Mixing>(std::unique_ptr<Mixing>)> mixing = {};
};

}  // namespace weft
