#include "weft/data/document_lengths.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <utility>

#include "weft/core/error.h"

namespace weft::data {

namespace {

DocumentLengths with_sum_of_one(DocumentLengths lengths) {
  double sum = 0;
  for (const LengthRange& range : lengths) sum += range.share;
  for (LengthRange& range : lengths) range.share /= sum;
  return lengths;
}

// The range that a line says: its numbers, of which the last two may be absent.
bool parse(const std::string& line, LengthRange& range) {
  long long first = 0, second = 0;
  double share = 0;
  int end = 0;
  const auto size = static_cast<int>(line.size());
  if (std::sscanf(line.c_str(), "%lld,%lld,%lf %n", &first, &second, &share, &end) == 3 && end == size) {
    range = {first, second, share};
  } else if (std::sscanf(line.c_str(), "%lld,%lf %n", &first, &share, &end) == 2 && end == size) {
    range = {first, first, share};
  } else if (std::sscanf(line.c_str(), "%lld %n", &first, &end) == 1 && end == size) {
    range = {first, first, 1};
  } else {
    return false;
  }
  return true;
}

}  // namespace

const DocumentLengths& pretraining_document_lengths() {
  static const DocumentLengths kLengths = with_sum_of_one({{1, 10, 0.22},
                                                           {11, 50, 2.91},
                                                           {51, 100, 5.20},
                                                           {101, 200, 10.23},
                                                           {201, 500, 28.19},
                                                           {501, 1024, 24.64},
                                                           {1025, 2048, 15.65},
                                                           {2049, 4096, 7.34},
                                                           {4097, 8192, 3.05},
                                                           {8193, 16384, 1.29},
                                                           {16385, 32768, 0.85},
                                                           {32769, 65536, 0.14},
                                                           {65537, 131072, 0.17},
                                                           {131073, 196608, 0.14}});
  return kLengths;
}

DocumentLengths read_document_lengths(const std::string& path) {
  std::ifstream file(path);
  WEFT_CHECK(file.good(), str("document lengths: ", path, " cannot be read"),
             "name a file with a line `from,to,share` per range of lengths");
  DocumentLengths lengths;
  std::string line;
  bool had_heading = false;
  for (int number = 1; std::getline(file, line); ++number) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty() || line.front() == '#') continue;
    const bool is_number = line.front() >= '0' && line.front() <= '9';
    if (!is_number && lengths.empty() && !std::exchange(had_heading, true)) continue;
    LengthRange range;
    constexpr int64_t kLongest = (int64_t{1} << 31) - 1;  // that positions can count
    const bool is_range = parse(line, range) && range.from >= 1 && range.to >= range.from && range.to <= kLongest;
    WEFT_CHECK(is_range && range.share >= 0 && std::isfinite(range.share),
               str("document lengths: ", path, " line ", number, ": ", line),
               str("write from,to,share with 1 <= from <= to <= ", kLongest, " and a share of at least 0"));
    lengths.push_back(range);
  }
  WEFT_CHECK(std::any_of(lengths.begin(), lengths.end(), [](const LengthRange& range) { return range.share > 0; }),
             str("document lengths: ", path, " has no range with a share above 0"),
             "write a line `from,to,share` per range of lengths");
  return with_sum_of_one(std::move(lengths));
}

std::vector<int32_t> packed_documents(const DocumentLengths& lengths, int64_t tokens, Rng rng, int64_t longest,
                                      DrawBy by) {
  WEFT_CHECK(!lengths.empty() && tokens >= 0 && longest >= 0,
             str("packed documents: ", lengths.size(), " ranges, ", tokens, " tokens, longest ", longest),
             "give at least one range of lengths, and numbers of at least 0");
  std::vector<double> up_to;  // sums of weights
  double sum = 0;
  for (const LengthRange& range : lengths) {
    const double mean = static_cast<double>(range.from + range.to) / 2;
    up_to.push_back(sum += by == DrawBy::tokens ? range.share * mean : range.share);
  }
  std::vector<int32_t> documents;
  documents.reserve(static_cast<size_t>(tokens));
  for (uint64_t drawn = 0; static_cast<int64_t>(documents.size()) < tokens; ++drawn) {
    const double at = static_cast<double>(rng["range"].uniform(drawn)) * sum;
    const auto found = std::upper_bound(up_to.begin(), up_to.end(), at) - up_to.begin();
    const LengthRange& range = lengths[std::min(static_cast<size_t>(found), lengths.size() - 1)];
    int64_t length =
        range.from + static_cast<int64_t>(rng["length"].below(static_cast<uint64_t>(range.to - range.from + 1), drawn));
    if (longest > 0) length = std::min(length, longest);
    length = std::min(length, tokens - static_cast<int64_t>(documents.size()));
    documents.insert(documents.end(), static_cast<size_t>(length), static_cast<int32_t>(drawn));
  }
  return documents;
}

}  // namespace weft::data
