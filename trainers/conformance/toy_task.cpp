// Does it learn? A model of one block on a task that needs what the mixer is for:
//   recall   every row has one marked token before position 4; from position 4 on the target is what the mark carries
//   recent   the target is the token before: for what does not see far
//   token    the target is a fixed permutation of the token itself: for what does not mix tokens
#include <fmt/format.h>

#include <algorithm>

#include "trainers/conformance/subject.h"
#include "weft/optim/progress.h"
#include "weft/training/training.h"

namespace weft::conformance {

namespace {

constexpr int64_t kRows = 16, kLength = 12, kSteps = 150;
constexpr int32_t kPlain = 8, kMarks = 4;  // ids 0 .. 7 are plain, 8 .. 11 marked

struct ToyBatch {
  Tensor ids = Tensor::empty({kRows, kLength}, kI32, Device::cpu()), targets = ids;
};

ToyBatch toy_batch(MixerRow::Toy toy, Rng rng) {
  ToyBatch batch;
  batch.targets = Tensor::empty({kRows, kLength}, kI32, Device::cpu());
  auto* ids = batch.ids.mutable_data<int32_t>();
  auto* targets = batch.targets.mutable_data<int32_t>();
  for (int64_t b = 0; b < kRows; ++b) {
    auto row = static_cast<uint64_t>(b);
    auto place = static_cast<int64_t>(rng["place"].below(4, row));
    auto mark = static_cast<int32_t>(rng["mark"].below(kMarks, row));
    for (int64_t t = 0; t < kLength; ++t) {
      int64_t i = b * kLength + t;
      ids[i] = t == place ? kPlain + mark : static_cast<int32_t>(rng["ids"].below(kPlain, static_cast<uint64_t>(i)));
      switch (toy) {
        case MixerRow::Toy::recall: targets[i] = t < 4 ? -1 : mark; break;
        case MixerRow::Toy::recent: targets[i] = t == 0 ? -1 : ids[i - 1]; break;
        case MixerRow::Toy::token: targets[i] = (ids[i] * 5 + 3) % (kPlain + kMarks);
      }
    }
  }
  batch.ids = to(batch.ids, default_device()).value();
  batch.targets = to(batch.targets, default_device()).value();
  return batch;
}

}  // namespace

Outcome check_learning(const Subject& subject) {
  MixerRow::Toy toy = subject.row().toy;
  int64_t targets_per_row = toy == MixerRow::Toy::recall   ? kLength - 4
                            : toy == MixerRow::Toy::recent ? kLength - 1
                                                           : kLength;
  LanguageModel model({.vocab = kPlain + kMarks,
                       .dim = 32,
                       .layers = 1,
                       .context = kLength,
                       .mixers = {subject.row()},
                       .ffn = {.hidden = 32},
                       .fixed_text = {0, 1, 2, 3, 4, 5, 6, 7, 6, 5, 4, 3},
                       .std = 0.1},
                      Rng(5));
  // The rate falls over the second half: at a constant one some variants still jump when they are read off.
  auto falling = [](int64_t step) { return std::min(1.0, 2 * static_cast<double>(kSteps - step) / kSteps); };
  Training training(
      model,
      {.groups = {{.algorithm = AdamWOptions{.lr = 1e-2, .weight_decay = 0}}}, .lr_factor = falling, .clip_norm = 1});
  double first = 0, last = 0;
  for (int64_t step = 0; step < kSteps; ++step) {
    ToyBatch batch = toy_batch(toy, Rng(1)["toy"][static_cast<uint64_t>(step)]);
    Tokens tokens(
        plain_tokens(kRows, kLength),
        {.is_training = true, .rng = Rng(2)[static_cast<uint64_t>(step)], .progress = training_progress(step, kSteps)});
    auto loss_of = [&](const MicroBatch&) {
      return model.loss(batch.ids, batch.targets, tokens, 1 / static_cast<double>(kRows * targets_per_row)).loss;
    };
    double value = training.step(1, loss_of).loss;
    if (step == 0) first = value;
    if (step >= kSteps - 10) last += value / 10;
  }
  bool has_learned = last < subject.row().toy_loss;
  return {has_learned ? Verdict::passed : Verdict::failed,
          fmt::format("{} nats after {} steps from {:.2f} (level {})", fmt::format("{:.3f}", last), kSteps, first,
                      subject.row().toy_loss)};
}

}  // namespace weft::conformance
