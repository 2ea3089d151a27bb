#include "weft/nn/tokens.h"

#include <algorithm>

#include "src/nn/mixing/observed.h"
#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft {

namespace {

std::unique_ptr<Mixing> made_mixing(const TokenTable& table, const TokensOptions& options) {
  WEFT_CHECK(!options.cache || !options.context,
             "Tokens: a cache beside a context of ranks that have other tokens each",
             "leave TokensOptions::context out: make_cache(batch, max_tokens, ranks) shares the keys out among ranks");
  if (options.cache) return make_decode(table, options.cache);
  const Watched watched{.reports = options.takes_diagnostics, .weights = options.probe && options.probe->weights};
  return options.context ? make_context(table, *options.context, watched) : make_local(table);
}

}  // namespace

Tokens::Tokens(TokenData data, TokensOptions options)
    : TokenTable(std::move(data)),
      Sharing(*this, options),
      Observation(*this, *this, options),
      options_(std::move(options)),
      mixing_(made_mixing(*this, options_)) {
  if (options_.mixing) mixing_ = options_.mixing(std::move(mixing_));
  if (is_watched()) mixing_ = std::make_unique<Observed>(std::move(mixing_), *this, *this);
  look_through(*mixing_);
}

Tokens::~Tokens() = default;

// How many tokens back a call looks at most; 0: to the first.
int64_t Tokens::look_back(const ops::AttentionOptions& options) {
  return options.mask.prefix == 0 ? options.mask.window : 0;
}

// With what every call of the core says about the tokens.
ops::AttentionOptions Tokens::completed(ops::AttentionOptions options, const QuerySet& queries,
                                        const KeySet& keys) const {
  const int64_t window = look_back(options);
  WEFT_CHECK(keys.window == 0 || (window > 0 && window <= keys.window),
             str("attend: a window of ", window, " over keys that are kept for one of ", keys.window),
             "ask keys() for the widest window of the calls that follow");
  options.mask.same_document = data_.documents.defined();
  if (!is_training()) options.dropout = 0;
  const Tensor& positions = queries.tokens.positions;
  const bool are_all = positions.shape() == data_.positions.shape() && positions.shares_memory_with(data_.positions);
  if (!is_decoding() && are_all) options.backend = options_.attention;
  return options;
}

std::array<Var, 2> Tokens::attend(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV,
                                  ops::AttentionOptions options, const Var& sink, const AttentionBias& bias) {
  const QuerySet all = queries(q_BTHK, bias.query);
  const KeySet of = keys(k_BTGK, v_BTGV, {.window = look_back(options), .bias = bias.key, .serves_one_call = true});
  auto [out, lse] = mixing_->attend(all, of, {completed(std::move(options), all, of), sink});
  return {out, lse};
}

std::array<Var, 2> Tokens::attend_keys(const Var& q_BTHK, const Var& k_BTGK, int64_t value_width,
                                       ops::AttentionOptions options) {
  WEFT_CHECK(value_width >= 1 && value_width <= k_BTGK.size(-1),
             str("attend_keys: values of ", value_width, " channels of keys ", k_BTGK.value()),
             "value_width is between 1 and the keys' width");
  const QuerySet all = queries(q_BTHK);
  const KeySet of =
      keys(k_BTGK, {}, {.window = look_back(options), .value_width = value_width, .serves_one_call = true});
  auto [out, lse] = mixing_->attend(all, of, {completed(std::move(options), all, of)});
  return {out, lse};
}

// A bias in the numbers that the core takes. bf16 is exact in them.
static Var widened(const Var& bias) { return bias.defined() && bias.dtype() == kBF16 ? cast(bias, kF32) : bias; }

KeySet Tokens::keys(const Var& k_BTGK, const Var& v_BTGV, const KeyOptions& options) {
  WEFT_CHECK(options.window >= 0, str("keys: window is ", options.window), "use 0 (all) or more");
  KeyOptions completed = options;
  completed.bias = widened(options.bias);
  return mixing_->keys(k_BTGK, v_BTGV, completed);
}

QuerySet Tokens::queries(const Var& q_BTHK, const Var& bias) const {
  return {q_BTHK, widened(bias), attention_tokens(), data_.first_row};
}

