// The conformance suite: every check on every row of the table of mixers, also on a program's own.
//   for (const Result& r : check_mixers(mixer_table(), {})) ...
// All checks run on inputs [B, T, 16] with weights drawn much wider than in training, so that nothing is nearly linear.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "weft/autograd/gradient_check.h"
#include "weft/distributed/context_attention.h"
#include "weft/nn/mixers.h"
#include "weft/nn/residual.h"
#include "weft/trainers/cli.h"

namespace weft::conformance {

enum class Verdict { passed, failed, unsupported };
std::string_view name_of(Verdict verdict);

// A way to spread the tokens of a row over ranks, of the check `ranks`.
struct SpreadCase {
  dist::LayoutKind layout;
  dist::Scheme scheme;
  int ranks;
  bool has_documents;
};
std::string to_string(const SpreadCase& c);
inline constexpr dist::LayoutKind kSpreadLayouts[] = {dist::LayoutKind::contiguous, dist::LayoutKind::striped,
                                                      dist::LayoutKind::zigzag, dist::LayoutKind::balanced};
inline constexpr int kSpreadRanks[] = {2, 3, 4, 8};

struct Spread {
  SpreadCase of;
  std::string refused = {};  // why the scheme cannot run there; empty: it ran
};

struct Result {
  std::string variant, check;
  Verdict verdict = Verdict::passed;
  std::string reason;                // passed: the figure; otherwise why
  std::vector<Spread> spreads = {};  // that `ranks` tried
};

using cli::MixerReference;
using Parameters = std::map<std::string, Tensor>;

struct Options {
  std::string variant = "all", check = "all";
  std::map<std::string, MixerReference, std::less<>> references = {};  // by the name of the row
  std::function<void(const Result&)> on_result = {};
  bool covers_product = false;  // ranks: every layout with every scheme and number of ranks
};

std::vector<Result> check_mixers(std::span<const MixerRow> rows, const Options& options);
std::vector<std::string> check_names();
// Pairs of options: what is impossible must be refused with an error, everything else pass the checks that do not train or write.
std::vector<Result> check_option_pairs(std::span<const MixerRow> rows, const Options& options);

// The library's residual streams as rows: a small mixer of five sublayers on each.
std::vector<MixerRow> residual_rows();
MixerRow residual_row(const ResidualRow& row);

// Gradients of a row's input and of every parameter against differences in float64.
struct InputSize {
  int64_t batch, tokens, dim;
};
GradientCheck check_gradients_of(const MixerRow& row, const InputSize& size, int64_t max_elements = 12);

}  // namespace weft::conformance
