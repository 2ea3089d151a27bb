// Messages of hybrid mixers as option structs, and back.
#pragma once

#include "trainers/config/config.pb.h"
#include "weft/nn/mixers/hybrids.h"

namespace weft::train {

NatsOptions hybrid_options(const config::Nats& m);
NatsLinearOptions hybrid_options(const config::NatsLinear& m);
HySparseOptions hybrid_options(const config::HySparse& m);
FluxOptions hybrid_options(const config::Flux& m);
ReplacementOptions hybrid_options(const config::Replacement& m);

void set_hybrid(config::Mixer& mixer, const NatsOptions& o);
void set_hybrid(config::Mixer& mixer, const NatsLinearOptions& o);
void set_hybrid(config::Mixer& mixer, const HySparseOptions& o);
void set_hybrid(config::Mixer& mixer, const FluxOptions& o);
void set_hybrid(config::Mixer& mixer, const ReplacementOptions& o);

}  // namespace weft::train