QuerySet Tokens::queries(const Var& q_1NHK, int64_t row, std::span<const int32_t> which) const {
  auto some = [&](std::span<const int32_t> all) {
    if (all.empty()) return Tensor();
    std::span<const int32_t> values = all.subspan(static_cast<size_t>(row * num_tokens()));
    std::vector<int32_t> kept;
    for (int32_t i : which) kept.push_back(values[static_cast<size_t>(i)]);
    Tensor out = Tensor::from(std::span<const int32_t>(kept), {1, static_cast<int64_t>(kept.size())});
    return to(out, data_.positions.device()).value();
  };
  return {q_1NHK, {}, {some(cpu_positions()), some(cpu_documents())}, data_.first_row + row};
}

std::array<Var, 2> Tokens::attend_part(const QuerySet& queries, const KeySet& keys, ops::AttentionOptions options) {
  auto [out, lse] =
      mixing_->attend(queries, keys, {.options = completed(std::move(options), queries, keys), .is_shown = false});
  return {out, lse};
}

void Tokens::observe(const QuerySet& queries, const KeySet& keys, const Var& lse_BTH, ops::AttentionOptions options,
                     const Var& sink) {
  mixing_->show(queries, keys, {{}, lse_BTH}, {completed(std::move(options), queries, keys), sink});
}

ops::AttentionStatistics Tokens::statistics(const QuerySet& queries, const KeySet& keys, const Var& lse_BTH,
                                            ops::AttentionOptions options) {
  NoGrad no_grad;
  return mixing_->statistics(queries, keys, {{}, lse_BTH}, {completed(std::move(options), queries, keys)});
}

std::vector<Var> Tokens::gather(std::span<const Var> values, int64_t window) {
  WEFT_CHECK(window >= 0, str("gather: window is ", window), "use 0 (all) or more");
  return mixing_->gather(values, window);
}
Tensor Tokens::gathered_positions(int64_t window) const { return mixing_->gathered(window).document_positions; }
Tensor Tokens::gathered_documents(int64_t window) const { return mixing_->gathered(window).documents; }
std::span<const int32_t> Tokens::gathered_places(int64_t window) const { return mixing_->gathered(window).places; }

void Tokens::check_in_order(std::string_view what) const {
  if (gathered_places().empty()) return;
  if (const ContextGroup* ranks = context())
    fail(str(what, ": the tokens of a row stand on ", ranks->tokens->size(), " ranks, and it needs neighbours at hand"),
         "give every rank whole rows: parallel.context=1, or no TokensOptions::context");
  fail(str(what, ": the tokens of a row do not stand here in the order of their positions"), "hand them over in order");
}

Tensor Tokens::seen(int64_t begin, int64_t end, int64_t num_keys, int64_t window, int64_t gathered) const {
  WEFT_CHECK(gathered == 0 || (window > 0 && window - std::min<int64_t>(begin, 0) <= gathered),
             str("seen: a window of ", window, " from token ", begin, " on over tokens that are gathered for one of ",
                 gathered),
             "gather for the widest window of what follows");
  const Mixing::GatheredTokens& all = mixing_->gathered(gathered);
  constexpr int64_t kNoBound = int64_t{1} << 30;  // beyond all positions
  const int64_t S = all.positions.size(1), first = S - num_tokens();
  WEFT_CHECK(begin >= -first && begin <= end && end <= num_tokens() && num_keys <= S,
             str("seen: tokens ", begin, " to ", end, " of ", num_tokens(), ", ", num_keys, " keys of ", S),
             "ask for tokens that exist");
  auto number = [&](int64_t x) {
    return Var(Tensor::full({}, static_cast<double>(x), kI32, data_.positions.device()));
  };
  auto queries = [&](const Tensor& of_these, const Tensor& of_all) {
    return Var((begin >= 0 ? of_these.slice(1, begin, end) : of_all.slice(1, first + begin, first + end)).unsqueeze(2));
  };
  auto keys = [&](const Tensor& of_all) { return of_all.slice(1, 0, num_keys).unsqueeze(1); };
  // `room` is positive where the query sees the key. Causal: the distance plus 1. With a window: at most window minus the distance. With
  // documents: 0 for keys of another document and for padded queries, whose document is -1.
  Var room = (queries(data_.positions, all.positions) - number(-1)) - Var(keys(all.positions));
  if (window > 0 && window < kNoBound) room = minimum(room, number(window + 1) - room);
  if (data_.documents.defined()) {
    Var documents = queries(data_.documents, all.documents);
    room = minimum(room, documents - number(-1));
    room = where(equal(documents.value(), keys(all.documents)), room, number(0));
  }
  return cast(maximum(room, number(0)), kBool).value();
}

