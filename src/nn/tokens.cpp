#include "weft/nn/tokens.h"

#include <algorithm>

#include "src/nn/mixing/any_order.h"
#include "src/nn/mixing/cache.h"
#include "src/nn/mixing/runs.h"
#include "weft/autograd/functions.h"
#include "weft/autograd/recompute.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft {

Tokens::Tokens(TokenData data, TokensOptions options) : TokenTable(std::move(data)), options_(std::move(options)) {
  if (!options_.cache) return;
  WEFT_CHECK(options_.cache->batch() == batch(),
             str("decode: ", batch(), " rows for a cache of ", options_.cache->batch()),
             "make the cache for this batch");
  options_.cache->check_room(num_tokens());
}

Tokens::~Tokens() = default;

const Runs* Tokens::order_here() const { return is_decoding() ? nullptr : other_order(); }

// Of the tokens as queries and keys, with what the options of every call of the core say about them.
ops::AttentionTokens Tokens::here(ops::AttentionOptions& options) const {
  options.mask.same_document = data_.documents.defined();
  options.first_row = data_.first_row;
  if (!is_training()) options.dropout = 0;
  if (!is_decoding()) options.backend = options_.attention;
  return {data_.positions, data_.documents, data_.are_consecutive};
}

std::array<Var, 2> Tokens::attend(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV,
                                  ops::AttentionOptions options, const Var& sink, const AttentionBias& bias) {
  std::array<Var, 2> result = attend_part(q_BTHK, k_BTGK, v_BTGV, options, bias);
  if (bias.query.defined()) options.score.query_bias = bias.query.value();
  if (bias.key.defined()) options.score.key_bias = bias.key.value();
  observe(q_BTHK, k_BTGK, v_BTGV, result[1], std::move(options), sink);
  return result;
}

std::array<Var, 2> Tokens::attend_part(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV,
                                       ops::AttentionOptions options, const AttentionBias& bias) {
  ops::AttentionTokens tokens = here(options);
  if (options_.cache) return decode_attend(q_BTHK, k_BTGK, v_BTGV, v_BTGV.size(-1), std::move(options), bias);
  return weft::attend(q_BTHK, k_BTGK, v_BTGV, tokens, tokens, options, bias);
}

// Without v: the first `value_width` channels of k.
std::array<Var, 2> Tokens::decode_attend(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV, int64_t value_width,
                                         ops::AttentionOptions options, AttentionBias bias) {
  WEFT_CHECK(!is_recording(), "attend: decoding with a cache has no gradient", "decode under NoGrad");
  ops::AttentionTokens tokens = here(options);
  options.dropout = 0;
  Cache& cache = *options_.cache;
  Cache::Slot& slot = cache.slot(next_slot_++);
  Tensor k = cache.append(slot.a, k_BTGK.value());
  Tensor v = v_BTGV.defined() ? cache.append(slot.b, v_BTGV.value()) : k.slice(-1, 0, value_width);
  if (bias.key.defined()) bias.key = cache.append(slot.c, bias.key.value());
  return weft::attend(q_BTHK, k, v, tokens, cache.keys(tokens), options, bias);
}

std::array<Var, 2> Tokens::attend_keys(const Var& q_BTHK, const Var& k_BTGK, int64_t value_width,
                                       ops::AttentionOptions options) {
  WEFT_CHECK(value_width >= 1 && value_width <= k_BTGK.size(-1),
             str("attend_keys: values of ", value_width, " channels of keys ", k_BTGK.value()),
             "value_width is between 1 and the keys' width");
  if (!options_.cache) return attend(q_BTHK, k_BTGK, slice(k_BTGK, -1, 0, value_width), std::move(options));
  return decode_attend(q_BTHK, k_BTGK, {}, value_width, std::move(options));
}

