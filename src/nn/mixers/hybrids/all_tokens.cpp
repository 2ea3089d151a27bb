#include "src/nn/mixers/hybrids/all_tokens.h"

#include <cmath>

#include "weft/core/dry_run.h"

namespace weft::hybrid {

AllTokens all_tokens(const Tokens& tokens) {
  AllTokens all{.keys = {tokens.gathered_positions(), tokens.gathered_documents()},
                .queries = {tokens.document_positions(), tokens.documents()},
                .places = {}};
  const auto B = static_cast<size_t>(tokens.batch()), T = static_cast<size_t>(tokens.num_tokens());
  const auto S = static_cast<size_t>(all.count());
  const std::span<const int32_t> places = tokens.gathered_places();
  for (size_t b = 0; b < B; ++b)
    for (size_t t = 0; t < T; ++t) {
      const size_t place = places.empty() ? S - T + t : static_cast<size_t>(places[b * T + t]);
      all.places.push_back(static_cast<int32_t>(b * S + place));
    }
  return all;
}

Var AllTokens::here(const Var& x_BS) const {
  Shape shape = x_BS.shape();
  const int64_t n = shape[0] * shape[1];
  shape[1] = queries.positions.size(1);
  Var rows = reshape(x_BS, {n, x_BS.value().num_elements() / std::max<int64_t>(n, 1)});
  return reshape(take_rows(rows, on_device_of(keys.positions, places, {static_cast<int64_t>(places.size())})), shape);
}

Pieces AllTokens::pieces(int64_t length) const {
  const bool has_documents = keys.documents.defined() && !is_dry_run();
  return pieces_of(batch(), on_cpu(keys.positions),
                   has_documents ? keys.documents.to_vector<int32_t>() : std::vector<int32_t>(), length);
}

Tensor AllTokens::distances(int64_t begin, int64_t end) const {
  NoGrad no_grad;
  const Var of_queries = queries.positions.slice(1, begin, end).unsqueeze(1).unsqueeze(3);
  return (of_queries - Var(keys.positions.unsqueeze(1).unsqueeze(2))).value();
}

ops::AttentionOptions AllTokens::options(int64_t window) const {
  return {.mask = {.window = window, .same_document = keys.documents.defined()}};
}

Tensor plus(const Tensor& positions, int64_t number) {
  return (Var(positions) - Var(Tensor::full({}, -static_cast<double>(number), kI32, positions.device()))).value();
}

std::vector<int32_t> on_cpu(const Tensor& positions_BS) {
  if (!is_dry_run()) return positions_BS.to_vector<int32_t>();
  std::vector<int32_t> numbers;
  const int64_t S = positions_BS.size(1);
  for (int64_t i = 0; i < positions_BS.num_elements(); ++i) numbers.push_back(static_cast<int32_t>(i % S));
  return numbers;
}

Tensor on_device_of(const Tensor& like, std::span<const int32_t> numbers, const Shape& shape) {
  return to(Tensor::from(numbers, shape), like.device()).value();
}

Var one_hot(const Var& logits) {
  Var soft = softmax(logits);
  const int64_t last = logits.num_dims() - 1;
  Var ones = Tensor::full(soft.shape(), 1, soft.dtype(), soft.device());
  Var hard = scatter_add(soft.shape(), last, argmax(logits, last).unsqueeze(-1), slice(ones, last, 0, 1));
  return hard + (soft - soft.detach());
}

float gumbel(float uniform) { return static_cast<float>(-std::log(-std::log(static_cast<double>(uniform) + 0x1p-25))); }

float gumbel(const Rng& rng, uint64_t index) { return gumbel(rng.uniform(index)); }

Var gumbel_noise(const Tokens& tokens, int64_t count, DType dtype, Rng rng) {
  const int64_t B = tokens.batch(), T = tokens.num_tokens();
  Tensor noise = Tensor::zeros({B, T, count}, kF32, Device::cpu());
  const std::span<const int32_t> positions = is_dry_run() ? std::span<const int32_t>() : tokens.cpu_positions();
  for (size_t i = 0; i < positions.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / T;
    const Rng of_row = rng[static_cast<uint64_t>(tokens.first_row() + row)];
    const auto first = static_cast<uint64_t>(positions[i]) * static_cast<uint64_t>(count);
    for (int64_t c = 0; c < count; ++c)
      noise.mutable_data<float>()[static_cast<int64_t>(i) * count + c] =
          gumbel(of_row, first + static_cast<uint64_t>(c));
  }
  return cast(to(noise, tokens.positions().device()), dtype);
}

}  // namespace weft::hybrid
