// Training steps over two ranks of one thread each, beside one rank with two threads that takes the same batches: model L8 d512 h8.
// Data parallel: each rank has half of the rows. Context parallel: each has half of the tokens of every row.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "tools/bench/ring/ring.h"
#include "tools/bench/training_step.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/data/samples.h"
#include "weft/data/spread.h"
#include "weft/nn/context_group.h"

namespace weft::bench {

namespace {

constexpr int kRanks = 2;

// All that a batch can say, so that tokens of it can be spread.
data::Batch random_batch(int64_t rows, int64_t tokens, int64_t vocab) {
  data::Batch batch;
  for (Tensor* x : {&batch.tokens, &batch.targets, &batch.positions, &batch.documents, &batch.document_positions})
    *x = Tensor::zeros({rows, tokens}, kI32, Device::cpu());
  for (int64_t i = 0; i < rows * tokens; ++i) {
    auto random = [&](uint64_t salt) {
      return static_cast<int32_t>(Rng(salt).below(static_cast<uint64_t>(vocab), static_cast<uint64_t>(i)));
    };
    batch.tokens.mutable_data<int32_t>()[i] = random(1), batch.targets.mutable_data<int32_t>()[i] = random(2);
    batch.positions.mutable_data<int32_t>()[i] = batch.document_positions.mutable_data<int32_t>()[i] =
        static_cast<int32_t>(i % tokens);
  }
  return batch;
}

data::Batch rows_of(const data::Batch& all, int64_t first, int64_t count) {
  data::Batch rows;
  const Tensor* from[] = {&all.tokens, &all.targets, &all.positions, &all.documents, &all.document_positions};
  Tensor* to[] = {&rows.tokens, &rows.targets, &rows.positions, &rows.documents, &rows.document_positions};
  for (size_t i = 0; i < std::size(from); ++i) *to[i] = from[i]->slice(0, first, first + count);
  return rows;
}

struct Trained {
  LanguageModel model;
  Training training;

  Trained(const LanguageModelOptions& o, RanksOptions ranks, const ContextGroup* context)
      : model(o, Rng(1)), training(model, {.clip_norm = 1, .ranks = ranks, .context = context}) {}
};

// `context`: tokens of rows are spread, otherwise rows.
Row training_row(const StepShape& shape, bool context, int rounds) {
  const LanguageModelOptions options = gpt2_options(shape);
  const data::Batch all = random_batch(shape.batch, shape.tokens, shape.vocab);
  std::vector<double> ratios(static_cast<size_t>(rounds)), seconds(kRanks);
  double loss = 0, expected = 0;
  auto run_rank = [&](dist::Communicator& comm) {
    const int rank = comm.rank();
    const ContextGroup group{.tokens = &comm};
    Trained mine(options, {.comm = &comm, .ranks_per_row = context ? kRanks : 1}, context ? &group : nullptr);
    const data::Batch batch = context ? data::spread(all, {.layout = dist::LayoutKind::zigzag, .ranks = kRanks}, rank)
                                      : rows_of(all, rank * shape.batch / kRanks, shape.batch / kRanks);
    std::unique_ptr<Trained> one;
    if (rank == 0) one = std::make_unique<Trained>(options, RanksOptions{}, nullptr);
    double alone_s = 0;
    auto run_alone = [&] {
      if (rank != 0) return;
      set_num_threads(kRanks);
      const double begin = now_s();
      expected = one->training.step(all).loss;
      alone_s = now_s() - begin;
      set_num_threads(1);
    };
    auto run_together = [&] {
      comm.barrier();
      const double begin = now_s();
      const double of_step = mine.training.step(batch).loss;
      seconds[static_cast<size_t>(rank)] = now_s() - begin;
      if (rank == 0) loss = of_step;
      comm.barrier();
    };
    for (int round = -1; round < rounds; ++round) {
      const bool is_alone_first = round % 2 == 0;
      if (is_alone_first) run_alone();
      run_together();
      if (!is_alone_first) run_alone();
      if (round < 0 || rank != 0) continue;
      ratios[static_cast<size_t>(round)] = alone_s / *std::max_element(seconds.begin(), seconds.end());
    }
  };
  dist::run_thread_ranks(kRanks, run_rank, {.threads_per_rank = 1});
  WEFT_CHECK(std::abs(loss - expected) <= 1e-3 * std::abs(expected),
             str("bench ring: after ", rounds + 1, " steps the loss of two ranks is ", loss, ", of one ", expected),
             "weft parity finds out why");
  std::sort(ratios.begin(), ratios.end());
  Row row{.name = str("training step, ", context ? "context" : "data", " parallel"),
          .shape = str(shape.text, " P", kRanks),
          .dtype = "f32",
          .threads = kRanks,
          .value = ratios[ratios.size() / 2],
          .unit = str("of 1 rank x ", kRanks),
          .limit = 1};
  row.ratio = row.value / row.limit;
  return row;
}

}  // namespace

std::vector<Row> ring_training_rows(bool quick) {
  constexpr StepShape kData = {"L8 d512 h8 T1024 V8192 B4", 8, 512, 8, 1024, 8192, 4},
                      kContext = {"L8 d512 h8 T8192 V8192 B1", 8, 512, 8, 8192, 8192, 1},
                      kQuick = {"L2 d256 h4 T512 V1024 B4", 2, 256, 4, 512, 1024, 4};
  return {training_row(quick ? kQuick : kData, false, quick ? 3 : 5), training_row(quick ? kQuick : kContext, true, 3)};
}

}  // namespace weft::bench
