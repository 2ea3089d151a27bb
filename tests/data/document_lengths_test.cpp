// Lengths of documents: files, and rows drawn from them.
#include "weft/data/document_lengths.h"

#include <cmath>
#include <map>

#include "tests/data/support.h"

namespace weft::data {
namespace {

using test::expect_error;

DocumentLengths read(const std::string& text) {
  const test::TempFolder folder;
  test::write_bytes(folder / "lengths.csv", text);
  return read_document_lengths(folder / "lengths.csv");
}

std::map<int32_t, int64_t> lengths_of(const std::vector<int32_t>& documents) {
  std::map<int32_t, int64_t> lengths;
  for (int32_t d : documents) ++lengths[d];
  return lengths;
}

TEST(DocumentLengths, AreReadAsRangesLengthsAndCounts) {
  const DocumentLengths ranges = read("# of a corpus\nfrom,to,share_percent\n1,10,25\n11,50,75\r\n");
  ASSERT_EQ(ranges.size(), 2u);
  EXPECT_EQ(ranges[1].from, 11);
  EXPECT_EQ(ranges[1].to, 50);
  EXPECT_DOUBLE_EQ(ranges[1].share, 0.75);
  const DocumentLengths counted = read("length,count\n7,3\n9,1\n");
  ASSERT_EQ(counted.size(), 2u);
  EXPECT_EQ(counted[0].to, 7);
  EXPECT_DOUBLE_EQ(counted[0].share, 0.75);
  EXPECT_DOUBLE_EQ(read("5\n5\n5\n8\n")[3].share, 0.25);
}

TEST(DocumentLengths, OfABadFileAreAnErrorWithTheLine) {
  expect_error([] { read_document_lengths("/nowhere.csv"); }, {"/nowhere.csv cannot be read", "from,to,share"});
  expect_error([] { read("1,10,5\n20,11,5\n"); }, {"line 2: 20,11,5", "from <= to"});
  for (const char* line : {"4611686018427387904,9223372036854775807,1", "1,2147483648,1", "1,10,inf", "1,10,nan"})
    expect_error([&] { read(str(line, "\n")); }, {line, "to <= 2147483647"});
  expect_error([] { read("a,b,c\nd,e,f\n"); }, {"line 2: d,e,f"});
  expect_error([] { read("0,10,5\n"); }, {"line 1: 0,10,5"});
  expect_error([] { read("1,10,5 6\n1,2\nx"); }, {"line 1: 1,10,5 6"});
  expect_error([] { read("# nothing\n"); }, {"no range with a share above 0"});
}

TEST(DocumentLengths, SharesOfDrawnDocumentsAreThoseOfTheRanges) {
  const DocumentLengths lengths{{1, 10, 0.5}, {101, 200, 0.5}};
  const auto drawn = lengths_of(packed_documents(lengths, 400000, Rng(1)));
  double short_ones = 0, sum = 0;
  for (const auto& [document, length] : drawn) {
    EXPECT_TRUE((1 <= length && length <= 10) || (101 <= length && length <= 200) || document == drawn.rbegin()->first);
    short_ones += length <= 10;
    sum += static_cast<double>(length);
  }
  const auto count = static_cast<double>(drawn.size());
  EXPECT_NEAR(short_ones / count, 0.5, 4 * 0.5 / std::sqrt(count));
  EXPECT_NEAR(sum / count, 0.5 * 5.5 + 0.5 * 150.5, 4 * 80 / std::sqrt(count));
}

TEST(DocumentLengths, ByTokensALongDocumentIsDrawnByItsLength) {
  const DocumentLengths lengths{{10, 10, 0.5}, {90, 90, 0.5}};
  const auto drawn = lengths_of(packed_documents(lengths, 200000, Rng(1), 0, DrawBy::tokens));
  double long_ones = 0;
  for (const auto& [document, length] : drawn) long_ones += length == 90;
  EXPECT_NEAR(long_ones / static_cast<double>(drawn.size()), 0.9, 0.03);
}

TEST(DocumentLengths, RowsHaveTheAskedLengthAndNoLongerDocument) {
  for (int64_t tokens : {0, 1, 63, 1000}) {
    const std::vector<int32_t> documents = packed_documents(pretraining_document_lengths(), tokens, Rng(3), 100);
    ASSERT_EQ(static_cast<int64_t>(documents.size()), tokens);
    for (size_t i = 1; i < documents.size(); ++i) {
      EXPECT_GE(documents[i], documents[i - 1]);
      EXPECT_LE(documents[i], documents[i - 1] + 1);
    }
    for (const auto& [document, length] : lengths_of(documents)) EXPECT_LE(length, 100) << document;
  }
  EXPECT_EQ(packed_documents(pretraining_document_lengths(), 5000, Rng(3)),
            packed_documents(pretraining_document_lengths(), 5000, Rng(3)));
  EXPECT_NE(packed_documents(pretraining_document_lengths(), 5000, Rng(3)),
            packed_documents(pretraining_document_lengths(), 5000, Rng(4)));
  expect_error([] { packed_documents({}, 5, Rng(1)); }, {"0 ranges"});
}

}  // namespace
}  // namespace weft::data