std::array<Var, 2> Tokens::attend_some(const Var& q_1NHK, const Var& k_1TGK, const Var& v_1TGV, int64_t row,
                                       std::span<const int32_t> which, ops::AttentionOptions options) {
  WEFT_CHECK(!options_.cache && (options.dropout == 0 || !is_training()),
             "attend_some: in decoding, or with dropout of weights", "use attend() for all queries");
  auto some = [&](std::span<const int32_t> all) {
    if (all.empty()) return Tensor();
    std::span<const int32_t> values = all.subspan(static_cast<size_t>(row * num_tokens()));
    std::vector<int32_t> kept;
    for (int32_t i : which) kept.push_back(values[static_cast<size_t>(i)]);
    Tensor out = Tensor::from(std::span<const int32_t>(kept), {1, static_cast<int64_t>(kept.size())});
    return to(out, data_.positions.device()).value();
  };
  auto of_row = [&](const Tensor& all) { return all.defined() ? all.slice(0, row, row + 1) : all; };
  options.mask.same_document = data_.documents.defined();
  options.dropout = 0;
  return weft::attend(q_1NHK, k_1TGK, v_1TGV, {some(cpu_positions()), some(cpu_documents())},
                      {of_row(data_.positions), of_row(data_.documents)}, options);
}

std::span<const int32_t> Tokens::gathered_places() const {
  const Runs* runs = order_here();
  if (!runs || !places_.empty()) return places_;
  const std::vector<int32_t> order = runs->order();
  places_.resize(order.size());
  for (size_t i = 0; i < order.size(); ++i)
    places_[static_cast<size_t>(order[i])] = static_cast<int32_t>(i % static_cast<size_t>(num_tokens()));
  return places_;
}

// Numbers per token [B, T] by position.
Tensor Tokens::gathered(const Tensor& of_these) const {
  const Runs* runs = order_here();
  if (!runs || !of_these.defined()) return of_these;
  return cast(take_tokens(cast(Var(of_these), kF64), runs->order()), kI32).value();
}

std::vector<Var> Tokens::gather(std::span<const Var> values) {
  std::vector<Var> all(values.begin(), values.end());
  if (const Runs* runs = order_here())
    for (Var& x : all) x = take_tokens(x, runs->order());
  if (!options_.cache) return all;
  WEFT_CHECK(!is_recording() && !data_.documents.defined(), "gather: decoding with a gradient or with documents",
             "decode under NoGrad, one document per row");
  for (Var& x : all) x = options_.cache->append(options_.cache->slot(next_slot_++).a, x.value());
  return all;
}

Tensor Tokens::gathered_positions() const {
  if (!options_.cache) return gathered(document_positions());
  return options_.cache->keys({data_.positions, data_.documents}).positions;
}

Tensor Tokens::seen(int64_t begin, int64_t end, int64_t num_keys, int64_t window) const {
  Tensor of_keys = options_.cache ? gathered_positions() : gathered(data_.positions);
  Tensor of_queries = options_.cache ? of_keys : data_.positions;
  constexpr int64_t kNoBound = int64_t{1} << 30;  // beyond all positions
  const int64_t S = of_keys.size(1), first = S - num_tokens();
  WEFT_CHECK(begin >= -first && begin <= end && end <= num_tokens() && num_keys <= S,
             str("seen: tokens ", begin, " to ", end, " of ", num_tokens(), ", ", num_keys, " keys of ", S),
             "ask for tokens that exist");
  auto number = [&](int64_t x) { return Var(Tensor::full({}, static_cast<double>(x), kI32, of_keys.device())); };
  auto queries = [&](const Tensor& all) { return Var(all.slice(1, first + begin, first + end).unsqueeze(2)); };
  auto keys = [&](const Tensor& all) { return all.slice(1, 0, num_keys).unsqueeze(1); };
  // `room` is positive where the query sees the key. Causal: the distance plus 1. With a window: at most window minus the distance. With
  // documents: 0 for keys of another document and for padded queries, whose document is -1.
  Var room = (queries(of_queries) - number(-1)) - Var(keys(of_keys));
  if (window > 0 && window < kNoBound) room = minimum(room, number(window + 1) - room);
  if (data_.documents.defined()) {
    room = minimum(room, queries(data_.documents) - number(-1));
    room = where(equal(queries(data_.documents).value(), keys(gathered(data_.documents))), room, number(0));
  }
  return cast(maximum(room, number(0)), kBool).value();
}

