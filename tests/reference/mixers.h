// The plain-loop reference of every row of the table of mixers, by its name.
#pragma once

#include "tests/reference/mixers/softmax.h"
#include "tests/reference/residual.h"
#include "weft/nn/mixers.h"
#include "weft/trainers/cli.h"

namespace weft::reference {

inline std::map<std::string, cli::MixerReference, std::less<>> mixers() {
  std::map<std::string, cli::MixerReference, std::less<>> all;
  // Rows whose maker is the options of one mixer: its reference reads the same options.
  auto add = [&](const MixerRow& row) {
    if (const auto* o = row.make.target<SoftmaxOptions>())
      all[row.name] = [o = *o](const MixerArgs& args, const Parameters& p, const Tensor& x, const TokenData& data) {
        return softmax_mixer(o, args, p, x, data);
      };
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
