// What a paper says about arms of a study, and the rule by which the runs decide: reproduced, not reproduced, or too small to tell. The rule
// stands in the grid, so it is fixed before the runs.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weft/trainers/statistics.h"

namespace weft::config {
class Grid;
}

namespace weft::study {

struct Grid;

// What an arm should be, beside its baseline. The last three allow a difference of the claim's effect.
enum class Expected { lower, higher, at_most, at_least, equal };

struct Paper {
  std::string id, number, size, tokens, tokenizer;
};
struct Contrast {
  std::string arm, baseline;  // full names of combinations
};
struct Claim {
  std::string title, text, part, metric;  // part: "gates"
  std::vector<Paper> papers;
  std::vector<Contrast> contrasts;
  Expected expected = Expected::lower;
  double effect = 0;
  bool is_relative = false;
};
// In the order of the config's enum.
std::vector<std::string> claim_parts();

// ConfigError with the file and the claim.
std::vector<Claim> claims_of(const Grid& grid, const config::Grid& in);

// "lower by at least 0.01", "equal within 10 %".
std::string rule_text(const Claim& claim);

enum class Verdict { reproduced, not_reproduced, too_small };
std::string_view to_string(Verdict verdict);  // "too small to tell"

// One contrast: a number per seed for both arms, NaN where a run has none.
struct Measured {
  const Claim* claim = nullptr;
  std::vector<double> arm = {}, baseline = {};
};
struct Judged {
  Difference difference;         // arm minus baseline, or arm / baseline - 1
  std::optional<double> holm_p;  // that the runs would agree with the claim as clearly if it were wrong
  Verdict verdict = Verdict::too_small;
};
// All contrasts of a study, since Holm adjusts over all of them.
//   reproduced: the Holm p is below 1 - confidence and, for lower and higher, the mean difference is at least the effect.
//   not reproduced: no value in the interval of the mean agrees with the claim.
//   too small to tell: neither; also where a seed is without a pair, or there are fewer than three.
std::vector<Judged> judge(std::span<const Measured> measured, double confidence);

// Of a claim with several contrasts: reproduced if all are, not reproduced if any is not.
Verdict verdict_of(std::span<const Verdict> contrasts);

}  // namespace weft::study
