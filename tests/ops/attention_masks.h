// The masks that tests of the attention core go through.
#pragma once

#include <vector>

#include "tests/ops/attention_case.h"

namespace weft::test {

struct MaskRow {
  const char* name;
  ops::AttentionMask mask;
  int64_t document_length = 0;
};

inline const std::vector<MaskRow>& mask_rows() {
  static const std::vector<MaskRow> rows = {
      {"none", {.is_causal = false}},
      {"causal", {}},
      {"window", {.window = 7}},
      {"window wide", {.window = 120}},
      {"window alone", {.is_causal = false, .window = 30}},
      {"prefix", {.prefix = 11}},
      {"window prefix", {.window = 5, .prefix = 3}},
      {"documents", {.is_causal = false}, 13},
      {"causal documents", {}, 50},
      {"everything", {.window = 20, .prefix = 40}, 33},
  };
  return rows;
}

inline void apply(AttentionCase& c, const MaskRow& row) {
  c.options.mask = row.mask;
  if (row.document_length > 0) c.use_documents(row.document_length);
}

}  // namespace weft::test
