#include "weft/nn/token_table.h"

#include "src/nn/mixing/runs.h"
#include "weft/autograd/functions.h"
#include "weft/core/error.h"

namespace weft {

struct TokenTable::Rotary {
  int64_t head_width;
  ops::RotaryOptions options;
  ops::RotaryTable table;
};

TokenData plain_tokens(int64_t batch, int64_t num_tokens, int64_t first_position) {
  Tensor positions = Tensor::empty({batch, num_tokens}, kI32, Device::cpu());
  auto* p = positions.mutable_data<int32_t>();
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < num_tokens; ++t) p[b * num_tokens + t] = static_cast<int32_t>(first_position + t);
  return {to(positions, default_device()).value(), {}, {}, 0, true};
}

bool are_consecutive(const Tensor& positions_BT) {
  const auto p = positions_BT.to_vector<int32_t>();
  const auto T = static_cast<size_t>(positions_BT.size(1));
  for (size_t i = 1; i < p.size(); ++i)
    if (i % T != 0 && p[i] != p[i - 1] + 1) return false;
  return true;
}

TokenTable::TokenTable(TokenData data) : data_(std::move(data)) {
  auto check = [&](const Tensor& t, std::string_view what) {
    WEFT_CHECK(!t.defined() || (t.num_dims() == 2 && t.dtype() == kI32 && t.shape() == data_.positions.shape()),
               str("Tokens: ", what, " is ", t, ", positions are ", data_.positions),
               "give i32 tensors of one shape [B, T]");
  };
  WEFT_CHECK(data_.positions.defined(), "Tokens: no positions", "start from plain_tokens(batch, num_tokens)");
  check(data_.positions, "positions");
  check(data_.documents, "documents");
  check(data_.document_positions, "document_positions");
  check(data_.cpu_positions, "cpu_positions");
  check(data_.cpu_documents, "cpu_documents");
  check(data_.cpu_document_positions, "cpu_document_positions");
  attention_tokens_ = ops::with_plans({data_.positions, data_.documents, data_.are_consecutive});
}

TokenTable::~TokenTable() = default;

const Tensor& TokenTable::document_positions() const {
  return data_.document_positions.defined() ? data_.document_positions : data_.positions;
}

static std::span<const int32_t> fetched(std::vector<int32_t>& kept, const Tensor& on_cpu, const Tensor& there) {
  const Tensor& from = on_cpu.defined() ? on_cpu : there;
  if (kept.empty() && from.defined()) kept = from.to_vector<int32_t>();
  return kept;
}

std::span<const int32_t> TokenTable::cpu_positions() const {
  return fetched(cpu_positions_, data_.cpu_positions, data_.positions);
}

std::span<const int32_t> TokenTable::cpu_documents() const {
  if (!data_.documents.defined()) return {};
  return fetched(cpu_documents_, data_.cpu_documents, data_.documents);
}

std::span<const int32_t> TokenTable::cpu_document_positions() const {
  if (!data_.document_positions.defined()) return cpu_positions();
  return fetched(cpu_document_positions_, data_.cpu_document_positions, data_.document_positions);
}

const Runs& TokenTable::runs() const {
  if (!runs_) runs_ = std::make_unique<Runs>(batch(), num_tokens(), cpu_positions(), cpu_documents());
  return *runs_;
}

const Runs* TokenTable::other_order() const {
  return data_.are_consecutive || runs().are_in_order() ? nullptr : &runs();
}

Tensor TokenTable::counted() const {
  if (!has_padding()) return Tensor::full({batch(), num_tokens()}, 1, kBool, data_.positions.device());
  auto number = [&](double x) { return Var(Tensor::full({}, x, kI32, data_.documents.device())); };
  return cast(maximum(Var(data_.documents) - number(-1), number(0)), kBool).value();
}

Var TokenTable::sum_here(const Var& x, Over over) const {
  const int both[] = {0, 1}, tokens[] = {1};
  const std::span<const int> dims = over == Over::row ? std::span<const int>(tokens) : std::span<const int>(both);
  if (!has_padding()) return sum(x, dims);
  Tensor mask = counted();
  for (int i = 2; i < x.num_dims(); ++i) mask = mask.unsqueeze(-1);
  return sum(where(mask.expand(x.shape()), x, Tensor::zeros({}, x.dtype(), x.device())), dims);
}

const ops::RotaryTable& TokenTable::rotary_table(int64_t head_width, const ops::RotaryOptions& options) {
  for (const auto& entry : rotary_)
    if (entry->head_width == head_width && entry->options == options) return entry->table;
  rotary_.push_back(std::make_unique<Rotary>(
      Rotary{head_width, options, make_rotary_table(document_positions(), head_width, options)}));
  return rotary_.back()->table;
}

}  // namespace weft
