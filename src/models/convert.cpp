#include "weft/models/convert.h"

#include <algorithm>
#include <map>

#include "weft/core/error.h"

namespace weft {

namespace {

size_t mixer_of(const LanguageModelOptions& o, int64_t layer) {
  const auto l = static_cast<size_t>(layer);
  return o.pattern.empty() ? l % o.mixers.size() : static_cast<size_t>(o.pattern[l % o.pattern.size()]);
}

// The softmax options of a layer; null if it has another mixer.
const SoftmaxOptions* softmax_of(const LanguageModelOptions& o, int64_t layer) {
  return o.mixers[mixer_of(o, layer)].target<SoftmaxOptions>();
}

std::vector<int64_t> chosen(const LanguageModelOptions& o, const std::vector<int64_t>& layers) {
  std::vector<int64_t> all = layers;
  for (int64_t l = 0; l < o.layers && layers.empty(); ++l)
    if (softmax_of(o, l)) all.push_back(l);
  WEFT_CHECK(!all.empty(), "to_gated_slots: no layer of the model has softmax attention", "convert another model");
  for (int64_t l : all) {
    WEFT_CHECK(l >= 0 && l < o.layers, str("to_gated_slots: layer ", l, " of ", o.layers), "count layers from 0");
    const SoftmaxOptions* softmax = softmax_of(o, l);
    WEFT_CHECK(softmax, str("to_gated_slots: layer ", l, " has no softmax attention"), "leave it out");
    WEFT_CHECK(
        softmax->heads >= 1 && o.dim % softmax->heads == 0 &&
            (softmax->head_dim == 0 || softmax->head_dim * softmax->heads == o.dim),
        str("to_gated_slots: layer ", l, " has ", softmax->heads, " heads of ", softmax->head_dim, " for dim ", o.dim),
        "gated slots need heads of dim / heads: leave the layer out");
  }
  return all;
}

// Rows of groups [G K, D], once per head that shares them: [H K, D].
Tensor per_head(const Tensor& weight, int64_t heads, int64_t head_dim) {
  const int64_t groups = weight.size(0) / head_dim, D = weight.size(1);
  Var of_groups = reshape(Var(weight), {groups, 1, head_dim, D});
  return (reshape(expand(of_groups, {groups, heads / groups, head_dim, D}), {heads * head_dim, D}) * 1.0).value();
}

// What a layer of softmax does that no tensor shows, and gated slots do not.
std::vector<std::string> without_tensors(const SoftmaxOptions& o, PositionKind position) {
  std::vector<std::string> out;
  auto add = [&](bool is_there, const std::string& what) {
    if (is_there) out.push_back(what);
  };
  add(o.position == MixerPosition::model && position == PositionKind::rotary, "rotation of queries and keys");
  add(o.position == MixerPosition::alibi, "ALiBi");
  add(o.window > 0, str("window of ", o.window, " tokens"));
  add(o.softcap > 0, str("soft cap at ", o.softcap));
  add(o.dropout > 0, "dropout of weights");
  add(o.weights.kind != WeightKind::softmax, "weights other than softmax");
  add(o.sink.kind == SinkKind::off_by_one, "sink off_by_one");
  add(o.has_out_silu, "silu of heads");
  add(static_cast<bool>(o.own_attention), "attention of the program's own");
  return out;
}

std::string line(const char* what, const std::vector<std::string>& names, bool has_names) {
  std::string text = str(names.size(), " ", what);
  for (size_t i = 0; i < names.size() && has_names; ++i) text += (i ? ", " : ": ") + names[i];
  return text + "\n";
}

}  // namespace

std::string to_string(const ConversionReport& report) {
  return line("taken", report.taken, false) +
         line("taken, repeated for the heads of each group", report.repeated, true) +
         line("fresh", report.fresh, true) + line("left behind", report.left, true) +
         line("lost, which had no tensors", report.lost, true);
}

ConvertedModel to_gated_slots(const LanguageModel& trained, const GatedSlotsConversion& how, Rng rng) {
  NoGrad no_grad;
  LanguageModelOptions o = trained.options();
  const std::vector<int64_t> layers = chosen(o, how.layers);
  std::map<std::string, int64_t> heads_of;  // of converted layers, by the name of the mixer
  std::vector<std::string> lost;
  std::vector<int> pattern;
  for (int64_t l = 0; l < o.layers; ++l) pattern.push_back(static_cast<int>(mixer_of(o, l)));
  for (int64_t l : layers) {
    const int64_t heads = softmax_of(trained.options(), l)->heads;
    heads_of[str("layers.", l, ".mixer.")] = heads;
    for (const std::string& what : without_tensors(*softmax_of(trained.options(), l), o.position))
      lost.push_back(str("layers.", l, ".mixer: ", what));
    o.mixers.push_back(GatedSlotsOptions{.heads = heads, .slots = how.slots});
    pattern[static_cast<size_t>(l)] = static_cast<int>(o.mixers.size()) - 1;
  }
  o.pattern = pattern;
  ConvertedModel out{std::make_unique<LanguageModel>(o, rng), {}};
  out.report.lost = lost;
  std::map<std::string, const Param*> theirs;
  for (const NamedParam& p : trained.params()) theirs[p.name] = p.param;
  for (const NamedParam& p : out.model->params()) {
    const auto found = theirs.find(p.name);
    const Tensor& to = p.param->value();
    const Tensor from = found == theirs.end() ? Tensor() : found->second->value();
    const size_t end = p.name.find(".mixer.");
    const auto converted = end == std::string::npos ? heads_of.end() : heads_of.find(p.name.substr(0, end + 7));
    if (from.defined() && from.shape() == to.shape()) {
      p.param->set_value((cast(Var(from), to.dtype()) * 1.0).value());
      out.report.taken.push_back(p.name);
    } else if (from.defined() && converted != heads_of.end() && from.num_dims() == 2 && from.size(1) == to.size(1) &&
               to.size(0) % from.size(0) == 0) {
      p.param->set_value(per_head(cast(Var(from), to.dtype()).value(), converted->second, o.dim / converted->second));
      out.report.repeated.push_back(p.name);
    } else {
      out.report.fresh.push_back(p.name);
      continue;
    }
    theirs.erase(found);
  }
  for (const auto& [name, param] : theirs) out.report.left.push_back(name);
  return out;
}

}  // namespace weft
