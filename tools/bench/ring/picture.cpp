// `weft bench ring --picture FILE`: what a layout does, drawn. Per layout and mask on the left the square of queries (down) and keys (across),
// with a strip that shows who has which token, and each visible pair in the colour of the hop at which it is worked on; on the right the hop
// plan: pairs of every rank at every hop.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "tools/bench/ring/ring.h"

namespace weft::bench {

namespace {

constexpr int kRanks = 4, kTokens = 32, kCell = 6, kSquare = kTokens * kCell, kStrip = 8;
constexpr int kHopWidth = 34, kHopHeight = 24, kPanelWidth = 2 * kStrip + kSquare + kRanks * kHopWidth + 70,
              kPanelHeight = kSquare + 76;
constexpr std::array<const char*, kRanks> kRankColours = {"#3b6fb6", "#d98032", "#4f9a54", "#a65aa0"},
                                          kHopColours = {"#1f2d3d", "#5b7083", "#93a5b5", "#c9d3dc"};

struct Panel {
  const char* title;
  dist::Layout layout;
  dist::TokenMask mask;
};

// A document of half the row, and four short ones.
std::vector<int32_t> half_and_short() {
  std::vector<int32_t> documents(kTokens);
  for (int t = kTokens / 2; t < kTokens; ++t) documents[static_cast<size_t>(t)] = 1 + (t - kTokens / 2) / 4;
  return documents;
}

bool sees(const dist::TokenMask& mask, int query, int key) {
  if (key > query || (mask.window > 0 && query - key >= mask.window)) return false;
  auto document = [&](int t) { return mask.documents.empty() ? 0 : mask.documents[static_cast<size_t>(t)]; };
  return document(query) == document(key);
}

std::string text(double x, double y, const std::string& what, const char* more = "") {
  return fmt::format("<text x=\"{}\" y=\"{}\"{}>{}</text>\n", x, y, more, what);
}
std::string box(int x, int y, int width, int height, const char* colour, double opacity = 1) {
  return fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"{}/>\n", x, y, width, height,
                     colour, opacity < 1 ? fmt::format(" fill-opacity=\"{:.2f}\"", opacity) : "");
}

std::string owners(const dist::Layout& layout, int x, int y) {
  std::string svg;
  for (int begin = 0, end = 0; begin < kTokens; begin = end) {
    const int owner = layout.owner(begin);
    while (end < kTokens && layout.owner(end) == owner) ++end;
    const char* colour = kRankColours[static_cast<size_t>(owner)];
    const int at = begin * kCell, length = (end - begin) * kCell;
    svg += box(x - kStrip - 2, y + at, kStrip, length, colour) + box(x + at, y - kStrip - 2, length, kStrip, colour);
  }
  return svg;
}

// One path per hop; neighbouring pairs of a row are one rectangle.
std::string pairs(const Panel& panel, int x, int y) {
  std::array<std::string, kRanks> paths;
  auto hop_of = [&](int query, int key) {
    if (!sees(panel.mask, query, key)) return -1;
    return (panel.layout.owner(query) - panel.layout.owner(key) + kRanks) % kRanks;
  };
  for (int query = 0; query < kTokens; ++query)
    for (int begin = 0, end = 0; begin < kTokens; begin = end) {
      const int hop = hop_of(query, begin);
      while (end < kTokens && hop_of(query, end) == hop) ++end;
      if (hop < 0) continue;
      const int width = (end - begin) * kCell;
      paths[static_cast<size_t>(hop)] +=
          fmt::format("M{} {}h{}v{}h-{}z", x + begin * kCell, y + query * kCell, width, kCell, width);
    }
  std::string svg = fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#bbb\"/>\n",
                                x, y, kSquare, kSquare);
  for (size_t hop = 0; hop < paths.size(); ++hop)
    if (!paths[hop].empty()) svg += fmt::format("<path fill=\"{}\" d=\"{}\"/>\n", kHopColours[hop], paths[hop]);
  return svg;
}

std::string hops(const dist::HopPlan& plan, int x, int y) {
  const int64_t most = *std::max_element(plan.pairs.begin(), plan.pairs.end());
  std::string svg = text(x, y - 18, "pairs at hop");
  for (int hop = 0; hop < kRanks; ++hop) {
    const char* colour = kHopColours[static_cast<size_t>(hop)];
    svg += box(x + hop * kHopWidth, y - 4, kHopWidth - 2, 4, colour);
    svg += text(x + hop * kHopWidth + kHopWidth / 2 - 1, y - 7, str(hop), " text-anchor=\"middle\"");
  }
  for (int rank = 0; rank < kRanks; ++rank) {
    const int top = y + rank * kHopHeight + 2;
    svg += text(x - 34, top + 15, str("rank ", rank),
                str(" fill=\"", kRankColours[static_cast<size_t>(rank)], "\"").c_str());
    for (int hop = 0; hop < kRanks; ++hop) {
      const int64_t of = plan.pairs_of(rank, hop);
      const double share = static_cast<double>(of) / static_cast<double>(most);
      svg += box(x + hop * kHopWidth, top, kHopWidth - 2, kHopHeight - 2, kRankColours[static_cast<size_t>(rank)],
                 of > 0 ? 0.15 + 0.6 * share : 0.03);
      svg += text(x + hop * kHopWidth + kHopWidth / 2 - 1, top + 15, of > 0 ? str(of) : "-", " text-anchor=\"middle\"");
    }
  }
  const int below = y + kRanks * kHopHeight + 18;
  svg += text(x - 34, below, fmt::format("in step: {:.2f} of ideal", plan.lockstep_pairs()));
  svg += text(x - 34, below + 14, fmt::format("busiest rank: {:.2f}", plan.rank_pairs()));
  svg += text(x - 34, below + 28, plan.steps == 1 ? "1 hop has work" : str(plan.steps, " hops have work"));
  return svg;
}

}  // namespace

std::string ring_picture() {
  const dist::TokenMask all{}, window{.window = 4}, documents{.documents = half_and_short()};
  const std::vector<Panel> panels = {
      {"contiguous, causal", dist::Layout::contiguous(kTokens, kRanks), all},
      {"striped in blocks of 2, causal", dist::Layout::striped(kTokens, kRanks, 2), all},
      {"zigzag, causal", dist::Layout::zigzag(kTokens, kRanks), all},
      {"contiguous, window of 4", dist::Layout::contiguous(kTokens, kRanks), window},
      {"zigzag, documents", dist::Layout::zigzag(kTokens, kRanks), documents},
      {"balanced in blocks of 2, documents", dist::Layout::balanced(kTokens, kRanks, documents, 2), documents}};
  constexpr int kColumns = 2;
  const int height = kPanelHeight * ((static_cast<int>(panels.size()) + kColumns - 1) / kColumns);
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"10\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      kColumns * kPanelWidth, height);
  for (size_t i = 0; i < panels.size(); ++i) {
    const Panel& panel = panels[i];
    const int x = static_cast<int>(i) % kColumns * kPanelWidth + 2 * kStrip + 6,
              y = static_cast<int>(i) / kColumns * kPanelHeight + 50;
    svg += text(x, y - 28, panel.title, " font-size=\"13\" font-weight=\"bold\"");
    svg += owners(panel.layout, x, y) + pairs(panel, x, y);
    svg += hops(dist::plan_hops(panel.layout, panel.mask), x + kSquare + 52, y + 20);
  }
  return svg + "</svg>\n";
}

}  // namespace weft::bench
