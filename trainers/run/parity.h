// `weft parity`: the model of a config on several ranks against one, in float64: loss, gradients, and weights after some steps.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "trainers/config/translate.h"

namespace weft::train {

struct ParityCase {
  dist::LayoutKind layout;
  dist::Scheme scheme;
  int ranks;  // that share each sequence
};

struct ParityOptions {
  int64_t rows = 2;   // of a step
  int64_t steps = 3;  // with the config's optimiser
  int64_t block = 4;  // tokens, of striped and balanced layouts
  double bound = 1e-10;
  // Processes that are the ranks, as many as the largest case or more: all of them make the call, and the first has the results. Null:
  // ranks are threads.
  dist::Communicator* world = nullptr;
};

// Of one parameter or buffer; a buffer has no gradient.
struct ParityDifference {
  std::string name;
  double gradient = 0, weight = 0;
};

// Differences are the largest of any element, over 1 plus the largest element of that tensor on one rank; infinite where a number is not finite.
struct ParityResult {
  ParityCase of;
  double loss = 0, gradient = 0, weight = 0;
  // The first parameter, in the order of layers, whose gradient differs by more than the bound; where all are equal, the first parameter or
  // buffer that does after the steps. Empty: none.
  std::string first = {};
  std::vector<ParityDifference> parameters = {};  // in the order of layers
  bool passed = false;
  std::string refused = {};  // why the scheme cannot run with so many ranks, such as heads that do not divide
};

// Random tokens with documents, a sequence of model.context.
std::vector<ParityResult> check_parity(const config::Loaded& config, std::span<const ParityCase> cases,
                                       const ParityOptions& options,
                                       const std::function<void(const ParityResult&)>& on_result = {});

}  // namespace weft::train
