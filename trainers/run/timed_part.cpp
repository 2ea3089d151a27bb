// Seconds of a step of k layers and m micro-batches are m M(k) + U(k), and both are straight lines in k. U is found with few tokens, where two
// micro-batches cost little: 2 t(1) - t(2).
#include "trainers/run/timed_part.h"

#include <algorithm>
#include <chrono>

#include "weft/core/dry_run.h"
#include "weft/core/stream.h"
#include "weft/training/rank_sums.h"

namespace weft::train {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kShortRow = 512;     // of a rank: shorter rows have another share of what is not products
constexpr int64_t kFewestTokens = 64;  // of a rank
constexpr int64_t kMostTimedCalls = 12;
constexpr double kMostOverFastest = 1.2;

std::vector<int32_t> some_ids(int64_t count, int64_t vocab) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i)
    ids.push_back(static_cast<int32_t>(Rng(7).below(static_cast<uint64_t>(vocab), static_cast<uint64_t>(i))));
  return ids;
}

// Layers of the smallest model of this kind: a period of its pattern, or all of them where parts of the model count its layers, such as
// residual streams in blocks.
int64_t smallest_depth(LanguageModelOptions model) {
  const int64_t all = model.layers,
                period = model.pattern.empty() ? std::ssize(model.mixers) : std::ssize(model.pattern);
  DryRun dry;
  for (int64_t depth : {std::min(all, period), std::min(all, 2 * period)}) try {
      model.layers = depth;
      const LanguageModel fits(model, Rng(0));
    } catch (const Error&) { return all; }
  return std::min(all, period);
}

}  // namespace

namespace {

// Whether something else has used the machine: half of the calls took much longer than the fastest.
bool is_disturbed(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2] > kMostOverFastest * seconds[0];
}

}  // namespace

double median_seconds(const std::function<void()>& f, dist::Communicator* world) {
  std::vector<double> all;
  auto wants_more = [&] { return std::ssize(all) < kMostTimedCalls && is_disturbed(all); };
  for (int i = 0; i < kTimedCalls || on_any_rank(world, wants_more()); ++i) {
    if (world) world->barrier();
    const auto begin = Clock::now();
    f();
    synchronize(default_device());
    if (world) world->barrier();
    if (i > 0) all.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  const auto middle = all.begin() + std::ssize(all) / 2;
  std::nth_element(all.begin(), middle, all.end());
  return *middle;
}

TimedTraining::TimedTraining(MemorySubject subject, Team* team, dist::Communicator* world, data::SampleSource samples,
                             StepTimer timer)
    : subject_(std::move(subject)),
      team_(team),
      world_(team ? &team->world() : world),
      samples_(std::move(samples)),
      timer_(std::move(timer)) {
  subject_.takes_diagnostics = false;
  // No rate of the config may make the weights infinite, on ids that mean nothing.
  for (ParamGroup& group : subject_.groups) std::visit([](auto& algorithm) { algorithm.lr = 0; }, group.algorithm);
}

double TimedTraining::flops(int64_t layers, int64_t rows, int64_t context) const {
  DryRun dry;
  auto of = [&](LanguageModelOptions model) {
    model.context = context, model.fixed_text.resize(static_cast<size_t>(context));
    return LanguageModel(model, Rng(0)).flops_per_token();
  };
  LanguageModelOptions model = subject_.model;
  model.layers = layers;
  const double of_token = of(model) + (subject_.teacher ? of(*subject_.teacher) / 3 : 0);
  return of_token * static_cast<double>(rows * context) / subject_.parallel.context;
}

double TimedTraining::cost(const TimedPart& part) const {
  double of_one = flops(part.few, part.rows, part.context);
  if (part.more > part.few) of_one += flops(part.more, part.rows, part.context);
  return kTimedCalls * of_one;
}

TimedPart TimedTraining::part(int64_t rows, double flops) const {
  const int64_t all = subject_.model.layers, ranks = subject_.parallel.context;
  TimedPart part{.few = all, .more = all, .rows = rows, .context = subject_.model.context};
  if (cost(part) <= flops) return part;
  const StartOptions& start = subject_.start;
  const bool names_layers = subject_.teacher || !start.frozen.empty() || !start.trained.empty();
  if (const int64_t few = smallest_depth(subject_.model); 3 * few < all && !names_layers)
    part.few = few, part.more = 2 * few;
  auto shorten = [&] { return part.context /= 2; };
  if (!subject_.keeps_documents_apart)
    while (cost(part) > flops && part.context / 2 >= kShortRow * ranks) shorten(), part.rows *= 2;
  while (cost(part) > flops && part.rows > 1) part.rows = (part.rows + 1) / 2;
  while (cost(part) > flops && part.context / 2 >= kFewestTokens * ranks) shorten();
  // The further apart the two models, the less a difference of their times errs.
  auto deeper = [&] {
    TimedPart of = part;
    of.more *= 2;
    return of;
  };
  while (part.more > part.few && 2 * part.more < all && cost(deeper()) <= flops) part = deeper();
  return part;
}

double TimedTraining::step_seconds(int64_t layers, int64_t rows, int64_t context, int64_t micro_batches) const {
  if (timer_) return timer_(layers, rows, context, micro_batches);
  MemorySubject s = subject_;
  s.model.layers = layers;
  for (LanguageModelOptions* model : {&s.model, s.teacher ? &*s.teacher : nullptr})
    if (model) model->context = context, model->fixed_text.resize(static_cast<size_t>(context));
  const bool is_short = context < subject_.model.context;
  if (is_short) s.keeps_documents_apart = false;
  TrialTraining training(s, rows, micro_batches, some_ids(context + 1, s.model.vocab), team_,
                         is_short ? data::SampleSource() : samples_);
  training.start();
  return median_seconds([&] { training.step(); }, world_);
}

StepSeconds TimedTraining::seconds_of(int64_t layers, const TimedPart& part, bool splits) const {
  const double whole = step_seconds(layers, part.rows, part.context, 1);
  if (!splits) return {.micro_batch = whole};
  const int64_t short_row = std::min(part.context, kFewestTokens * subject_.parallel.context);
  const double one = step_seconds(layers, 1, short_row, 1), two = step_seconds(layers, 1, short_row, 2);
  const double update = std::clamp(2 * one - two, 0.0, 0.95 * std::min(one, whole));
  return {.micro_batch = whole - update, .update = update};
}

StepSeconds TimedTraining::seconds(const TimedPart& part, bool splits) const {
  const StepSeconds low = seconds_of(part.few, part, splits);
  if (part.more == part.few) return low;
  const StepSeconds high = seconds_of(part.more, part, splits);
  const double steps =
      static_cast<double>(subject_.model.layers - part.few) / static_cast<double>(part.more - part.few);
  auto of_all = [&](double few, double more) { return few + steps * std::max(more - few, 0.0); };
  return {.micro_batch = of_all(low.micro_batch, high.micro_batch), .update = of_all(low.update, high.update)};
}

}  // namespace weft::train
