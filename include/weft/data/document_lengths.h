// How long the documents of a corpus are, and packed rows of such documents: what a benchmark or a plan takes in place of a corpus.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "weft/core/rng.h"

namespace weft::data {

// Documents of from .. to tokens, and their share of all documents. Within a range every length is as frequent as another.
struct LengthRange {
  int64_t from = 1, to = 1;
  double share = 0;
};
using DocumentLengths = std::vector<LengthRange>;  // shares sum to 1

// The figures that MagiAttention's benchmark gives of 13.5 million documents of a pretraining corpus.
const DocumentLengths& pretraining_document_lengths();
// A text file with a line `from,to,share` per range, shares in any unit; lines with # and one heading are passed over. A line `length` or
// `length,count` is a range of one length. Error with the file and the line.
DocumentLengths read_document_lengths(const std::string& path);

// Documents are drawn one after another by their share, or by their share of all tokens: then a token's document is as long as that of a
// token of the corpus.
enum class DrawBy { documents, tokens };
// The document of each token of a row, 0, 1, 2 ..; the last one is cut at the row's end. `longest`: documents are cut after so many tokens;
// 0: they are not.
std::vector<int32_t> packed_documents(const DocumentLengths& lengths, int64_t tokens, Rng rng, int64_t longest = 0,
                                      DrawBy by = DrawBy::documents);

}  // namespace weft::data
