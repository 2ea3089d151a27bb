// Every token mixer of the library, one row per published point.
#include "weft/core/error.h"
#include "weft/nn/mixers.h"

namespace weft {

namespace {

const std::vector<MixerRow>& rows() {
  static const std::vector<MixerRow> table = {
      {"mha", SoftmaxOptions{.heads = 4}, "softmax(q k^T / sqrt(K)) v", "1706.03762", ""},
      {"gqa", SoftmaxOptions{.heads = 4, .kv_heads = 2}, "mha, groups of heads share k and v", "2305.13245", ""},
      {"mqa", SoftmaxOptions{.heads = 4, .kv_heads = 1}, "mha, all heads share k and v", "1911.02150", ""},
      {"qk_norm", SoftmaxOptions{.heads = 2, .qk_norm = true}, "mha with RMSNorm(q), RMSNorm(k)", "2010.04245", ""},
      {"window",
       SoftmaxOptions{.heads = 2, .window = 3},
       "mha over the last W tokens",
       "2004.05150",
       "T W",
       {},
       MixerRow::Toy::recent},
      {"soft_cap", SoftmaxOptions{.heads = 2, .softcap = 4}, "softmax(cap tanh(s / cap)) v", "2408.00118", ""},
      {"dropout", SoftmaxOptions{.heads = 2, .dropout = 0.2}, "dropout(softmax(s)) v", "1706.03762", ""},
  };
  return table;
}

}  // namespace

std::span<const MixerRow> mixer_table() { return rows(); }

const MixerRow& mixer_row(std::string_view name) {
  std::string names;
  for (const MixerRow& row : rows()) {
    if (row.name == name) return row;
    names += str(names.empty() ? "" : ", ", row.name);
  }
  fail(str("mixer: there is no '", name, "'"), str("choose one of: ", names));
}

}  // namespace weft