Var Tokens::scan(const Var& x, int64_t window) {
  WEFT_CHECK(window >= 0, str("scan: window is ", window), "use 0 (all) or more");
  return mixing_->prefix(x, window);
}

Var Tokens::shift(const Var& x, int64_t n) {
  WEFT_CHECK(n >= 0, str("shift: n is ", n), "shift looks back: n >= 0");
  return n == 0 ? x : shifted(mixing_->neighbours(x, n, 0), n, batch(), num_tokens());
}

Var Tokens::conv(const Var& x, const Var& weight_DW, const Var& bias_D) {
  WEFT_CHECK(weight_DW.num_dims() == 2 && weight_DW.size(1) >= 1 && x.num_dims() >= 2 && x.size(0) == batch() &&
                 x.size(1) == num_tokens(),
             str("conv: x is ", x.value(), ", weight is ", weight_DW.value(), ", the tokens are [", batch(), ", ",
                 num_tokens(), "]"),
             "give x [B, T, ...] with D numbers per token, and a weight [D, W]");
  const Mixing::Neighbours near = mixing_->neighbours(x, weight_DW.size(1) - 1, 0);
  Var flat = reshape(near.x, {near.x.size(0), near.x.size(1), weight_DW.size(0)});
  return reshape(those_here(near, causal_conv(flat, weight_DW, bias_D, near.documents), batch(), num_tokens()),
                 x.shape());
}

Var Tokens::recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options) {
  WEFT_CHECK(!input.state.defined() && !input.documents.defined() && !input.state_document.defined() && !input.step,
             "recur: a state or documents of the caller's, or a step", "leave them out: Tokens carries the state");
  check_tokens("recur", input.v_BTHV);
  return mixing_->recur(input, options);
}

Var Tokens::recur(const RecurrenceVars& input) { return recur(input, {}); }

Var Tokens::recur_chunks(const RecurrenceVars& input, const ops::RecurrenceOptions& options, const Var& keeps_BTH,
                         int64_t chunk) {
  WEFT_CHECK(!input.state.defined() && !input.documents.defined() && !input.writes.defined(),
             "recur_chunks: a state, documents or writes of the caller's", "leave them out: Tokens carries the state");
  WEFT_CHECK(chunk >= 1, str("recur_chunks: chunks of ", chunk, " tokens"), "use 1 or more");
  check_tokens("recur_chunks", input.v_BTHV);
  const Shape of_heads{batch(), num_tokens(), input.v_BTHV.size(2)};
  WEFT_CHECK((keeps_BTH.defined() ? keeps_BTH.shape() == of_heads : bool(input.step)) &&
                 (!input.log_decay.defined() || input.log_decay.shape() == of_heads),
             str("recur_chunks: keeps ", keeps_BTH.defined() ? str(keeps_BTH.value()) : "nothing", " for values ",
                 input.v_BTHV.value()),
             "give the decay per token and head, and keeps too unless there is a step");
  return mixing_->recur_chunks(input, options, {keeps_BTH, chunk});
}

Var Tokens::decay_scan(const Var& x_BTD, const Var& log_decay) {
  check_tokens("decay_scan", x_BTD);
  return mixing_->decay_scan(x_BTD, log_decay);
}

void Tokens::check_tokens(std::string_view what, const Var& x) const {
  WEFT_CHECK(x.num_dims() >= 2 && x.size(0) == batch() && x.size(1) == num_tokens(),
             str(what, ": values are ", x.value(), ", the tokens are [", batch(), ", ", num_tokens(), "]"),
             "give numbers for each of these tokens");
}

Var Tokens::sum(const Var& x, Over over) { return mixing_->sum(x, over); }

Rng Tokens::random(std::string_view purpose) const { return options_.rng[Scope::path()][purpose]; }

Var Tokens::dropout(const Var& x_BTD, double p, std::string_view purpose) {
  if (!is_training() || p == 0) return x_BTD;
  return weft::dropout(x_BTD, positions(), p, random(purpose), data_.first_row);
}

Var Tokens::settled(const Var& y_BTD) { return mixing_->settled(y_BTD); }

void Tokens::finish_decode_step() { mixing_->finish_step(); }

}  // namespace weft
