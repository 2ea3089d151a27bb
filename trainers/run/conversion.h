// A trained softmax model with other parts in it, as a run of weights: what a training that begins as it goes on from.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "weft/trainers/cli.h"

namespace weft::cli {
class Console;
}

namespace weft::train {

// gates: a sigmoid gate on each head's output (2505.06708), open at first: its matrix is 0, which makes it 1/2, and the output projection is
//   twice the trained one, with its adapter. The logits are the model's, unless `custom_heads` that are not linear come between the two.
// moh: a mixture of heads by norms of queries (2410.11842). Half of the heads are shared and half of the others chosen. Where all are chosen,
//   the logits are the model's.
// delta_residual: Delta Attention Residuals (2605.18855). Weights over depth are even at first, which the norm of each sublayer takes away: the
//   logits are the model's, but for the eps of the norms. Not so behind a norm of one's own that leaves a common factor.
// gated_slots: gated slot attention in place of softmax (2409.07146). It does not rotate, and has no windows.
enum class ConversionKind { gates, moh, delta_residual, gated_slots };
inline constexpr std::string_view kConversionNames[] = {"gates", "moh", "delta_residual", "gated_slots"};

struct ConversionOptions {
  std::string run;  // as in trainers/run/address.h
  std::string out;  // folder to make
  ConversionKind kind = ConversionKind::gates;
  int64_t slots = 64;                       // of gated_slots, per head
  std::vector<std::string> overrides = {};  // of the new config; they can make another function of a new part
  cli::Extensions own = {};
};

struct Converted {
  std::string checkpoint = {};
  int64_t num_params = 0;
  std::vector<std::string> taken = {}, fresh = {},
                           left = {};  // names of parameters: copied or made of the old; as drawn; without a place
  std::vector<std::string> lost = {};  // of gated_slots: what a layer did without parameters, as in ConversionReport
};

// Error before anything is written if the model has no layer to convert, or has the part already.
Converted convert_run(const ConversionOptions& options, cli::Console& console);

}  // namespace weft::train
