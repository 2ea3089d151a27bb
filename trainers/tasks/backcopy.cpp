// Bigram-Backcopy (2410.13835). T tokens that the model reads, the first of them the fixed one; R triggers.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "trainers/tasks/observed.h"
#include "trainers/tasks/sinks.h"
#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/models/language_model.h"
#include "weft/ops/elementwise.h"
#include "weft/optim/progress.h"
#include "weft/training/training.h"

namespace weft::tasks {

namespace {

int32_t draw(std::span<const double> chances, double uniform) {
  for (size_t i = 0; i + 1 < chances.size(); ++i)
    if ((uniform -= chances[i]) < 0) return static_cast<int32_t>(i);
  return static_cast<int32_t>(chances.size() - 1);
}

std::span<const double> row_of(const Bigram& bigram, int32_t id) {
  return std::span(bigram.next).subspan(static_cast<size_t>(id * bigram.ids), static_cast<size_t>(bigram.ids));
}

double entropy(std::span<const double> chances) {
  double sum = 0;
  for (double p : chances) sum -= p > 0 ? p * std::log(p) : 0;
  return sum;
}

void normalise(std::span<double> chances) {
  double sum = std::accumulate(chances.begin(), chances.end(), 0.0);
  for (double& p : chances) p /= sum;
}

}  // namespace

Bigram bigram_of_text(const std::string& text) {
  std::vector<double> counts(256, 0.0);
  for (char c : text) ++counts[static_cast<unsigned char>(c)];
  std::vector<size_t> order;
  for (size_t byte = 0; byte < 256; ++byte)
    if (counts[byte] > 0) order.push_back(byte);
  WEFT_CHECK(order.size() > kTriggers, str("bigram: a text of ", order.size(), " different bytes"),
             "give a text with at least four");
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return counts[a] > counts[b]; });
  std::vector<size_t> id_of(256, 0);
  for (size_t i = 0; i < order.size(); ++i) id_of[order[i]] = i;
  const size_t n = order.size();
  Bigram bigram{.ids = static_cast<int64_t>(n), .first = std::vector<double>(n), .next = std::vector<double>(n * n)};
  for (size_t i = 0; i < n; ++i) bigram.first[i] = counts[order[i]];
  for (size_t i = 0; i < text.size(); ++i) {  // as a ring, so that every byte has a successor
    auto from = static_cast<unsigned char>(text[i]), to = static_cast<unsigned char>(text[(i + 1) % text.size()]);
    ++bigram.next[id_of[from] * n + id_of[to]];
  }
  normalise(bigram.first);
  for (size_t i = 0; i < n; ++i) normalise(std::span(bigram.next).subspan(i * n, n));
  return bigram;
}

Bigram random_bigram(int64_t ids, Rng rng) {
  constexpr uint64_t kSuccessors = 8;
  auto n = static_cast<size_t>(ids);
  Bigram bigram{.ids = ids, .first = std::vector<double>(n), .next = std::vector<double>(n * n)};
  for (size_t i = 0; i < n; ++i) bigram.first[i] = 1 / static_cast<double>(i + 1);
  normalise(bigram.first);
  for (size_t i = 0; i < n; ++i) {
    for (uint64_t s = 0; s < kSuccessors; ++s) {
      double uniform = static_cast<double>(rng["successors"].uniform(i * kSuccessors + s));
      bigram.next[i * n + static_cast<size_t>(draw(bigram.first, uniform))] += 1 / static_cast<double>(s + 1);
    }
    normalise(std::span(bigram.next).subspan(i * n, n));
  }
  return bigram;
}

Tensor backcopy_rows(const Bigram& bigram, int64_t first_row, int64_t rows, int64_t tokens, Rng rng) {
  Tensor ids = Tensor::empty({rows, tokens + 1}, kI32, Device::cpu());
  std::vector<double> plain = bigram.first;
  std::fill_n(plain.begin(), kTriggers, 0.0);
  normalise(plain);
  for (int64_t r = 0; r < rows; ++r) {
    Rng own = rng[static_cast<uint64_t>(first_row + r)];
    int32_t* z = ids.mutable_data<int32_t>() + r * (tokens + 1);
    z[0] = static_cast<int32_t>(bigram.ids);
    for (int64_t t = 1; t <= tokens; ++t) {
      auto uniform = static_cast<double>(own.uniform(static_cast<uint64_t>(t)));
      if (t == 1) z[t] = draw(plain, uniform);
      else z[t] = z[t - 1] < kTriggers ? z[t - 2] : draw(row_of(bigram, z[t - 1]), uniform);
    }
  }
  return ids;
}

