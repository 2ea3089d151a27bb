#include "src/training/gradient_plan.h"

#include <algorithm>
#include <numeric>

namespace weft {

std::vector<Bucket> plan_buckets(std::span<const Tensor> params, int64_t bytes) {
  std::vector<Bucket> buckets;
  int64_t filled = bytes;
  for (size_t i = params.size(); i-- > 0;) {
    const bool fits = filled < bytes && params[i].dtype() == params[buckets.back().params[0]].dtype();
    if (!fits) buckets.emplace_back(), filled = 0;
    buckets.back().params.push_back(i);
    filled += static_cast<int64_t>(params[i].num_bytes());
  }
  return buckets;
}

namespace {

// The rank of each parameter that stays whole: the most costly first, each to the rank that has the least.
std::vector<size_t> balanced_owners(std::span<const double> costs, int ranks) {
  std::vector<size_t> order(costs.size()), owners(costs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return costs[a] > costs[b]; });
  std::vector<double> loads(static_cast<size_t>(ranks));
  for (size_t i : order) {
    if (costs[i] <= 0) break;
    owners[i] = static_cast<size_t>(std::min_element(loads.begin(), loads.end()) - loads.begin());
    loads[owners[i]] += costs[i];
  }
  return owners;
}

}  // namespace

void share_out(std::vector<Bucket>& buckets, std::span<const Tensor> params, std::span<const double> whole_costs,
               int ranks) {
  const std::vector<size_t> owners = balanced_owners(whole_costs, ranks);
  for (Bucket& bucket : buckets) {
    bucket.parts.assign(static_cast<size_t>(ranks), {});
    int64_t total = 0;  // of what is cut
    for (size_t i : bucket.params)
      if (whole_costs[i] > 0) bucket.parts[owners[i]].push_back({i, 0, params[i].num_elements()});
      else total += params[i].num_elements();
    int64_t before = 0;
    for (size_t i : bucket.params) {
      if (whole_costs[i] > 0) continue;
      const int64_t count = params[i].num_elements();
      for (int r = 0; r < ranks; ++r) {
        const int64_t begin = std::max(total * r / ranks - before, int64_t{0});
        const int64_t end = std::min(total * (r + 1) / ranks - before, count);
        if (begin < end) bucket.parts[static_cast<size_t>(r)].push_back({i, begin, end});
      }
      before += count;
    }
  }
}

int64_t num_elements(std::span<const Part> parts) {
  int64_t count = 0;
  for (const Part& part : parts) count += part.end - part.begin;
  return count;
}

Tensor part_of(const Tensor& whole, const Part& part) { return whole.reshape({-1}).slice(0, part.begin, part.end); }

}  // namespace weft