Var Tokens::scan(const Var& x, int64_t window) {
  WEFT_CHECK(window >= 0, str("scan: window is ", window), "use 0 (all) or more");
  if (const Runs* runs = order_here()) return scan_in_runs(x, *runs, window);
  if (!options_.cache) return cumsum(x, 1, {.segments = data_.documents, .window = window});
  WEFT_CHECK(!data_.documents.defined(), "scan: decoding with documents", "decode one document per row");
  Cache::Slot& slot = options_.cache->slot(next_slot_++);
  const int64_t T = num_tokens();
  if (window > 0) {  // the slot holds what later windows reach of the earlier tokens
    const Var parts[] = {slot.a.defined() ? Var(slot.a) : slice(x, 1, 0, 0), x};
    Var all = concatenate(parts, 1);
    const int64_t S = all.size(1);
    slot.a = all.value().slice(1, std::max<int64_t>(0, S - (window - 1)), S);
    return slice(cumsum(all, 1, {.window = window}), 1, S - T, S);
  }
  Var total = cumsum(x, 1);
  if (slot.a.defined()) total = total + Var(slot.a);
  slot.a = total.value().slice(1, T - 1, T);
  return total;
}

// Whether the token n before is of the same document: [B, T] bool.
static Tensor continues(const Tensor& documents_BT, int64_t n) {
  constexpr double kNoDocument = -2;  // -1 is padding
  const int64_t B = documents_BT.size(0), T = documents_BT.size(1), kept = std::min(n, T);
  const Var parts[] = {Tensor::full({B, kept}, kNoDocument, kI32, documents_BT.device()),
                       documents_BT.slice(1, 0, T - kept)};
  return equal(documents_BT, concatenate(parts, 1).value());
}

Var Tokens::shift(const Var& x, int64_t n) {
  WEFT_CHECK(n >= 0, str("shift: n is ", n), "shift looks back: n >= 0");
  if (n == 0) return x;
  if (const Runs* runs = order_here()) return shift_in_runs(x, *runs, n);
  int64_t T = num_tokens(), kept = std::min(n, T);
  Shape before_shape = x.shape();
  before_shape[1] = n;
  Var before = Tensor::zeros(before_shape, x.dtype(), x.device());
  if (options_.cache) {
    WEFT_CHECK(!data_.documents.defined(), "shift: decoding with documents", "decode one document per row");
    Cache::Slot& slot = options_.cache->slot(next_slot_++);
    if (slot.a.defined()) before = slot.a;
    const Var parts[] = {before, x};
    slot.a = concatenate(parts, 1).value().slice(1, T, T + n);
  }
  const Var parts[] = {before, x.size(1) > 0 ? slice(x, 1, 0, T - kept) : x};
  Var y = kept < n ? slice(before, 1, 0, T) : concatenate(parts, 1);
  if (!data_.documents.defined()) return y;
  Tensor same = continues(data_.documents, n);
  for (int i = 2; i < x.num_dims(); ++i) same = same.unsqueeze(-1);
  return where(same.expand(y.shape()), y, Tensor::zeros({}, x.dtype(), x.device()));
}

Var Tokens::sum(const Var& x) {
  const int dims[] = {0, 1};
  if (!has_padding()) return weft::sum(x, dims);
  return weft::sum(where(counted_like(x), x, Tensor::zeros({}, x.dtype(), x.device())), dims);
}

Rng Tokens::random(std::string_view purpose) const { return options_.rng[Scope::path()][purpose]; }

Var Tokens::dropout(const Var& x_BTD, double p, std::string_view purpose) {
  if (!is_training() || p == 0) return x_BTD;
  return weft::dropout(x_BTD, positions(), p, random(purpose), data_.first_row);
}

