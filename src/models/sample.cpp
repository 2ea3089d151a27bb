#include "weft/models/sample.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "weft/comm/communicator.h"
#include "weft/core/error.h"
#include "weft/nn/context_group.h"

namespace weft {

int32_t draw(std::span<const float> logits, double temperature, double top_p, double uniform) {
  WEFT_CHECK(std::none_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x); }),
             str("draw: logits of ", logits.size(), " ids hold NaN"), "the model's weights are damaged or diverged");
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  auto more_likely = [&](int32_t a, int32_t b) {
    float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  if (temperature <= 0) return *std::min_element(order.begin(), order.end(), more_likely);
  std::sort(order.begin(), order.end(), more_likely);
  std::vector<double> mass(order.size());
  double top = static_cast<double>(logits[static_cast<size_t>(order[0])]), sum = 0;
  for (size_t i = 0; i < order.size(); ++i)
    sum += mass[i] = std::exp((static_cast<double>(logits[static_cast<size_t>(order[i])]) - top) / temperature);
  size_t kept = 0;
  double kept_mass = 0;
  while (kept < order.size() && (kept == 0 || kept_mass < top_p * sum)) kept_mass += mass[kept++];
  double left = uniform * kept_mass;
  for (size_t i = 0; i < kept; ++i)
    if ((left -= mass[i]) < 0) return order[i];
  return order[kept - 1];
}

namespace {

// Else ranks would wait for each other, or mix the keys of several texts.
void check_same(std::span<const int32_t> prompt, const SampleOptions& o, dist::Communicator& ranks, Device device) {
  Rng all = Rng(o.seed)[std::bit_cast<uint64_t>(o.temperature)][std::bit_cast<uint64_t>(o.top_p)];
  for (int64_t x : {o.tokens, o.vocab, int64_t{o.end_of_text.value_or(-1)}, int64_t{o.first_token.value_or(-1)}})
    all = all[static_cast<uint64_t>(x)];
  for (int32_t id : prompt) all = all[static_cast<uint64_t>(id)];
  const auto halves = std::bit_cast<std::array<int32_t, 2>>(all.key());
  const Tensor mine = to(Tensor::from(std::span<const int32_t>(halves), {2}), device).value();
  const std::vector<int32_t> of_ranks = ranks.all_gather(mine).cpu().to_vector<int32_t>();
  for (size_t i = 2; i < of_ranks.size(); ++i)
    WEFT_CHECK(of_ranks[i] == of_ranks[i % 2],
               str("sample: rank ", i / 2, " has another prompt or other options than rank 0"),
               "call it with the same on every rank");
}

// On all ranks the first one's: logits of other processors or numbers of threads are other bits.
int32_t agreed(int32_t id, dist::Communicator* ranks, Device device) {
  if (!ranks) return id;
  Tensor first = to(Tensor::from({id}, {1}), device).value();
  ranks->broadcast(first, 0);
  return first.cpu().to_vector<int32_t>()[0];
}

}  // namespace

bool forgets_beyond_context(LanguageModel& model) {
  if (model.options().position == PositionKind::learned) return true;
  NoGrad no_grad;
  const std::shared_ptr<Cache> cache = make_cache(1, 1);
  Tokens tokens(plain_tokens(1, 1), {.cache = cache});
  model.hidden(Tensor::zeros({1, 1}, kI32, tokens.positions().device()), tokens);
  return keeps_all_tokens(*cache);
}

std::vector<int32_t> sample(LanguageModel& model, std::span<const int32_t> prompt, const SampleOptions& options) {
  WEFT_CHECK(!prompt.empty(), "sample: the prompt has no tokens", "give at least one");
  WEFT_CHECK(options.temperature >= 0 && options.top_p > 0 && options.top_p <= 1 && options.tokens >= 0,
             str("sample: temperature ", options.temperature, ", top_p ", options.top_p, ", tokens ", options.tokens),
             "temperature and tokens are 0 or more, top_p lies in (0, 1]");
  WEFT_CHECK(!options.first_token || model.options().context >= 2, "sample: a first token in a context of 1",
             "a context of at least 2 tokens has room for another");
  NoGrad no_grad;
  int64_t context = model.options().context, vocab = options.vocab ? options.vocab : model.options().vocab;
  WEFT_CHECK(vocab > 0 && vocab <= model.options().vocab,
             str("sample: vocab ", vocab, " of a model with ", model.options().vocab, " ids"),
             "give at most the model's, or 0 for all of it");
  Rng rng = Rng(options.seed)["sample"];
  std::vector<int32_t> ids(prompt.begin(), prompt.end()), fresh, made;
  auto restart = [&](int64_t most) {  // reads at most that many of the last ids anew
    const int64_t extra = options.first_token ? 1 : 0;
    fresh.assign(ids.end() - std::min(static_cast<int64_t>(ids.size()), std::max<int64_t>(most - extra, 1)), ids.end());
    if (extra) fresh.insert(fresh.begin(), *options.first_token);
  };
  if (options.ranks) check_same(prompt, options, *options.ranks, default_device());
  const bool is_bounded = forgets_beyond_context(model);
  restart(is_bounded ? context : std::numeric_limits<int64_t>::max());
  auto new_cache = [&] {
    const int64_t most = is_bounded ? context : 0;
    return options.ranks ? make_cache(1, most, *options.ranks) : make_cache(1, most);
  };
  std::shared_ptr<Cache> cache = new_cache();
  for (int64_t i = 0; i < options.tokens; ++i) {
    int64_t seen = cached_tokens(*cache), count = static_cast<int64_t>(fresh.size());
    if (is_bounded && seen + count > context) {
      cache = new_cache();
      seen = 0;
      restart(context / 2);
      count = static_cast<int64_t>(fresh.size());
    }
    Tokens tokens(plain_tokens(1, count, seen), {.cache = cache});
    Tensor fresh_ids =
        to(Tensor::from(std::span<const int32_t>(fresh), {1, count}), tokens.positions().device()).value();
    const Var last = slice(model.hidden(fresh_ids, tokens), 1, count - 1, count);
    Tensor logits = cast(model.output(last), kF32).value().cpu();
    int32_t id = draw({logits.data<float>(), static_cast<size_t>(vocab)}, options.temperature, options.top_p,
                      static_cast<double>(rng.uniform(static_cast<uint64_t>(i))));
    id = agreed(id, options.ranks, fresh_ids.device());
    if (options.end_of_text && id == *options.end_of_text) break;
    made.push_back(id);
    ids.push_back(id);
    fresh.assign(1, id);
  }
  return made;
}

}  // namespace weft
