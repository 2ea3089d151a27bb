#include "src/nn/mixing/runs.h"

#include <algorithm>
#include <tuple>

#include "weft/core/error.h"

namespace weft {

Runs::Runs(int64_t batch, int64_t num_tokens, std::span<const int32_t> positions, std::span<const int32_t> documents)
    : num_tokens_(batch * num_tokens) {
  auto document = [&](int64_t i) { return documents.empty() ? 0 : documents[static_cast<size_t>(i)]; };
  auto position = [&](int64_t i) { return positions[static_cast<size_t>(i)]; };
  for (int64_t i = 0; i < num_tokens_; ++i) {
    const bool continues = i % num_tokens > 0 && document(i) == runs_.back().document &&
                           position(i) == runs_.back().position + (i - runs_.back().begin);
    if (continues) ++runs_.back().end;
    else runs_.push_back({i, i + 1, i / num_tokens, position(i), document(i)});
  }
  auto key = [](const Run& r) { return std::tuple(r.row, r.document < 0, r.position); };
  auto before = [&](const Run& a, const Run& b) { return key(a) < key(b); };
  are_in_order_ = std::is_sorted(runs_.begin(), runs_.end(), before);
  if (!are_in_order_) std::stable_sort(runs_.begin(), runs_.end(), before);
  for (size_t r = 1; r < runs_.size(); ++r) {
    const Run &a = runs_[r - 1], &b = runs_[r];
    if (a.row != b.row || b.document < 0) continue;
    are_in_order_ = are_in_order_ && a.document != b.document;
    have_gaps_ = have_gaps_ || (a.document == b.document && a.position + (a.end - a.begin) < b.position);
    WEFT_CHECK(a.position + (a.end - a.begin) <= b.position,
               str("Tokens: row ", b.row, " has two tokens at position ", b.position),
               "give every token of a row a position of its own");
  }
}

std::vector<int32_t> Runs::run_of_tokens() const {
  std::vector<int32_t> of(static_cast<size_t>(num_tokens_));
  for (size_t r = 0; r < runs_.size(); ++r)
    std::fill(of.begin() + runs_[r].begin, of.begin() + runs_[r].end, static_cast<int32_t>(r));
  return of;
}

std::vector<int32_t> Runs::order() const {
  std::vector<int32_t> order;
  order.reserve(static_cast<size_t>(num_tokens_));
  for (const Run& run : runs_)
    for (int64_t i = run.begin; i < run.end; ++i) order.push_back(static_cast<int32_t>(i));
  return order;
}

std::vector<int32_t> Runs::chains() const {
  std::vector<int32_t> chains;
  chains.reserve(static_cast<size_t>(num_tokens_));
  int32_t chain = 0;
  for (size_t r = 0; r < runs_.size(); ++r) {
    const Run& run = runs_[r];
    const Run* before = r > 0 ? &runs_[r - 1] : nullptr;
    const bool continues = before && before->row == run.row && before->document == run.document && run.document >= 0 &&
                           before->position + (before->end - before->begin) == run.position;
    chain += before && !continues ? 1 : 0;
    chains.insert(chains.end(), static_cast<size_t>(run.end - run.begin), chain);
  }
  return chains;
}

}  // namespace weft
