// Every token mixer of the library, one row per published point. The rows themselves: src/nn/mixers/rows/.
#include <optional>
#include <type_traits>
#include <utility>

#include "src/nn/mixers/rows/rows.h"
#include "weft/core/error.h"

namespace weft {

namespace {

const Rows& rows() {
  static const Rows table = [] {
    Rows all;
    for (const Rows& part : {softmax_rows(), composed_rows(), expert_rows(), recurrent_rows(), hybrid_rows()})
      all.insert(all.end(), part.begin(), part.end());
    return all;
  }();
  return table;
}

}  // namespace

std::span<const MixerRow> mixer_table() { return rows(); }

const MixerRow& mixer_row(std::string_view name) {
  std::string names;
  for (const MixerRow& row : rows()) {
    if (row.name == name) return row;
    names += str(names.empty() ? "" : ", ", row.name);
  }
  fail(str("mixer: there is no '", name, "'"), str("choose one of: ", names));
}

std::unique_ptr<Mixer> MixerRow::operator()(MixerArgs args, Rng rng) const {
  args.numbers.insert(numbers.begin(), numbers.end());
  args.texts.insert(texts.begin(), texts.end());
  return make(args, rng);
}

namespace {

template <size_t... I>
std::optional<MixerOptions> listed(const MixerMaker& make, std::index_sequence<I...>) {
  std::optional<MixerOptions> found;
  auto try_one = [&]<class Options>(std::type_identity<Options>) {
    if (const auto* options = make.target<Options>()) found = *options;
  };
  (try_one(std::type_identity<std::variant_alternative_t<I, MixerOptions>>()), ...);
  return found;
}

}  // namespace

MixerOptions options_of(const MixerRow& row) {
  std::optional<MixerOptions> found = listed(row.make, std::make_index_sequence<std::variant_size_v<MixerOptions>>());
  WEFT_CHECK(found.has_value(), str("mixer ", row.name, ": its maker is none of MixerOptions"),
             "add its options struct to MixerOptions in weft/nn/mixers.h");
  return *found;
}

}  // namespace weft
