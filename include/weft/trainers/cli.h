// The `weft` command as a function, so that a program with parts of its own has every command:
//   int main(int argc, char** argv) { return weft::cli::main(argc, argv, {.mixers = {{"sink", make_my_sink}}}); }
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "weft/nn/mixers.h"

namespace weft::cli {

// A mixer in plain float64 loops, for `weft check`. It is given the sizes, the parameters and buffers by name, the input x [B, T, D] and
// what is known of the tokens; all tensors are f64. It returns the B T D elements of the output, row-major. weft/trainers/reference.h has
// loops to build it from.
using MixerReference = std::function<std::vector<double>(const MixerArgs&, const std::map<std::string, Tensor>&,
                                                         const Tensor& x_BTD, const TokenData&)>;

// A program's own parts. A config names a mixer by `custom { type: "..." }`. `check`, `gradcheck`, `task` and `bench train` take it with
// --mixer NAME; its row says which numbers and texts they give it (MixerRow::numbers).
struct Extensions {
  std::vector<MixerRow> mixers = {};
  std::map<std::string, MixerReference, std::less<>> references = {};  // by the name of the mixer
};

// Exit codes of every command.
inline constexpr int kSuccess = 0;
inline constexpr int kFailure = 1;      // also a lost rank
inline constexpr int kUsageError = 2;   // wrong command line or config
inline constexpr int kStopped = 3;      // stopped and resumable
inline constexpr int kCheckFailed = 4;  // gradcheck, check, compare, bench against a baseline, data check

// Runs the command line and returns the exit code. Results go to stdout, messages to stderr; nothing is thrown.
int main(int argc, char** argv, const Extensions& extensions = {});

}  // namespace weft::cli