// A bare recompute() runs its function first without recording gradients. A value that leaves the function other than as its output
// would have no gradient.
void Tokens::check_recorded(std::string_view what, std::string_view name) const {
  WEFT_CHECK(!is_training() || !is_first_forward_of_recompute() || recomputed_depth_ > 0,
             str(what, ": '", name, "' comes from inside recompute()"),
             "use Tokens::recomputed(), or return it as an output of recompute() and pass it on outside");
}

Var Tokens::recomputed(const std::function<Var(const Var&)>& f, const Var& x_BTD) {
  struct Left {  // by the side, in the order of the outputs after the first
    std::vector<std::string> shared;
    std::vector<Loss> losses;
  };
  Shared outside = shared_;
  struct Inside {
    int& depth;
    explicit Inside(int& depth) : depth(++depth) {}
    ~Inside() { --depth; }
  };
  auto left = std::make_shared<Left>();
  // Values enter as inputs and leave as outputs; in between, this object holds what the block sees.
  auto block = [this, f, outside, left](std::span<const Var> in) {
    Shared kept = std::exchange(shared_, outside);
    size_t num_losses = losses_.size();
    for (size_t i = 0; i < outside.size(); ++i) shared_[i].second = in[1 + i];
    std::vector<Var> out;
    {
      Inside inside{recomputed_depth_};
      out.push_back(f(in[0]));
    }
    *left = {};
    for (size_t i = 0; i < shared_.size(); ++i) {
      bool is_same = i < outside.size() && shared_[i].second.value().shares_memory_with(in[1 + i].value()) &&
                     shared_[i].second.shape() == in[1 + i].shape();
      if (is_same) continue;
      left->shared.push_back(shared_[i].first);
      out.push_back(shared_[i].second);
    }
    for (size_t i = num_losses; i < losses_.size(); ++i) {
      left->losses.push_back(losses_[i]);
      out.push_back(losses_[i].value);
    }
    losses_.resize(num_losses);
    shared_ = std::move(kept);
    return out;
  };
  std::vector<Var> inputs{x_BTD};
  for (const auto& [name, value] : outside) inputs.push_back(value);
  std::vector<Var> out = weft::recompute(block, inputs);
  size_t next = 1;
  for (const std::string& name : std::vector<std::string>(left->shared)) share(name, out[next++]);
  for (const Loss& loss : left->losses) losses_.push_back({loss.name, out[next++], loss.weight});
  left->losses.clear();  // their values are not needed for backward
  return out[0];
}

void Tokens::share(std::string_view name, const Var& value) {
  check_recorded("share", name);
  for (auto& [known, var] : shared_)
    if (known == name) {
      var = value;
      return;
    }
  shared_.emplace_back(std::string(name), value);
}

bool Tokens::has_shared(std::string_view name) const {
  return std::any_of(shared_.begin(), shared_.end(), [&](const auto& known) { return known.first == name; });
}

const Var& Tokens::shared(std::string_view name) const {
  std::string names;
  for (const auto& [known, var] : shared_) {
    if (known == name) return var;
    names += names.empty() ? known : ", " + known;
  }
  fail(str("shared: no value '", name, "'"),
       str("an earlier layer must share() it; there are: ", names.empty() ? "none" : names));
}

void Tokens::add_loss(std::string_view name, const Var& value, double weight) {
  check_recorded("add_loss", name);
  if (!is_training()) return;
  std::string path = Scope::path();
  losses_.push_back({path.empty() ? std::string(name) : str(path, ".", name), value, weight * options_.loss_share});
}

void Tokens::accumulate(Buffer& buffer, const Var& sum, const Var& count) {
  if (is_training() && !is_recomputing()) buffer.add(sum.value(), count.value());
}

void Tokens::finish_decode_step() {
  if (options_.cache) options_.cache->advance(num_tokens());
}

}  // namespace weft
