// All token mixers, and the table of published points that the conformance suite walks.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/experts.h"
#include "weft/nn/mixers/hybrids.h"
#include "weft/nn/mixers/pair_scores.h"
#include "weft/nn/mixers/recurrent.h"
#include "weft/nn/mixers/softmax.h"

namespace weft {

// The options of every mixer of the library, from the lists at the ends of their headers. Code that must handle every mixer visits them: the
// config texts of the rows, the sizes of the benchmarks, the references of the tests. If an option struct is added to a list and one of
// these does not handle it, it does not compile.
template <class... Lists>
struct JoinedOptions;
template <class... Options>
struct JoinedOptions<OptionsList<Options...>> {
  using Variant = std::variant<Options...>;
};
template <class... First, class... Second, class... Rest>
struct JoinedOptions<OptionsList<First...>, OptionsList<Second...>, Rest...>
    : JoinedOptions<OptionsList<First..., Second...>, Rest...> {};
using MixerOptions =
    JoinedOptions<SoftmaxList, CompositionList, PairScoreList, ExpertList, RecurrentList, HybridList>::Variant;

// One published mixer, as the suite builds, checks and prints it, with sizes for tests ([B, T, 16] inputs).
struct MixerRow {
  std::string name = {};  // of commands and tests
  MixerMaker make = {};
  std::string_view equation = {};  // in ASCII, for the table of the docs
  std::string_view source = {};    // arXiv number or venue
  std::string_view cost = {};      // in B tokens of work and memory, if not that of softmax attention
  // What it cannot do, each with the reason; empty: it can, and the suite proves it.
  struct Lacks {
    std::string_view decode = {}, documents = {}, exact_causality = {}, gradient = {}, heads = {}, order = {},
                     devices = {};
  } lacks = {};
  // What it must learn, and to how many nats (trainers/conformance/toy_task.cpp). `recall`: a marked token anywhere before. `recent`: the
  // token before. `token`: a map of the token itself.
  enum class Toy { recall, recent, token } toy = Toy::recall;
  double toy_loss = 0.1;
  double bf16_bound = 0.05;  // relative difference of bf16 from f32; more where rounding is amplified
  // MixerArgs' numbers and texts, as the suite and the benchmarks give them to the maker. A config gives its own.
  std::map<std::string, double> numbers = {};
  std::map<std::string, std::string> texts = {};
  // The maker with these numbers and texts.
  std::unique_ptr<Mixer> operator()(MixerArgs args, Rng rng) const;
};

std::span<const MixerRow> mixer_table();
// Every two options of softmax attention together, named "gate_out+window". The maker throws if the two cannot be combined.
std::span<const MixerRow> softmax_option_pairs();
const MixerRow& mixer_row(std::string_view name);  // Error that lists the names if there is none
// What a row of the library was made from; Error if it is not one of MixerOptions.
MixerOptions options_of(const MixerRow& row);

}  // namespace weft
