#include "src/nn/mixers/hybrids/chosen_blocks.h"

#include <algorithm>

#include "weft/core/dry_run.h"
#include "weft/core/error.h"

namespace weft::hybrid {

namespace {

constexpr double kUnseen = -1e30;  // in place of the log of 0

// x [B, S, ...] of these tokens: [B, count, ...].
Var of_tokens(const Var& x, const Pieces::Padded& block) {
  const int64_t B = x.size(0), n = B * x.size(1);
  Shape shape = x.shape();
  shape[1] = block.count;
  return reshape(rows_or_zeros(reshape(x, {n, x.value().num_elements() / n}), block.tokens), shape);
}

// Positions and documents of the tokens that `numbers` [B, count] names among those of `all`; padding for -1.
ops::AttentionTokens tokens_of(const ops::AttentionTokens& all, std::span<const int32_t> numbers, int64_t rows) {
  NoGrad no_grad;
  const auto count = static_cast<int64_t>(numbers.size()) / rows;
  auto taken = [&](const Tensor& x) {
    Var column = reshape(cast(Var(x), kF64), {x.num_elements(), 1});
    return reshape(rows_or_zeros(column, numbers), {rows, count});
  };
  std::vector<int32_t> padding;
  for (int32_t number : numbers) padding.push_back(number >= 0 ? 0 : -1);
  Var documents = cast(Var(on_device_of(all.positions, padding, {rows, count})), kF64);
  if (all.documents.defined()) documents = documents + taken(all.documents);
  auto whole = [](const Var& x) { return cast(x, kI32).value(); };
  return {whole(taken(all.positions)), whole(documents)};
}

// What a dry run assumes: blocks in turn, of those up to the query's own.
std::vector<float> any_choice(const Shape& shape_BTGN, int64_t num_keys, int64_t length, int64_t num_blocks) {
  const int64_t T = shape_BTGN[1], G = shape_BTGN[2], N = shape_BTGN[3];
  std::vector<float> chosen;
  for (int64_t q = 0; q < shape_BTGN[0] * T * G; ++q) {
    const int64_t last = num_keys - T + q / G % T, seen = std::clamp<int64_t>(last / length + 1, 1, num_blocks);
    for (int64_t n = 0; n < N; ++n) chosen.push_back(n < seen ? static_cast<float>((q + n) % seen) : -1.0f);
  }
  return chosen;
}

ops::AttentionOptions causal_in_documents() {
  ops::AttentionOptions options;
  options.mask.same_document = true;
  return options;
}

// With documents, also where the tokens have none.
ops::AttentionTokens with_documents(ops::AttentionTokens tokens) {
  if (!tokens.documents.defined())
    tokens.documents = Tensor::zeros(tokens.positions.shape(), kI32, tokens.positions.device());
  return tokens;
}

}  // namespace

Tensor choose_blocks(const Var& q_BTHK, const Var& k_BSGK, const Var& lse_BTH, const AllTokens& all, int64_t length,
                     int64_t most) {
  NoGrad no_grad;
  const int64_t B = q_BTHK.size(0), T = q_BTHK.size(1), H = q_BTHK.size(2), G = k_BSGK.size(2);
  const Pieces blocks = all.pieces(length);
  std::vector<Var> of_blocks;  // log of the largest weight, [B, T, G]
  for (int64_t i = 0; i < blocks.most(); ++i) {
    const Pieces::Padded block = blocks.padded(i);
    Var score_BTH = attention_statistics(q_BTHK, of_tokens(k_BSGK, block), lse_BTH, with_documents(all.queries),
                                         tokens_of(all.keys, block.tokens, B), causal_in_documents())
                        .max_score;
    Var weight = where(less(score_BTH, kUnseen), kUnseen, score_BTH - cast(lse_BTH, kF32));
    of_blocks.push_back(max(reshape(weight, {B, T, G, H / G}), -1));
  }
  const int64_t count = std::min(most, blocks.most());
  if (count == 0) return Tensor::zeros({B, T, G, 0}, kF32, q_BTHK.device());
  auto [values, indices] = topk(stack(of_blocks, -1), count);
  return where(less_equal(values, kUnseen), -1, cast(Var(indices), kF32)).value();
}

Tensor blocks_of_keys(const AllTokens& all, int64_t length) {
  const Shape shape{all.batch(), all.count()};
  std::vector<float> numbers(static_cast<size_t>(shape[0] * shape[1]), -2);
  for (const auto& row : all.pieces(length).rows)
    for (size_t i = 0; i < row.size(); ++i)
      for (int32_t token : row[i].tokens) numbers[static_cast<size_t>(token)] = static_cast<float>(i);
  return to(Tensor::from(std::span<const float>(numbers), shape), all.keys.positions.device()).value();
}

std::array<Var, 2> attend_blocks(const Var& q_BTHK, const Var& k_BSGK, const Var& v_BSGK, const Tensor& blocks_BTGN,
                                 const AllTokens& all, int64_t length) {
  const int64_t B = q_BTHK.size(0), T = q_BTHK.size(1), H = q_BTHK.size(2), K = q_BTHK.size(3), G = k_BSGK.size(2),
                each = H / G, N = blocks_BTGN.size(3);
  const DType wide = q_BTHK.dtype() == kF64 ? kF64 : kF32;
  const Pieces blocks = all.pieces(length);
  const std::vector<float> chosen =
      is_dry_run() ? any_choice({B, T, G, N}, all.count(), length, blocks.most()) : blocks_BTGN.to_vector<float>();

  const Var queries_NC = reshape(q_BTHK, {B * T * G, each * K});  // number (b T + t) G + g
  const Var keys_NC = reshape(k_BSGK, {B * all.count() * G, K}), values_NC = reshape(v_BSGK, {B * all.count() * G, K});
  const std::vector<int32_t> places_of_queries = on_cpu(all.queries.positions),
                             places_of_keys = on_cpu(all.keys.positions);
  // Which of the choices are of each block, row by row and group by group.
  std::vector<std::vector<size_t>> asked(static_cast<size_t>(B * G * blocks.most()));
  for (size_t c = 0; c < chosen.size(); ++c) {
    if (chosen[c] < 0) continue;
    WEFT_CHECK(chosen[c] < static_cast<float>(blocks.most()),
               str("attend_blocks: block ", chosen[c], " of ", blocks.most(), " blocks of ", length, " tokens"),
               "choose blocks of the same tokens, cut to the same length");
    const int64_t number = static_cast<int64_t>(c) / N, row = number / (T * G) * G + number % G;
    asked[static_cast<size_t>(row * blocks.most() + static_cast<int64_t>(chosen[c]))].push_back(c);
  }
  std::vector<Var> outs, sums;
  std::vector<int32_t> places(chosen.size(), -1);  // of each query's results among those of all blocks
  int32_t num_done = 0;
  for (size_t i = 0; i < asked.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i) / blocks.most();
    const auto g = static_cast<int32_t>(row % G);
    const auto& of_row = blocks.rows[static_cast<size_t>(row / G)];
    const size_t block = i % static_cast<size_t>(blocks.most());
    if (asked[i].empty() || block >= of_row.size()) continue;
    // A block is of one document, and so are the queries that chose it: causality is all that is left of the mask.
    std::vector<int32_t> queries, query_positions, keys, key_positions;
    for (size_t c : asked[i]) {
      const auto number = static_cast<int32_t>(static_cast<int64_t>(c) / N);
      queries.push_back(number);
      query_positions.push_back(places_of_queries[static_cast<size_t>(number / static_cast<int32_t>(G))]);
      places[c] = num_done++;
    }
    for (int32_t token : of_row[block].tokens) {
      keys.push_back(token * static_cast<int32_t>(G) + g);
      key_positions.push_back(places_of_keys[static_cast<size_t>(token)]);
    }
    const auto num_queries = static_cast<int64_t>(queries.size()), num_keys = static_cast<int64_t>(keys.size());
    auto [out, lse] = attend(reshape(rows_or_zeros(queries_NC, queries), {1, num_queries, each, K}),
                             reshape(rows_or_zeros(keys_NC, keys), {1, num_keys, 1, K}),
                             reshape(rows_or_zeros(values_NC, keys), {1, num_keys, 1, K}),
                             {on_device_of(all.queries.positions, query_positions, {1, num_queries}), {}},
                             {on_device_of(all.queries.positions, key_positions, {1, num_keys}), {}}, {});
    outs.push_back(reshape(cast(out, wide), {num_queries, each * K}));
    sums.push_back(reshape(lse, {num_queries, each}));
  }
  // A query that chose fewer blocks, or none, has others of weight 0.
  outs.push_back(Tensor::zeros({1, each * K}, wide, q_BTHK.device()));
  sums.push_back(Tensor::full({1, each}, kUnseen, wide, q_BTHK.device()));
  for (int32_t& place : places)
    if (place < 0) place = num_done;
  const Tensor index = on_device_of(q_BTHK.value(), places, {static_cast<int64_t>(places.size())});
  Var out = reshape(take_rows(concatenate(outs, 0), index), {B, T, G, N, each, K});
  Var lse = reshape(take_rows(concatenate(sums, 0), index), {B, T, G, N, each});
  Var total_BTGR = logsumexp(lse, 3);
  Var merged = sum(out * unsqueeze(exp(lse - unsqueeze(total_BTGR, 3)), -1), 3);
  return {reshape(merged, {B, T, H, K}), reshape(total_BTGR, {B, T, H})};
}

}  // namespace weft::hybrid
