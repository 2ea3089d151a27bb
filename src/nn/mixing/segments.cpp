#include "src/nn/mixing/segments.h"

#include <algorithm>
#include <tuple>

#include "weft/distributed/segment_counts.h"

namespace weft {

namespace {

struct Segment {
  int rank = 0;
  int32_t index = 0;  // of its rank
  int64_t row = 0;
  int32_t position = 0, first_document = -1, last_document = -1;
  std::vector<int32_t> tokens, documents;
};

// Stretches of the rank in which positions follow each other; padding stands behind the last token of its row.
std::vector<Segment> stretches_of(const ContextTokens& all, int rank) {
  const dist::RankTokens& of = all.of_ranks()[static_cast<size_t>(rank)];
  const Runs runs(all.batch(), all.tokens(), of.positions, of.documents);
  std::vector<Segment> segments;
  int64_t end = 0;  // position behind the last token
  for (const Run& run : runs.all()) {
    const bool is_padding = run.document < 0;
    const bool follows = !segments.empty() && segments.back().row == run.row && (is_padding || run.position == end);
    if (!follows)
      segments.push_back({.rank = rank, .row = run.row, .position = run.position, .tokens = {}, .documents = {}});
    Segment& segment = segments.back();
    if (!is_padding) end = run.position + (run.end - run.begin);
    for (int64_t i = run.begin; i < run.end; ++i) {
      segment.tokens.push_back(static_cast<int32_t>(i));
      segment.documents.push_back(run.document);
    }
  }
  return segments;
}

// Where all stretches are equally long with it, padding is computed as the tokens stand; elsewhere it is in no segment.
void leave_out_padding(std::vector<Segment>& stretches) {
  auto differs = [&](const Segment& s) { return s.tokens.size() != stretches[0].tokens.size(); };
  if (std::ranges::none_of(stretches, differs)) return;
  for (Segment& s : stretches) {
    const auto end = std::ranges::find_if(s.documents, [](int32_t document) { return document < 0; });
    s.documents.erase(end, s.documents.end());
    s.tokens.resize(s.documents.size());
  }
  std::erase_if(stretches, [](const Segment& s) { return s.tokens.empty(); });
}

// Every rank cuts those of every rank alike. Of a document that is cut, the later segment gets the state of the earlier one.
std::vector<Segment> segments_of(const ContextTokens& all, int rank) {
  std::vector<Segment> stretches = stretches_of(all, rank);
  leave_out_padding(stretches);
  std::vector<int64_t> lengths;
  for (const Segment& s : stretches) lengths.push_back(std::ssize(s.tokens));
  const int64_t length = dist::segment_length(lengths);
  std::vector<Segment> segments;
  for (const Segment& s : stretches)
    for (int64_t begin = 0, size = std::ssize(s.tokens); begin < size; begin += length) {
      const int64_t end = std::min(size, begin + length);
      Segment& piece =
          segments.emplace_back(Segment{.rank = rank,
                                        .index = static_cast<int32_t>(segments.size()),
                                        .row = s.row,
                                        .position = s.position + static_cast<int32_t>(begin),
                                        .tokens = {s.tokens.begin() + begin, s.tokens.begin() + end},
                                        .documents = {s.documents.begin() + begin, s.documents.begin() + end}});
      for (int32_t document : piece.documents) {
        if (document < 0) break;  // padding stands last
        if (piece.first_document < 0) piece.first_document = document;
        piece.last_document = document;
      }
    }
  return segments;
}

}  // namespace

Segments plan_segments(const ContextTokens& all, int rank) {
  std::vector<Segment> of_all;
  Segments plan;
  for (int r = 0; r < all.ranks(); ++r) {
    const std::vector<Segment> of_rank = segments_of(all, r);
    of_all.insert(of_all.end(), of_rank.begin(), of_rank.end());
    plan.most = std::max<int64_t>(plan.most, static_cast<int64_t>(of_rank.size()));
    if (r != rank) continue;
    plan.count = static_cast<int64_t>(of_rank.size());
    for (const Segment& s : of_rank)
      plan.longest = std::max<int64_t>(plan.longest, static_cast<int64_t>(s.tokens.size()));
  }
  const auto places = static_cast<size_t>(plan.count * plan.longest);
  plan.tokens.resize(places), plan.documents.assign(places, -1), plan.is_reached.resize(places);
  plan.places.resize(static_cast<size_t>(all.batch() * all.tokens()));
  plan.is_in_segment.resize(plan.places.size());
  plan.before.resize(static_cast<size_t>(plan.count)), plan.goes_on.resize(static_cast<size_t>(plan.count));
  std::sort(of_all.begin(), of_all.end(), [](const Segment& a, const Segment& b) {
    auto key = [](const Segment& s) { return std::tuple(s.row, s.first_document < 0, s.position, s.rank, s.index); };
    return key(a) < key(b);
  });
  int32_t chain = 0;
  plan.plan.most = plan.most, plan.plan.threads = all.threads();
  for (size_t i = 0; i < of_all.size(); ++i) {
    const Segment& s = of_all[i];
    const bool goes_on =
        i > 0 && of_all[i - 1].row == s.row && s.first_document >= 0 && of_all[i - 1].last_document == s.first_document;
    const bool passes = goes_on && s.first_document == s.last_document;
    chain += passes ? 0 : 1;
    plan.plan.segments.push_back({.rank = s.rank, .index = s.index, .comes_in = goes_on, .passes = passes});
    plan.order.push_back(static_cast<int32_t>(s.rank * plan.most + s.index));
    plan.chains.push_back(chain);
    if (s.rank != rank) continue;
    plan.before[static_cast<size_t>(s.index)] = goes_on ? static_cast<int32_t>(i) - 1 : 0;
    plan.goes_on[static_cast<size_t>(s.index)] = goes_on;
    for (size_t t = 0; t < s.tokens.size(); ++t) {
      const size_t place = static_cast<size_t>(s.index * plan.longest) + t;
      plan.tokens[place] = s.tokens[t], plan.documents[place] = s.documents[t];
      plan.is_reached[place] = goes_on && s.documents[t] == s.first_document;
      plan.places[static_cast<size_t>(s.tokens[t])] = static_cast<int32_t>(place);
      plan.is_in_segment[static_cast<size_t>(s.tokens[t])] = 1;
    }
  }
  return plan;
}

}  // namespace weft
