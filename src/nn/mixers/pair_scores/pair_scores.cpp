// B batch, T tokens, I queries of a tile, S keys, H query heads, G key/value heads, V value width.
#include "src/nn/mixers/pair_scores/pair_scores.h"

#include <algorithm>
#include <cmath>

#include "weft/autograd/recompute.h"
#include "weft/core/allocator.h"
#include "weft/core/error.h"

namespace weft {

namespace {

constexpr int64_t kTile = 128;  // queries

// Of a query to the keys that it sees; 0 for others, which may be of a document with other positions.
Tensor distances(const Tensor& positions_BT, const Tensor& gathered_BS, const Tensor& seen_BIS, int64_t begin) {
  const int64_t end = begin + seen_BIS.size(1), num_keys = seen_BIS.size(2);
  Var query = unsqueeze(cast(Var(positions_BT.slice(1, begin, end)), kF32), -1);
  Var distance = query - unsqueeze(cast(Var(gathered_BS.slice(1, 0, num_keys)), kF32), 1);
  return where(seen_BIS, distance, Tensor::zeros({}, kF32, distance.device())).value();
}

}  // namespace

PairObserver::PairObserver(Tokens& tokens) : tokens_(tokens), is_on_(tokens.is_watched()) {}

void PairObserver::add(const Var& scores_BHIS, const Tensor& seen, const Var& weights_BHIS) {
  if (!is_on_) return;
  NoGrad no_grad;
  Var weights = cast(weights_BHIS, kF32), sizes = abs(weights);
  Var shares = sizes / maximum(sum(sizes, -1, true), Tensor::full({}, 1e-30, kF32, sizes.device()));
  Var nothing = Tensor::full({}, -HUGE_VAL, kF32, sizes.device());
  entropy_.push_back(sum(shares * log(maximum(shares, Tensor::full({}, 1e-30, kF32, sizes.device()))), -1) * -1.0);
  top_.push_back(max(where(seen.expand(scores_BHIS.shape()), cast(scores_BHIS, kF32), nothing), -1));
  const int64_t num_keys = tokens_.gathered_positions().size(1);
  auto to_all_keys = [&](const Var& x) {  // zeros for keys behind the tile's
    Shape rest = x.shape();
    rest[x.num_dims() - 1] = num_keys - rest[x.num_dims() - 1];
    const Var both[] = {x, Tensor::zeros(rest, x.dtype(), x.device())};
    return concatenate(both, -1);
  };
  Var mass = to_all_keys(sum(shares, 2));
  mass_ = mass_.defined() ? mass_ + mass : mass;
  if (tokens_.shows_weights()) weights_.push_back(to_all_keys(cast(weights_BHIS, pair_dtype(weights_BHIS))));
}

void PairObserver::finish(const Var& v_BTGV, bool is_softmax) {
  if (!is_on_ || entropy_.empty()) return;
  NoGrad no_grad;
  const std::span<const int32_t> places = tokens_.gathered_places();
  auto of_these = [&](const Var& x) {  // keys, the last dimension, as the tokens stand here
    if (places.empty()) return x;
    Shape shape = x.shape();
    shape[x.num_dims() - 1] = tokens_.num_tokens();
    Tensor index = to(Tensor::from(places, {shape[0], tokens_.num_tokens()}), x.device()).value();
    while (index.num_dims() < x.num_dims()) index = index.unsqueeze(1);
    return gather(x, -1, index.expand(shape));
  };
  auto tokens_first = [](const Var& x) {
    return reshape(permute(x, {0, 2, 1}) * 1.0, {x.size(0), x.size(2), x.size(1)});
  };
  tokens_.report_attention({.column_mass = tokens_first(of_these(tokens_.sum_of_ranks(mass_.value()))).value(),
                            .entropy = tokens_first(concatenate(entropy_, 2)).value(),
                            .max_score = tokens_first(concatenate(top_, 2)).value()},
                           v_BTGV);
  if (weights_.empty()) return;
  Var weights_BHTS = concatenate(weights_, 2);
  weights_.clear();
  const Var weights_BTHS = permute(weights_BHTS, {0, 2, 1, 3}) * 1.0;
  weights_BHTS = {};
  tokens_.show_weights(weights_BTHS.value(), is_softmax);
}

void check_materialised(std::string_view what, const Var& x, double copies, double elements) {
  const double needed = copies * elements * (x.dtype() == kF64 ? 8 : 4);
  const auto there = static_cast<double>(memory_bytes(x.device()));
  constexpr double kGiB = 1024.0 * 1024 * 1024;
  WEFT_CHECK(needed <= there,
             str(what, ": a row of tokens this long needs ", needed / kGiB, " GiB for its pairs, ", x.device(), " has ",
                 there / kGiB, " GiB"),
             "use shorter sequences or smaller batches: this mixer's memory grows with the square of the length");
}

DType pair_dtype(const Var& x) { return x.dtype() == kF64 ? kF64 : kF32; }

Var pair_products(const Var& q_BIHK, const Var& k_BSGK) {
  const int64_t B = q_BIHK.size(0), I = q_BIHK.size(1), H = q_BIHK.size(2), K = q_BIHK.size(3);
  const int64_t S = k_BSGK.size(1), G = k_BSGK.size(2);
  DType wide = pair_dtype(q_BIHK);
  Var q = reshape(permute(cast(q_BIHK, wide), {0, 2, 1, 3}), {B, G, H / G * I, K});
  Var s = matmul(q, permute(cast(k_BSGK, wide), {0, 2, 1, 3}), {.transpose_b = true});
  return reshape(s, {B, H, I, S});
}

Var masked_softmax(const Var& scores, const Tensor& mask) {
  Tensor all = mask.expand(scores.shape());
  auto constant = [&](double x) { return Var(Tensor::full({}, x, scores.dtype(), scores.device())); };
  return where(all, softmax(where(all, scores, constant(-1e30))), constant(0));
}

Var mix_values(const Var& weights_BHIS, const Var& v_BSGV) {
  const int64_t B = weights_BHIS.size(0), H = weights_BHIS.size(1), I = weights_BHIS.size(2), S = weights_BHIS.size(3);
  const int64_t G = v_BSGV.size(2), V = v_BSGV.size(3);
  Var weights = reshape(weights_BHIS, {B, G, H / G * I, S});
  Var y = matmul(cast(weights, v_BSGV.dtype()), permute(v_BSGV, {0, 2, 1, 3}));
  return permute(reshape(y, {B, H, I, V}), {0, 2, 1, 3});
}

Var mix_pairs(Tokens& tokens, std::span<const Var> queries, std::span<const Var> keys, const Var& v_BTGV, int64_t heads,
              const PairMix& mix, int64_t window, bool is_softmax) {
  std::vector<Var> gathered(keys.begin(), keys.end());
  gathered.push_back(v_BTGV);
  gathered = tokens.gather(gathered, window);
  const Var v_BSGV = gathered.back();
  const int64_t B = v_BTGV.size(0), T = v_BTGV.size(1), S = v_BSGV.size(1);
  const Tensor positions = tokens.document_positions(), key_positions = tokens.gathered_positions(window);
  auto keys_of = [&](int64_t begin,
                     int64_t end) {  // gathered by position: up to the last that a query of the tile may see
    const std::span<const int32_t> places = tokens.gathered_places(window);
    if (places.empty()) return S - T + end;
    int32_t last = 0;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t t = begin; t < end; ++t) last = std::max(last, places[static_cast<size_t>(b * T + t)]);
    return int64_t{last} + 1;
  };
  PairObserver observer(tokens);
  std::vector<Var> parts;
  for (int64_t begin = 0; begin < T; begin += kTile) {
    const int64_t end = std::min(begin + kTile, T), num_keys = keys_of(begin, end);
    Tensor seen_BIS = tokens.seen(begin, end, num_keys, window, window), seen = seen_BIS.unsqueeze(1);
    Tensor distance = distances(positions, key_positions, seen_BIS, begin);
    PairObserver* first = &observer;  // gone when backward runs the tile again
    auto tile = [mix, distance, seen, first, num_queries = queries.size()](std::span<const Var> in) {
      auto middle = in.begin() + static_cast<std::ptrdiff_t>(num_queries);
      PairTile at{{in.begin(), middle}, {middle, in.end() - 1}, distance};
      return std::vector<Var>{mix(at, seen, in.back(), is_recomputing() ? nullptr : first)};
    };
    std::vector<Var> inputs;
    for (const Var& q : queries) inputs.push_back(slice(q, 1, begin, end));
    for (const Var& k : gathered) inputs.push_back(slice(k, 1, 0, num_keys));
    parts.push_back(is_recording() ? recompute(tile, inputs)[0] : tile(inputs)[0]);
  }
  observer.finish(v_BTGV, is_softmax);
  if (parts.empty()) return Tensor::zeros({B, T, heads, v_BTGV.size(3)}, v_BTGV.dtype(), v_BTGV.device());
  return concatenate(parts, 1);
}

Var attend_pairs(Tokens& tokens, std::span<const Var> queries, std::span<const Var> keys, const Var& v_BTGV,
                 int64_t heads, const PairScore& score, int64_t window) {
  auto mix = [score](const PairTile& tile, const Tensor& seen, const Var& v, PairObserver* observer) {
    Var scores = score(tile), weights = masked_softmax(scores, seen);
    if (observer) observer->add(scores, seen, weights);
    return mix_values(weights, v);
  };
  return mix_pairs(tokens, queries, keys, v_BTGV, heads, mix, window);
}

}  // namespace weft
