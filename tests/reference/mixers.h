// The plain-loop reference of every row of the table of mixers, by its name.
#pragma once

#include "tests/reference/mixers/compositions.h"
#include "tests/reference/mixers/experts.h"
#include "tests/reference/mixers/pairs.h"
#include "tests/reference/mixers/softmax.h"
#include "tests/reference/residual.h"
#include "weft/nn/mixers.h"
#include "weft/trainers/cli.h"

namespace weft::reference {

using MixerReferences = std::map<std::string, cli::MixerReference, std::less<>>;

// A row whose maker is Options: its reference reads the same options.
template <class Reference, class Options>
void add_if(MixerReferences& all, const MixerRow& row) {
  if (const auto* o = row.make.target<Options>())
    all[row.name] = [o = *o](const MixerArgs& args, const Parameters& p, const Tensor& x, const TokenData& data) {
      return Reference(args, p, x, data).run(o);
    };
}
template <class Reference, class... Options>
void add_each(MixerReferences& all, const MixerRow& row) {
  (add_if<Reference, Options>(all, row), ...);
}

inline MixerReferences mixers() {
  MixerReferences all;
  auto add = [&](const MixerRow& row) {
    add_each<SoftmaxMixer, SoftmaxOptions>(all, row);
    add_each<ComposedMixer, MlaOptions, NexusOptions, HopfieldOptions, SimplifiedOptions, DeconstructedOptions,
             NapOptions, DualOptions>(all, row);
    add_each<ExpertMixer, MoaOptions, UmoeOptions>(all, row);
    add_each<PairMixer, TapaOptions, NeuralOptions, RcmhaOptions, RelativeBiasOptions, MultiTokenOptions>(all, row);
  };
  for (const MixerRow& row : mixer_table()) add(row);
  for (const MixerRow& row : softmax_pairs()) add(row);
  for (const ResidualRow& row : residual_table())
    all["residual." + row.name] = [make = row.make](const MixerArgs& args, const Parameters& p, const Tensor& x,
                                                    const TokenData& data) {
      return ResidualProbe(make.target<RoutedResidualOptions>(), args, p, x, data).run();
    };
  return all;
}

}  // namespace weft::reference
