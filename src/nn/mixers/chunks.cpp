#include "src/nn/mixers/chunks.h"

#include <algorithm>

#include "weft/core/dry_run.h"
#include "weft/core/error.h"

namespace weft {

void check_chunk(std::string_view what, int64_t length) {
  constexpr int64_t kMost = int64_t{1} << 30;
  WEFT_CHECK(length <= kMost, str(what, " ", length), str("use at most ", kMost));
}

ChunkPlaces chunk_places(Tokens& tokens, int64_t chunk, int64_t window) {
  NoGrad no_grad;
  const int64_t B = tokens.batch(), T = tokens.num_tokens();
  ChunkPlaces places{.batch = B, .num_tokens = 0, .chunk = chunk};
  Var documents;
  if (tokens.documents().defined()) {
    const Var of_tokens[] = {unsqueeze(cast(Var(tokens.documents()), kF64), -1)};
    documents = tokens.gather(of_tokens, window)[0];
  }
  const Tensor positions = tokens.gathered_positions(window);
  const int64_t S = places.num_tokens = positions.size(1);
  if (is_dry_run()) {
    places.documents.assign(static_cast<size_t>(B * S), 0);
    for (int64_t i = 0; i < B * S; ++i) places.positions.push_back(static_cast<int32_t>(i % S));
  } else {
    places.positions = positions.cpu().to_vector<int32_t>();
    places.documents = documents.defined() ? cast(reshape(documents, {B, S}), kI32).value().cpu().to_vector<int32_t>()
                                           : std::vector<int32_t>(places.positions.size(), 0);
  }
  const std::span<const int32_t> here = tokens.gathered_places(window);
  places.here.assign(here.begin(), here.end());
  if (here.empty())
    for (int64_t i = 0; i < B * T; ++i) places.here.push_back(static_cast<int32_t>(S - T + i % T));
  return places;
}

Tensor numbers_on(Device device, const std::vector<int32_t>& numbers, const Shape& shape) {
  Tensor all = Tensor::empty(shape, kI32, Device::cpu());
  if (!is_dry_run()) std::copy(numbers.begin(), numbers.end(), all.mutable_data<int32_t>());
  return to(all, device).value();
}

Tensor truths_on(Device device, const std::vector<uint8_t>& truths, const Shape& shape) {
  Tensor all = Tensor::empty(shape, kBool, Device::cpu());
  if (!is_dry_run()) std::copy(truths.begin(), truths.end(), all.mutable_data<bool>());
  return to(all, device).value();
}

Var take_or_zero(const Var& x, const std::vector<int32_t>& index) {
  const int64_t width = x.size(-1), rows = x.value().num_elements() / width;
  const Var with_zero[] = {reshape(x, {rows, width}), Tensor::zeros({1, width}, x.dtype(), x.device())};
  std::vector<int32_t> numbers = index;
  for (int32_t& i : numbers)
    if (i < 0) i = static_cast<int32_t>(rows);
  const Tensor at = numbers_on(x.device(), numbers, {static_cast<int64_t>(numbers.size())});
  return take_rows(concatenate(with_zero, 0), at);
}

}  // namespace weft
