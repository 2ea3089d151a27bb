#include "weft/nn/mixer.h"

#include <algorithm>

namespace weft {

double Mixer::keys_per_query(int64_t context) const { return causal_keys(context); }

double causal_keys(int64_t context, int64_t window) {
  auto n = static_cast<double>(context), w = static_cast<double>(std::min(window > 0 ? window : context, context));
  return (w * (w + 1) / 2 + (n - w) * w) / n;
}

Var split_heads(const Var& x, int64_t heads) { return reshape(x, {x.size(0), x.size(1), heads, x.size(2) / heads}); }
Var merge_heads(const Var& x) { return reshape(x, {x.size(0), x.size(1), x.size(2) * x.size(3)}); }

std::string fixed_sequence_name(int64_t layer) { return str("fixed_sequence.", layer); }

}  // namespace weft
