// The plain-loop reference of every row of the table of mixers, by its name.
#pragma once

#include "tests/reference/mixers/compositions.h"
#include "tests/reference/mixers/experts.h"
#include "tests/reference/mixers/hybrids.h"
#include "tests/reference/mixers/miras.h"
#include "tests/reference/mixers/pair_scores.h"
#include "tests/reference/mixers/recurrent.h"
#include "tests/reference/mixers/softmax.h"
#include "tests/reference/residual.h"
#include "weft/nn/mixers.h"
#include "weft/trainers/cli.h"

namespace weft::reference {

using MixerReferences = std::map<std::string, cli::MixerReference, std::less<>>;

template <class Reference, class Options>
concept Computes = requires(Reference reference, const Options& options) {
  reference.run(options);
};

// The class that computes a mixer of these options in plain loops.
template <class Options>
auto reference_of() {
  if constexpr (Computes<SoftmaxMixer, Options>) return std::type_identity<SoftmaxMixer>();
  else if constexpr (Computes<ComposedMixer, Options>) return std::type_identity<ComposedMixer>();
  else if constexpr (Computes<ExpertMixer, Options>) return std::type_identity<ExpertMixer>();
  else if constexpr (Computes<PairMixer, Options>) return std::type_identity<PairMixer>();
  else if constexpr (Computes<RecurrentMixer, Options>) return std::type_identity<RecurrentMixer>();
  else if constexpr (Computes<MirasMixer, Options>) return std::type_identity<MirasMixer>();
  else if constexpr (Computes<HybridMixer, Options>) return std::type_identity<HybridMixer>();
  else
    static_assert(!sizeof(Options),
                  "no plain-loop reference: add run(const Options&) to a class of tests/reference/mixers/");
}

inline MixerReferences mixers() {
  MixerReferences all;
  auto add = [&](const MixerRow& row) {
    std::visit(
        [&]<class Options>(const Options& options) {
          using Reference = decltype(reference_of<Options>())::type;
          all[row.name] = [options](const MixerArgs& args, const Parameters& p, const Tensor& x,
                                    const TokenData& data) { return Reference(args, p, x, data).run(options); };
        },
        options_of(row));
  };
  for (const MixerRow& row : mixer_table()) add(row);
  for (const MixerRow& row : softmax_option_pairs()) add(row);
  for (const ResidualRow& row : residual_table())
    all["residual." + row.name] = [make = row.make](const MixerArgs& args, const Parameters& p, const Tensor& x,
                                                    const TokenData& data) {
      return ResidualProbe(make.target<RoutedResidualOptions>(), args, p, x, data).run();
    };
  return all;
}

}  // namespace weft::reference
