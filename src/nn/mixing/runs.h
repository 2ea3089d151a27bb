// Runs: maximal stretches of the tokens here that stand one after the other in one document of one batch row. Whatever the order of the
// tokens here, sums over earlier tokens and shifts are those within runs, and few numbers per run.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace weft {

struct Run {
  int64_t begin, end;  // tokens [begin, end) of B T, row after row
  int64_t row;
  int32_t position, document;  // position of its first token; 0 where there are no documents, -1 for padding
};

class Runs {
 public:
  // positions [B T] in the row; documents [B T], or empty: one per row. Two tokens of a row at one position are an Error.
  Runs(int64_t batch, int64_t num_tokens, std::span<const int32_t> positions, std::span<const int32_t> documents);

  // Whether the tokens of each row stand here in the order of their positions, and each document is one run.
  bool are_in_order() const { return are_in_order_; }
  bool have_gaps() const { return have_gaps_; }          // tokens of a document are missing between others
  const std::vector<Run>& all() const { return runs_; }  // by row and position; padding last
  std::vector<int32_t> run_of_tokens() const;            // [B T]: index of the run
  // [B T]: the tokens by row and position, padding last in its row.
  std::vector<int32_t> order() const;
  // [B T], in that order: a number that changes where two tokens do not stand one after the other in one document.
  std::vector<int32_t> chains() const;

 private:
  int64_t num_tokens_;
  bool are_in_order_ = true, have_gaps_ = false;
  std::vector<Run> runs_;
};

}  // namespace weft