Figures backcopy(const MixerMaker& mixer, const Bigram& bigram, const Options& options) {
  const int64_t T = options.tokens ? options.tokens : 64, B = options.batch ? options.batch : 64;
  const int64_t steps = options.steps ? options.steps : 2000;
  LanguageModel model({.vocab = bigram.ids + 1,
                       .dim = 64,
                       .layers = options.layers,
                       .context = T,
                       .norm = {NormKind::layer, 1e-5},
                       .position = PositionKind::learned,
                       .mixers = {mixer},
                       .ffn = {.kind = FfnKind::gelu}},
                      Rng(options.seed)["weights"]);
  const AdamWOptions adamw{.lr = options.lr > 0 ? options.lr : 3e-3, .beta2 = 0.99, .weight_decay = 1e-4};
  Training training(model, {.groups = {{.algorithm = adamw}}, .lr_factor = falling(steps), .clip_norm = 1});
  Rng rows = Rng(options.seed)["rows"];
  auto split = [&](const Tensor& ids) {  // what the model reads, and what comes next
    auto on_device = [](const Tensor& t) { return ops::to(ops::contiguous(t), default_device()); };
    return std::pair(on_device(ids.slice(1, 0, T)), on_device(ids.slice(1, 1, T + 1)));
  };
  for (int64_t step = 0; step < steps; ++step) {
    auto [ids, targets] = split(backcopy_rows(bigram, step * B, B, T, rows));
    Tokens tokens(plain_tokens(B, T), {.is_training = true,
                                       .rng = Rng(options.seed)[static_cast<uint64_t>(step)],
                                       .progress = training_progress(step, steps)});
    training.step(
        1, [&](const MicroBatch&) { return model.loss(ids, targets, tokens, 1 / static_cast<double>(B * T)).loss; });
  }

  const int64_t N = 64;
  Tensor all = backcopy_rows(bigram, 0, N, T, Rng(options.seed)["rows that were not trained on"]);
  auto [ids, targets] = split(all);
  Observed seen;
  Probe probe = seen.probe();
  NoGrad no_grad;
  Tokens tokens(plain_tokens(N, T), {.takes_diagnostics = true, .probe = &probe});
  auto losses = model.loss(ids, targets, tokens, 1).losses.to_vector<float>();
  auto z = all.to_vector<int32_t>();
  // Classes of queries: 0 plain, 1 trigger; the first token and the one behind it are neither.
  auto class_of = [&](int64_t b, int64_t t) { return z[static_cast<size_t>(b * (T + 1) + t)] < kTriggers ? 1 : 0; };
  double excess[2] = {}, count[2] = {}, dormant = 0, copied = 0, drain = 0, calls = 0;
  for (int64_t b = 0; b < N; ++b)
    for (int64_t t = 2; t < T; ++t) {
      int kind = class_of(b, t);
      double oracle = kind == 1 ? 0 : entropy(row_of(bigram, z[static_cast<size_t>(b * (T + 1) + t)]));
      excess[kind] += static_cast<double>(losses[static_cast<size_t>(b * T + t)]) - oracle;
      ++count[kind];
    }
  for (const Tensor& shares : seen.shares())
    for (int64_t b = 0; b < N; ++b)
      for (int64_t t = 2; t < T; ++t) {
        if (class_of(b, t) == 0) dormant += shares.data<double>()[(b * T + t) * T];
        else copied += shares.data<double>()[(b * T + t) * T + t - 1];
      }
  for (const Tokens::Report& r : tokens.reports())
    if (r.name.find("value_drain") != std::string::npos) drain += r.sum / r.count, ++calls;
  auto weights = static_cast<double>(seen.shares().size());
  return {{"excess loss, plain", excess[0] / count[0]},
          {"excess loss, trigger", excess[1] / count[1]},
          {"first token at plain", dormant / count[0] / weights},
          {"token before at trigger", copied / count[1] / weights},
          {"value drain", drain / calls}};
}

}  // namespace weft::tasks
