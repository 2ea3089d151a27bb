#include "src/nn/mixing/any_order.h"

#include "weft/autograd/functions.h"

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

}  // namespace

Var take_tokens(const Var& x, std::span<const int32_t> which) {
  const auto count = static_cast<int64_t>(which.size());
  Var taken = take_rows(flat(x), on_device_of(x, which, {count}));
  if (count == x.size(0) * x.size(1)) return reshape(taken, x.shape());
  Shape shape = x.shape();
  shape[0] = 1, shape[1] = count;
  return reshape(taken, shape);
}

// A running sum within each run, then what earlier runs of the document add up to.
Var scan_in_runs(const Var& x, const Runs& runs) {
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

}  // namespace weft
