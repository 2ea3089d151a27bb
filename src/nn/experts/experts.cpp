// N tokens, K choices per token, E experts, C input and O output width.
#include "src/nn/experts/experts.h"

#include "weft/core/error.h"

namespace weft {

std::string shared_experts(std::string_view block, std::string_view what) { return str("umoe.", block, ".", what); }

ExpertOrder order_by_expert(const Tensor& chosen_NK, int64_t experts) {
  auto chosen = cast(Var(chosen_NK), kI32).value().to_vector<int32_t>();
  ExpertOrder order;
  order.begins.assign(static_cast<size_t>(experts) + 1, 0);
  for (int32_t e : chosen) ++order.begins[static_cast<size_t>(e) + 1];
  for (size_t e = 0; e < static_cast<size_t>(experts); ++e) order.begins[e + 1] += order.begins[e];
  const auto count = static_cast<int64_t>(chosen.size());
  Tensor slots = Tensor::empty({count}, kI32, Device::cpu()), places = Tensor::empty({count}, kI32, Device::cpu());
  std::vector<int64_t> next(order.begins.begin(), order.begins.end() - 1);
  for (int64_t slot = 0; slot < count; ++slot) {
    int64_t place = next[static_cast<size_t>(chosen[static_cast<size_t>(slot)])]++;
    slots.mutable_data<int32_t>()[place] = static_cast<int32_t>(slot);
    places.mutable_data<int32_t>()[slot] = static_cast<int32_t>(place);
  }
  order.slots = to(slots, chosen_NK.device()).value();
  order.places = to(places, chosen_NK.device()).value();
  return order;
}

Var run_experts(const Var& x, const Tensor& chosen_NK, int64_t experts, bool is_dense, const Expert& expert) {
  const int64_t N = chosen_NK.size(0), K = chosen_NK.size(1), C = x.size(-1);
  Var rows = x.num_dims() == 3 ? reshape(x, {N * K, C}) : reshape(expand(unsqueeze(x, 1), {N, K, C}), {N * K, C});
  std::vector<Var> parts;
  if (is_dense) {
    for (int64_t e = 0; e < experts; ++e) parts.push_back(unsqueeze(expert(e, rows), 1));
    Var all_MEO = concatenate(parts, 1);
    const int64_t O = all_MEO.size(2);
    Tensor index = chosen_NK.reshape({N * K, 1, 1}).expand({N * K, 1, O});
    return reshape(gather(all_MEO, 1, index), {N, K, O});
  }
  ExpertOrder order = order_by_expert(chosen_NK, experts);
  Var sorted = take_rows(rows, order.slots);
  for (int64_t e = 0; e < experts; ++e) {
    int64_t begin = order.begins[static_cast<size_t>(e)], end = order.begins[static_cast<size_t>(e) + 1];
    if (begin < end) parts.push_back(expert(e, slice(sorted, 0, begin, end)));
  }
  Var made = concatenate(parts, 0);
  return reshape(take_rows(made, order.places), {N, K, made.size(-1)});
}

}  // namespace weft
