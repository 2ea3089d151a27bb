// The check `order`: positions are data. The tokens of each row are handed over in another order, with their positions: outputs, the
// gradient of the input and those of all parameters must be the permutation of the ordered ones.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "trainers/conformance/subject.h"
#include "weft/core/error.h"

namespace weft::conformance {

namespace {

constexpr int64_t kBatch = 2, kTokens = 13;
using Order = std::vector<int32_t>;  // [kBatch kTokens]: which token of its row stands there

Order per_row(const std::function<std::vector<int32_t>(int64_t row)>& of_row) {
  Order all;
  for (int64_t b = 0; b < kBatch; ++b)
    for (int32_t t : of_row(b)) all.push_back(t);
  return all;
}

// Tokens dealt to `ranks` in turn by blocks, one rank after the other.
std::vector<int32_t> striped(int32_t block, int32_t ranks) {
  std::vector<int32_t> order;
  for (int32_t rank = 0; rank < ranks; ++rank)
    for (int32_t t = 0; t < kTokens; ++t)
      if (t / block % ranks == rank) order.push_back(t);
  return order;
}

// Of 2 `ranks` pieces, rank r has piece r and piece 2 ranks - 1 - r.
std::vector<int32_t> zigzag(int32_t ranks) {
  const int32_t piece = (kTokens + 2 * ranks - 1) / (2 * ranks);
  std::vector<int32_t> order;
  for (int32_t rank = 0; rank < ranks; ++rank)
    for (int32_t which : {rank, 2 * ranks - 1 - rank})
      for (int32_t t = which * piece; t < std::min<int32_t>((which + 1) * piece, kTokens); ++t) order.push_back(t);
  return order;
}

std::vector<int32_t> shuffled_tiles(int32_t tile, uint64_t seed) {
  std::vector<int32_t> tiles((kTokens + tile - 1) / tile), order;
  std::iota(tiles.begin(), tiles.end(), 0);
  for (size_t i = tiles.size(); i > 1; --i) std::swap(tiles[i - 1], tiles[Rng(seed).below(i, i)]);
  for (int32_t which : tiles)
    for (int32_t t = which * tile; t < std::min<int32_t>((which + 1) * tile, kTokens); ++t) order.push_back(t);
  return order;
}

struct Layout {
  std::string_view name;
  Order order;
};
std::vector<Layout> layouts() {
  return {{"striped by 1", per_row([](int64_t) { return striped(1, 2); })},
          {"striped by 2", per_row([](int64_t) { return striped(2, 3); })},
          {"zigzag", per_row([](int64_t) { return zigzag(2); })},
          {"shuffled tiles", per_row([](int64_t row) { return shuffled_tiles(2, 5 + static_cast<uint64_t>(row)); })}};
}

// Of token t of a row: where documents are given, two of 5 and 6 tokens and two of padding, the row beginning at position 3.
struct Place {
  int32_t position, document, document_position;
};
Place place_of(int32_t t, bool has_documents) {
  if (!has_documents) return {t, 0, t};
  if (t >= 11) return {t + 3, -1, 0};
  return {t + 3, t < 5 ? 0 : 1, t < 5 ? t : t - 5};
}

TokenData data_in(const Order& order, bool has_documents, bool is_ordered) {
  std::array<Tensor, 3> all;
  for (Tensor& t : all) t = Tensor::empty({kBatch, kTokens}, kI32, Device::cpu());
  for (size_t i = 0; i < order.size(); ++i) {
    const Place place = place_of(order[i], has_documents);
    all[0].mutable_data<int32_t>()[i] = place.position;
    all[1].mutable_data<int32_t>()[i] = place.document;
    all[2].mutable_data<int32_t>()[i] = place.document_position;
  }
  auto there = [](const Tensor& t) { return to(t, default_device()).value(); };
  TokenData data{.positions = there(all[0]), .are_consecutive = is_ordered};
  if (has_documents) data.documents = there(all[1]), data.document_positions = there(all[2]);
  return data;
}

// x of ordered tokens [kBatch, kTokens, ...] -> of those in `order`.
Tensor permuted(const Tensor& x, const Order& order) {
  std::vector<int32_t> rows;
  for (size_t i = 0; i < order.size(); ++i) rows.push_back(static_cast<int32_t>(i) / kTokens * kTokens + order[i]);
  const int64_t n = kBatch * kTokens;
  Tensor index = to(Tensor::from(std::span<const int32_t>(rows), {n}), x.device()).value();
  return take_rows(Var(x.reshape({n, -1})), index).value().reshape(x.shape());
}

struct Numbers {
  Tensor out, dx;                     // of tokens in the order of positions
  std::vector<double> of_parameters;  // gradients
};

Numbers run_in(const Subject& subject, const Layout& layout, bool has_documents, bool is_ordered) {
  Order back(layout.order.size());
  for (size_t i = 0; i < back.size(); ++i)
    back[i / kTokens * kTokens + static_cast<size_t>(layout.order[i])] = static_cast<int32_t>(i % kTokens);
  std::unique_ptr<Mixer> mixer = subject.make(kF64);
  const int64_t D = subject.args().dim;
  Tensor x = normal_input({kBatch, kTokens, D}, kF64), weight = normal_input({kBatch, kTokens, D}, kF64, 5);
  for (size_t i = 0; i < back.size(); ++i)  // outputs of padding are nobody's
    if (place_of(static_cast<int32_t>(i % kTokens), has_documents).document < 0)
      for (int64_t d = 0; d < D; ++d) weight.mutable_data<double>()[static_cast<int64_t>(i) * D + d] = 0;
  Var input = variable(permuted(x, layout.order));
  Tokens tokens(data_in(layout.order, has_documents, is_ordered), {.is_training = true, .rng = Rng(11)});
  tokens.share("embedding", input * 0.5);
  tokens.share(fixed_sequence_name(subject.args().layer), normal_input({1, 16, D}, kF64, 77));
  Var y = mixer->forward(input, tokens), loss = sum_all(y * permuted(weight, layout.order));
  for (const Tokens::Loss& extra : tokens.losses()) loss = loss + cast(extra.value, kF64) * extra.weight;
  backward(loss);
  mixer->update_buffers();
  Numbers numbers;
  numbers.out = mul(permuted(y.value(), back), weight).value();  // 0 for padding
  numbers.dx = permuted(input.grad(), back);
  auto append = [&](const Tensor& t) {
    std::vector<double> more = t.defined() ? numbers_of(t) : std::vector<double>();
    numbers.of_parameters.insert(numbers.of_parameters.end(), more.begin(), more.end());
  };
  for (const NamedParam& p : mixer->params()) append(p.param->grad());
  for (const NamedBuffer& b : mixer->buffers()) append(b.buffer->value());
  return numbers;
}

}  // namespace

Outcome check_order(const Subject& subject) {
  const std::string_view missing = subject.row().lacks.order;
  Order identity = per_row([](int64_t) { return striped(kTokens, 1); });
  double worst = 0;
  std::string_view worst_layout = "none";
  int count = 0;
  for (bool has_documents : {false, true}) {
    if (has_documents && !subject.row().lacks.documents.empty()) continue;
    const Numbers expected = run_in(subject, {"ordered", identity}, has_documents, true);
    for (const Layout& layout : layouts()) {
      if (!missing.empty()) {  // what is declared missing must be refused, not computed wrong
        try {
          run_in(subject, layout, has_documents, false);
        } catch (const Error&) { continue; }
        return {Verdict::failed,
                fmt::format("is said to be missing ({}), but {} is not refused", missing, layout.name)};
      }
      const Numbers got = run_in(subject, layout, has_documents, false);
      const double differences[] = {largest_difference(numbers_of(got.out), numbers_of(expected.out)),
                                    largest_difference(numbers_of(got.dx), numbers_of(expected.dx)),
                                    largest_difference(got.of_parameters, expected.of_parameters)};
      const double largest = *std::max_element(std::begin(differences), std::end(differences));
      if (largest > worst) worst = largest, worst_layout = layout.name;
      ++count;
    }
  }
  if (!missing.empty()) return {Verdict::unsupported, std::string(missing)};
  Outcome outcome = within(worst, 1e-10, fmt::format("{} orders, largest difference", count));
  if (outcome.verdict == Verdict::failed) outcome.reason += fmt::format(" ({})", worst_layout);
  return outcome;
}

}  // namespace weft::conformance
