// Feed-forward side of UMoE.
#pragma once

#include "weft/nn/layers.h"

namespace weft {

std::unique_ptr<Ffn> make_umoe_ffn(const FfnOptions& options, Rng rng);

}  // namespace weft
