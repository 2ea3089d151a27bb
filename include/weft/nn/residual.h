// Residual streams: how the input of each sublayer is made from the outputs of earlier ones. All of it is per token.
//   LanguageModelOptions{..., .residual = RoutedResidualOptions{.combine = ResidualCombine::add}}   // Delta Attention Residuals
// With e the embedding, y_l = f_l(h_l) the output of sublayer l (two per layer, or one) and p_l = e + y_1 + .. + y_(l-1):
//   standard   h_l = p_l
//   routed     h_l = sum_i a_i v_i, or p_l + sum_i a_i v_i. The weights a_i are made from the sources v_i
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "weft/nn/layers.h"
#include "weft/nn/tokens.h"

namespace weft {

// One forward through the stream.
class ResidualStream {
 public:
  virtual ~ResidualStream() = default;
  virtual Var input() = 0;               // of the next sublayer, before its norm
  virtual void write(const Var& y) = 0;  // the output of that sublayer
  virtual Var output() = 0;              // after the last one, before the final norm
};

class Residual : public Module {
 public:
  virtual std::unique_ptr<ResidualStream> start(const Var& x_BTD, Tokens& tokens) = 0;  // x: the embedding
  virtual bool is_standard() const {
    return false;
  }  // h = p: a block needs only the sum, and can be recomputed from it
};

struct ResidualArgs {
  int64_t dim = 0, sublayers = 0;
  double norm_eps = 1e-6;
  CustomNumbers numbers = {};
  CustomTexts texts = {};
};
using ResidualMaker = std::function<std::unique_ptr<Residual>(const ResidualArgs&, Rng)>;

struct StandardResidualOptions {
  std::unique_ptr<Residual> operator()(const ResidualArgs& args, Rng rng) const;
};

// outputs: e, y_1 .. y_(l-1). block_sums: e and the sum of each finished block of sublayers; with `replace` also what is in the sublayer's
// own block so far. states: p_1 .. p_l.
enum class ResidualSources { outputs, block_sums, states };
enum class ResidualCombine { replace, add };  // h = sum, or h = p + sum
// softmax of the scores over the sources; sigmoid of each score; softmax of learned scores, the same for all tokens; learned numbers that
// start at 1.
enum class ResidualWeights { softmax, sigmoid, fixed_softmax, scalars };

// Attention Residuals (Kimi team, 2603.15031): replace, over outputs (full) or block_sums (block). Delta Attention Residuals (Luo et al.,
// 2605.18855): add. Scores are w . (gain * v / rms(v)). w starts at 0, which gives the mean of the sources.
struct RoutedResidualOptions {
  ResidualSources sources = ResidualSources::outputs;
  ResidualCombine combine = ResidualCombine::replace;
  ResidualWeights weights = ResidualWeights::softmax;
  // Of block_sums: how many, exactly, at most the number of sublayers. ceil(sublayers / blocks) sublayers each as long as one is left for
  // every later block, so that the last ones are shorter: 5 sublayers in 4 blocks are 2 1 1 1, 10 are 3 3 3 1.
  // 0: 8, or every sublayer by itself if there are fewer.
  int64_t blocks = 0;
  int64_t window = 0;            // > 0: of outputs, e and the last `window` ones only
  bool has_key_norm = true;      // v / rms(v) in the scores; otherwise v
  bool has_key_gain = true;      // with has_key_norm
  bool has_null_source = false;  // one more source per router: a learned vector that starts at 0
  double query_std = 0;          // of the initial w
  // How many sublayers read the sources before them together (two phases; softmax without null source or window): the same function with
  // fewer readings. 0: a block, or 8; 1: each by itself.
  int64_t group = 0;

  std::unique_ptr<Residual> operator()(const ResidualArgs& args, Rng rng) const;
};

// One published residual stream, as MixerRow is one mixer.
struct ResidualRow {
  std::string name = {};
  ResidualMaker make = {};
  std::string_view equation = {}, source = {}, cost = {};
};
std::span<const ResidualRow> residual_table();

}  // namespace weft
