// The samples of one rank, by number alone.
#include <algorithm>

#include "weft/core/error.h"
#include "weft/data/samples.h"

namespace weft::data {

namespace {

std::string divisors_of(int64_t rows) {
  std::string text;
  for (int64_t d = 1; d <= rows; ++d)
    if (rows % d == 0) text += str(text.empty() ? "" : ", ", d);
  return text;
}

// Row-major i32 tensors [rows, T], one below the other; undefined if all are.
Tensor joined(std::span<const Tensor> parts) {
  if (!parts[0].defined()) return {};
  int64_t rows = 0;
  for (const Tensor& part : parts) {
    WEFT_CHECK(part.defined() && part.num_dims() == 2 && part.size(1) == parts[0].size(1),
               str("batches of samples: ", parts[0], " and ", part, " do not go together"),
               "give the same tensors for all samples, [rows, tokens] each");
    rows += part.size(0);
  }
  Tensor all = Tensor::empty({rows, parts[0].size(1)}, parts[0].dtype(), Device::cpu());
  int64_t row = 0;
  for (const Tensor& part : parts) {
    all.slice(0, row, row + part.size(0)).set_bytes(part);
    row += part.size(0);
  }
  return all;
}

}  // namespace

std::vector<RankShare::Rows> RankShare::rows_of(int64_t first, int64_t rows) const {
  WEFT_CHECK(ranks >= 1 && rank >= 0 && rank < ranks && micro_batch >= 0 && rows >= 0,
             str("samples of a rank: rank ", rank, " of ", ranks, ", ", rows, " rows, micro_batch ", micro_batch),
             "use a rank below their number, and numbers that are not negative");
  WEFT_CHECK(rows % ranks == 0,
             str("samples of a rank: ", rows, " rows of a step do not divide among ", ranks, " ranks"),
             str("use ", divisors_of(rows), " ranks, or a multiple of ", ranks, " rows"));
  std::vector<Rows> mine;
  const int64_t each = rows / ranks, most = micro_batch > 0 ? micro_batch : each;
  for (int64_t done = 0; done < each; done += most) {
    const int64_t count = std::min(most, each - done);
    mine.push_back({.first = first + done * ranks + rank * count, .count = count});
  }
  return mine;
}

SampleSource samples_of_rank(SampleSource all, RankShare share) {
  return [all = std::move(all), share](int64_t first, int64_t count) {
    const std::vector<RankShare::Rows> mine = share.rows_of(first, count);
    if (mine.size() == 1) return all(mine[0].first, mine[0].count);
    std::vector<Batch> batches;
    for (const RankShare::Rows& rows : mine) batches.push_back(all(rows.first, rows.count));
    return stacked(batches);
  };
}

Batch stacked(std::span<const Batch> batches) {
  WEFT_CHECK(!batches.empty(), "batches of samples: there are none", "ask for at least one row per rank");
  auto of_all = [&](Tensor Batch::*member) {
    std::vector<Tensor> parts;
    for (const Batch& batch : batches) parts.push_back(batch.*member);
    return joined(parts);
  };
  return {.tokens = of_all(&Batch::tokens),
          .targets = of_all(&Batch::targets),
          .positions = of_all(&Batch::positions),
          .documents = of_all(&Batch::documents),
          .document_positions = of_all(&Batch::document_positions)};
}

}  // namespace weft::data
