// Messages of recurrent mixers as option structs, and back.
#pragma once

#include "trainers/config/config.pb.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft::train {

GlaOptions recurrent_options(const config::Gla& m);
DeltaOptions recurrent_options(const config::Delta& m);
LinearAttentionOptions recurrent_options(const config::LinearAttention& m);
RetnetOptions recurrent_options(const config::Retnet& m);
LightningOptions recurrent_options(const config::Lightning& m);
Mamba2Options recurrent_options(const config::Mamba2& m);
HgrnOptions recurrent_options(const config::Hgrn& m);
GatedSlotsOptions recurrent_options(const config::GatedSlots& m);
AdditiveSlotsOptions recurrent_options(const config::AdditiveSlots& m);
FlowOptions recurrent_options(const config::Flow& m);
RalaOptions recurrent_options(const config::Rala& m);
PoolingOptions recurrent_options(const config::Pooling& m);
MirasOptions recurrent_options(const config::Miras& m);

void set_recurrent(config::Mixer& mixer, const GlaOptions& o);
void set_recurrent(config::Mixer& mixer, const DeltaOptions& o);
void set_recurrent(config::Mixer& mixer, const LinearAttentionOptions& o);
void set_recurrent(config::Mixer& mixer, const RetnetOptions& o);
void set_recurrent(config::Mixer& mixer, const LightningOptions& o);
void set_recurrent(config::Mixer& mixer, const Mamba2Options& o);
void set_recurrent(config::Mixer& mixer, const HgrnOptions& o);
void set_recurrent(config::Mixer& mixer, const GatedSlotsOptions& o);
void set_recurrent(config::Mixer& mixer, const AdditiveSlotsOptions& o);
void set_recurrent(config::Mixer& mixer, const FlowOptions& o);
void set_recurrent(config::Mixer& mixer, const RalaOptions& o);
void set_recurrent(config::Mixer& mixer, const PoolingOptions& o);
void set_recurrent(config::Mixer& mixer, const MirasOptions& o);

}  // namespace weft::train
