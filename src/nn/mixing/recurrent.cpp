// Recurrences over tokens that are gathered first, in the order of positions.
#include "src/nn/mixing/any_order.h"
#include "src/nn/mixing/mixing.h"
#include "weft/core/dry_run.h"

namespace weft {

namespace {

// Numbers of each of these tokens [B, T, ...], and where they are in the RecurrenceVars.
std::vector<Var*> of_tokens(RecurrenceVars& input) {
  std::vector<Var*> found{&input.q_BTGK, &input.k_BTGK, &input.v_BTHV};
  if (input.log_decay.defined() && input.log_decay.num_dims() > 1) found.push_back(&input.log_decay);
  if (input.beta.defined()) found.push_back(&input.beta);
  return found;
}

// The input with all tokens of the rows, and where they are. `more` [B, T, ...] is gathered with it, and replaced.
RecurrenceVars gathered_input(Mixing& mixing, const RecurrenceVars& input, Var* more = nullptr) {
  RecurrenceVars all = input;
  std::vector<Var*> fields = of_tokens(all);
  Var writes;
  if (input.writes.defined()) writes = cast(Var(input.writes), kF32), fields.push_back(&writes);
  if (more) fields.push_back(more);
  std::vector<Var> values;
  for (const Var* field : fields) values.push_back(*field);
  values = mixing.gather(values, 0);
  for (size_t i = 0; i < fields.size(); ++i) *fields[i] = values[i];
  if (input.writes.defined()) all.writes = cast(writes, kBool).value();
  all.documents = mixing.gathered(0).documents;
  return all;
}

// Of y [B, S, ...] the tokens here.
Var places_of(const Mixing::GatheredTokens& all, const Var& y, int64_t num_tokens) {
  std::vector<int32_t> places = all.places;
  const int64_t batch = y.size(0), count = y.size(1);
  for (size_t i = 0; i < places.size(); ++i)
    places[i] += static_cast<int32_t>(static_cast<int64_t>(i) / num_tokens * count);
  return those_here({.x = y, .documents = {}, .places = std::move(places)}, y, batch, num_tokens);
}

}  // namespace

Var recur_gathered(Mixing& mixing, const RecurrenceVars& input, const ops::RecurrenceOptions& options) {
  const int64_t num_tokens = input.v_BTHV.size(1);
  const RecurrenceVars all = gathered_input(mixing, input);
  const Mixing::GatheredTokens& tokens = mixing.gathered(0);
  return places_of(tokens, weft::recur(all, options)[0], num_tokens);
}

Var decay_scan_gathered(Mixing& mixing, const Var& x_BTD, const Var& log_decay) {
  std::vector<Var> values{x_BTD};
  if (log_decay.num_dims() > 1) values.push_back(log_decay);
  values = mixing.gather(values, 0);
  const Mixing::GatheredTokens& tokens = mixing.gathered(0);
  return places_of(tokens,
                   weft::decay_scan({.x_BTD = values[0],
                                     .log_decay = values.size() > 1 ? values[1] : log_decay,
                                     .documents = tokens.documents})[0],
                   x_BTD.size(1));
}

Var recur_chunks_gathered(Mixing& mixing, const RecurrenceVars& input, const ops::RecurrenceOptions& options,
                          const Mixing::Chunks& chunks) {
  const int64_t B = input.v_BTHV.size(0), num_tokens = input.v_BTHV.size(1);
  Var keeps = chunks.keeps_BTH;
  const RecurrenceVars all = gathered_input(mixing, input, keeps.defined() ? &keeps : nullptr);
  const Mixing::GatheredTokens& tokens = mixing.gathered(0);
  std::vector<int32_t> positions, documents;
  if (is_dry_run()) {
    for (int64_t i = 0; i < B * all.q_BTGK.size(1); ++i)
      positions.push_back(static_cast<int32_t>(i % all.q_BTGK.size(1)));
  } else {
    positions = tokens.document_positions.to_vector<int32_t>();
    if (tokens.documents.defined()) documents = tokens.documents.to_vector<int32_t>();
  }
  ChunkStates states;
  Var y = recur_in_pieces(all, options, keeps, pieces_of(B, positions, documents, chunks.length), states);
  return places_of(tokens, y, num_tokens);
}

// Piece number i of every row at once, one after the other: what enters a chunk depends on the chunks before it.
Var recur_in_pieces(const RecurrenceVars& input, const ops::RecurrenceOptions& options, const Var& keeps_BTH,
                    const Pieces& pieces, ChunkStates& states) {
  const int64_t B = input.v_BTHV.size(0), S = input.v_BTHV.size(1), H = input.v_BTHV.size(2), V = input.v_BTHV.size(3),
                K = input.k_BTGK.size(3);
  const DType wide = input.v_BTHV.dtype() == kF64 ? kF64 : kF32;
  const Device device = input.v_BTHV.device();
  auto flags = [&](const std::vector<int32_t>& of_rows) {
    Tensor numbers = to(Tensor::from(std::span<const int32_t>(of_rows), {B, 1, 1, 1}), device).value();
    return equal(Var(numbers), 1).expand({B, H, K, V});
  };
  if (!states.written.defined()) states.written = states.other = Tensor::zeros({B, H, K, V}, wide, device);
  if (B * S == 0) return input.v_BTHV;
  std::vector<Var> outs;
  std::vector<int32_t> places(static_cast<size_t>(B * S), -1);
  int32_t num_done = 0;
  for (int64_t i = 0; i < pieces.most(); ++i) {
    const auto [tokens, count] = pieces.padded(i);
    auto taken = [&](const Var& x, std::span<const int32_t> which) {
      Shape shape = x.shape();
      shape[1] = static_cast<int64_t>(which.size()) / B;
      return reshape(rows_or_zeros(reshape(x, {B * S, x.value().num_elements() / (B * S)}), which), shape);
    };
    std::vector<int32_t> documents, begins, ends, last;
    for (size_t j = 0; j < tokens.size(); ++j) {
      documents.push_back(tokens[j] < 0 ? -1 : 0);
      if (tokens[j] >= 0) places[static_cast<size_t>(tokens[j])] = num_done + static_cast<int32_t>(j);
    }
    for (const auto& row : pieces.rows) {
      const Piece* piece = static_cast<size_t>(i) < row.size() ? &row[static_cast<size_t>(i)] : nullptr;
      begins.push_back(piece && piece->begins_document);
      ends.push_back(piece && piece->is_whole);
      last.push_back(piece ? piece->tokens.back() : -1);
    }
    const Tensor is_first = flags(begins), is_last = flags(ends);
    Var written = where(is_first, 0, states.written), other = where(is_first, 0, states.other);
    RecurrenceVars here{.q_BTGK = taken(input.q_BTGK, tokens),
                        .k_BTGK = taken(input.k_BTGK, tokens),
                        .v_BTHV = taken(input.v_BTHV, tokens),
                        .state = written,
                        .documents = to(Tensor::from(std::span<const int32_t>(documents), {B, count}), device).value(),
                        .state_document = Tensor::zeros({B}, kI32, device)};
    if (input.log_decay.defined()) here.log_decay = taken(input.log_decay, tokens);
    if (input.beta.defined()) here.beta = taken(input.beta, tokens);
    auto [y, after] = input.step ? input.step(here, other) : weft::recur(here, options);
    outs.push_back(reshape(y, {B * count, H * V}));
    num_done += static_cast<int32_t>(B * count);
    Var behind = after;
    if (!input.step) {
      if (here.log_decay.defined()) other = other * reshape(exp(sum(here.log_decay, 1)), {B, H, 1, 1});
      behind = other + reshape(cast(taken(keeps_BTH, last), wide), {B, H, 1, 1}) * (after - other);
    }
    states = {where(is_last, behind, after), where(is_last, behind, other)};
  }
  if (outs.empty()) outs.push_back(Tensor::zeros({0, H * V}, input.v_BTHV.dtype(), device));
  return reshape(rows_or_zeros(concatenate(outs, 0), places), {B, S, H, V});
}

}  // namespace weft
