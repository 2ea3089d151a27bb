#include "src/nn/mixing/any_order.h"

#include <algorithm>

#include "weft/autograd/functions.h"
#include "weft/core/error.h"

namespace weft {

namespace {

Tensor on_device_of(const Var& x, std::span<const int32_t> numbers, const Shape& shape) {
  return to(Tensor::from(numbers, shape), x.device()).value();
}

// [B, T, ...] -> [B T, channels]
Var flat(const Var& x) {
  const int64_t n = x.size(0) * x.size(1);
  return reshape(x, {n, n > 0 ? x.value().num_elements() / n : 1});
}

// A running sum within each run, then what earlier runs of the document add up to.
Var scan_all(const Var& x, const Runs& runs) {
  const std::vector<int32_t> run_of = runs.run_of_tokens();
  std::vector<int32_t> last, document;
  for (const Run& run : runs.all()) {
    const Run* before = last.empty() ? nullptr : &run - 1;
    const bool continues = before && before->row == run.row && before->document == run.document && run.document >= 0;
    document.push_back(document.empty() ? 0 : document.back() + (continues ? 0 : 1));
    last.push_back(static_cast<int32_t>(run.end - 1));
  }
  const auto n = static_cast<int64_t>(run_of.size()), num_runs = static_cast<int64_t>(last.size());
  Var within = cumsum(flat(x), 0, {.segments = on_device_of(x, run_of, {n})});
  Var totals = take_rows(within, on_device_of(x, last, {num_runs}));
  Var earlier = cumsum(totals, 0, {.exclusive = true, .segments = on_device_of(x, document, {num_runs})});
  return reshape(within + take_rows(earlier, on_device_of(x, run_of, {n})), x.shape());
}

// Sums of 1, 2, 4, ... tokens, each of two of the one before; those of the window's binary digits side by side.
Var scan_window(const Var& x, const Runs& runs, int64_t window) {
  WEFT_CHECK(!runs.have_gaps(), "scan: a window over a document of which tokens are missing here",
             "hand over all tokens of a document");
  window = std::min(window, std::max<int64_t>(x.size(1), 1));
  Var block = x, sum;
  int64_t behind = 0;
  for (int64_t size = 1;; size *= 2) {
    if (window & size) {
      Var part = shift_in_runs(block, runs, behind);
      sum = sum.defined() ? sum + part : part;
      behind += size;
    }
    if (2 * size > window) return sum;
    block = block + shift_in_runs(block, runs, size);
  }
}

}  // namespace

Var take_tokens(const Var& x, std::span<const int32_t> which) {
  const auto count = static_cast<int64_t>(which.size());
  Var taken = take_rows(flat(x), on_device_of(x, which, {count}));
  if (count == x.size(0) * x.size(1)) return reshape(taken, x.shape());
  Shape shape = x.shape();
  shape[0] = 1, shape[1] = count;
  return reshape(taken, shape);
}

Var scan_in_runs(const Var& x, const Runs& runs, int64_t window) {
  return window > 0 ? scan_window(x, runs, window) : scan_all(x, runs);
}

Var shift_in_runs(const Var& x, const Runs& runs, int64_t n) {
  if (n == 0) return x;
  std::vector<int32_t> from = runs.tokens_before(n), is_there;
  for (int32_t& i : from) {
    is_there.push_back(i >= 0);
    i = std::max(i, 0);
  }
  const auto count = static_cast<int64_t>(from.size());
  Var taken = take_rows(flat(x), on_device_of(x, from, {count}));
  Tensor mask = cast(Var(on_device_of(x, is_there, {count, 1})), kBool).value().expand(taken.shape());
  return reshape(where(mask, taken, Tensor::zeros({}, x.dtype(), x.device())), x.shape());
}

}  // namespace weft
