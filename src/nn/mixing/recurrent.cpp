// Recurrences over tokens that are gathered first, in the order of positions.
#include "src/nn/mixing/any_order.h"
#include "src/nn/mixing/mixing.h"

namespace weft {

namespace {

// Numbers of each of these tokens [B, T, ...], and where they are in the RecurrenceVars.
std::vector<Var*> of_tokens(RecurrenceVars& input) {
  std::vector<Var*> found{&input.q_BTGK, &input.k_BTGK, &input.v_BTHV};
  if (input.log_decay.defined() && input.log_decay.num_dims() > 1) found.push_back(&input.log_decay);
  if (input.beta.defined()) found.push_back(&input.beta);
  return found;
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
  RecurrenceVars all = input;
  const std::vector<Var*> fields = of_tokens(all);
  std::vector<Var> values;
  for (const Var* field : fields) values.push_back(*field);
  if (input.writes.defined()) values.push_back(cast(Var(input.writes), kF32));
  values = mixing.gather(values, 0);
  for (size_t i = 0; i < fields.size(); ++i) *fields[i] = values[i];
  if (input.writes.defined()) all.writes = cast(values.back(), kBool).value();
  const Mixing::GatheredTokens& tokens = mixing.gathered(0);
  all.documents = tokens.documents;
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

}  // namespace weft
