#include "tools/bench/step_shares.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tools/bench/bench.h"
#include "weft/core/stream.h"

namespace weft::bench {

StepShares step_shares(std::span<const SelfTime> times, double step_us) {
  StepShares us;
  for (const SelfTime& time : times) {
    const bool is_product = time.name.ends_with(" matmul");
    if (time.name.starts_with("update")) (is_product ? us.update_products : us.update) += time.us;
    else if (is_product) us.products += time.us;
    else if (time.name.ends_with(" attention")) us.attention += time.us;
  }
  auto percent = [&](double of) { return 100 * of / step_us; };
  return {.products = percent(us.products),
          .attention = percent(us.attention),
          .update_products = percent(us.update_products),
          .other = percent(step_us - us.products - us.attention - us.update_products),
          .update = percent(us.update)};
}

StepShares measured_shares(TrainingStep& step, int steps) {
  std::vector<std::pair<double, StepShares>> all;
  for (int i = 0; i < steps; ++i) {
    Profile profile(default_device());
    const double begin = now_s();
    step.run();
    synchronize(default_device());
    const double us = 1e6 * (now_s() - begin);
    all.emplace_back(us, step_shares(self_times(profile.finish()), us));
  }
  auto is_shorter = [](const auto& a, const auto& b) { return a.first < b.first; };
  std::sort(all.begin(), all.end(), is_shorter);
  return all[all.size() / 2].second;
}

}  // namespace weft::bench
