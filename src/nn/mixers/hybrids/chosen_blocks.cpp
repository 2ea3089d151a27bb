#include "src/nn/mixers/hybrids/chosen_blocks.h"

#include <algorithm>

#include "weft/core/dry_run.h"

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

std::array<Var, 2> attend_blocks(const Var& q_BTHK, const Var& k_BSGK, const Var& v_BSGK, const Tensor& blocks_BTGN,
                                 const AllTokens& all, int64_t length) {
  const int64_t B = q_BTHK.size(0), T = q_BTHK.size(1), H = q_BTHK.size(2), K = q_BTHK.size(3), G = k_BSGK.size(2),
                each = H / G, N = blocks_BTGN.size(3);
  const DType wide = q_BTHK.dtype() == kF64 ? kF64 : kF32;
  const Pieces blocks = all.pieces(length);
  std::vector<float> chosen(static_cast<size_t>(B * T * G * N));
  if (is_dry_run())
    for (size_t i = 0; i < chosen.size(); ++i)
      chosen[i] = static_cast<float>(static_cast<int64_t>(i) % std::max<int64_t>(blocks.most(), 1));
  else chosen = blocks_BTGN.to_vector<float>();

  const Var queries_NC = reshape(q_BTHK, {B * T * G, each * K});  // number (b T + t) G + g
  std::vector<Var> outs, sums;
  std::vector<int32_t> places(chosen.size(), -1);  // of each query's results among those of all blocks
  int32_t num_done = 0;
  for (int64_t i = 0; i < blocks.most(); ++i) {
    // The queries of each row and group that chose this block of their row.
    std::vector<std::vector<int32_t>> which(static_cast<size_t>(B * G));
    std::vector<std::vector<size_t>> asked(which.size());
    size_t longest = 0;
    for (size_t c = 0; c < chosen.size(); ++c) {
      if (static_cast<int64_t>(chosen[c]) != i || chosen[c] < 0) continue;
      const auto number = static_cast<int64_t>(c) / N, row = number / (T * G) * G + number % G;
      auto& of_row = which[static_cast<size_t>(row)];
      of_row.push_back(static_cast<int32_t>(number));
      asked[static_cast<size_t>(row)].push_back(c);
      longest = std::max(longest, of_row.size());
    }
    if (longest == 0) continue;
    std::vector<int32_t> numbers, of_tokens_here;
    for (size_t row = 0; row < which.size(); ++row) {
      for (size_t n = 0; n < longest; ++n) {
        const bool is_one = n < which[row].size();
        numbers.push_back(is_one ? which[row][n] : -1);
        of_tokens_here.push_back(is_one ? which[row][n] / static_cast<int32_t>(G) : -1);
        if (is_one) places[asked[row][n]] = num_done + static_cast<int32_t>(row * longest + n);
      }
    }
    const auto count = static_cast<int64_t>(longest), rows = B * G;
    const Pieces::Padded block = blocks.padded(i);
    auto in_rows = [&](const Var& x_BSGK) {  // [B, n, G, K] -> [B G, n, 1, K]
      Var x = of_tokens(x_BSGK, block);
      return reshape(transpose(x, 1, 2), {rows, block.count, 1, K});
    };
    std::vector<int32_t> of_keys;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t n = 0; n < block.count; ++n)
        of_keys.push_back(block.tokens[static_cast<size_t>(row / G * block.count + n)]);
    auto [out, lse] =
        attend(reshape(rows_or_zeros(queries_NC, numbers), {rows, count, each, K}), in_rows(k_BSGK), in_rows(v_BSGK),
               tokens_of(all.queries, of_tokens_here, rows), tokens_of(all.keys, of_keys, rows), causal_in_documents());
    outs.push_back(reshape(cast(out, wide), {rows * count, each * K}));
    sums.push_back(reshape(lse, {rows * count, each}));
    num_done += static_cast<int32_t>(rows * count);
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
