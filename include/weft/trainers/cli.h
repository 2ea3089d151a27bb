// The `weft` command as a function, so that a program with parts of its own has every command:
//   int main(int argc, char** argv) { return weft::cli::main(argc, argv, {.mixers = {{"sink", make_my_sink}}}); }
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "weft/nn/mixers.h"
#include "weft/nn/residual.h"

namespace weft::cli {

// A mixer in plain float64 loops, for `weft check`. It is given the sizes, the parameters and buffers by name, the input x [B, T, D] and
// what is known of the tokens; all tensors are f64. It returns the B T D elements of the output, row-major. weft/trainers/reference.h has
// loops to build it from.
using MixerReference = std::function<std::vector<double>(const MixerArgs&, const std::map<std::string, Tensor>&,
                                                         const Tensor& x_BTD, const TokenData&)>;

// A part of another kind: its maker, and the numbers and texts that the suite and the benchmark give it. A config gives its own.
template <class Maker>
struct PartRow {
  std::string name = {};
  Maker make = {};
  std::string_view equation = {};
  CustomNumbers numbers = {};
  CustomTexts texts = {};
};
// Attention with a mask and a score of one's own: returns what functor_attention() (weft/nn/attend_with.h) makes of them.
struct AttentionArgs {
  CustomNumbers numbers = {};
  CustomTexts texts = {};
};
using AttentionMaker = std::function<OwnAttention(const AttentionArgs&)>;

// A program's own parts. A config names a mixer by `custom { type: "..." }` in its place, as it does a norm, a feed-forward network and a
// residual stream; softmax takes `custom_heads` and `custom_attention`. `check`, `gradcheck` and `bench train` take a part with
// --mixer: NAME of a mixer, norm.NAME, ffn.NAME, residual.NAME, heads.NAME, attention.NAME; `task` takes mixers. What they give it stands
// in its row.
struct Extensions {
  std::vector<MixerRow> mixers = {};
  std::vector<PartRow<NormMaker>> norms = {};
  std::vector<PartRow<FfnMaker>> ffns = {};
  std::vector<PartRow<ResidualMaker>> residuals = {};
  std::vector<PartRow<HeadMixtureMaker>> head_mixtures = {};
  std::vector<PartRow<AttentionMaker>> attentions = {};
  std::map<std::string, MixerReference, std::less<>> references = {};  // by the name of the mixer, or norm.NAME, ...
};

// Exit codes of every command.
inline constexpr int kSuccess = 0;
inline constexpr int kFailure = 1;      // also a lost rank
inline constexpr int kUsageError = 2;   // wrong command line or config, or launch of ranks
inline constexpr int kStopped = 3;      // stopped and resumable
inline constexpr int kCheckFailed = 4;  // check, gradcheck, parity, compare, replay, plan, data check, bench --baseline
inline constexpr int kDiverged = 5;     // a training whose loss is not finite, or whose guard gives up

// Runs the command line and returns the exit code. Results go to stdout, messages to stderr; nothing is thrown.
int main(int argc, char** argv, const Extensions& extensions = {});

}  // namespace weft::cli
