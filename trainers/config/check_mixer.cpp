// Checks of token mixers against the model, and of their options against each other.
#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>

#include "trainers/config/check.h"
#include "trainers/config/field_path.h"
#include "trainers/config/text_place.h"
#include "trainers/config/translate.h"
#include "weft/core/dry_run.h"

namespace weft::config {

namespace {

// What the library itself refuses, with the place in the config. In a dry run: no weights of a large mixer are drawn.
void check_options(const Loaded& config, const std::string& path, const std::function<void(const MixerArgs&)>& check) {
  const Model& model = config.experiment.model();
  MixerArgs args{.dim = model.dim(), .context = model.context(), .layers = model.layers()};
  if (!model.position().has_rope()) args.rotary.reset();
  try {
    std::optional<DryRun> dry;
    if (!is_dry_run()) dry.emplace();
    check(args);
  } catch (const Error& error) { refuse(config, path, "is impossible: " + error.problem(), error.fix()); }
}

void check_rope(const Loaded& config, const Rope& rope, const Softmax& softmax, const std::string& mixer) {
  int64_t width = softmax.head_dim();
  std::string head_dim = mixer + ".head_dim";
  if (width % 2 != 0)
    refuse(config, config.origins.has(head_dim) ? head_dim : mixer + ".heads",
           str("gives heads of width ", width, "; rotary positions turn pairs of features and need an even one."),
           str("Change heads or head_dim, or use model.position={none{}}."));
  double rotated = rope.fraction() * static_cast<double>(width);
  bool is_even = std::abs(rotated / 2 - std::nearbyint(rotated / 2)) < 1e-9 && rotated >= 2;
  if (!is_even)
    refuse(config, "model.position.rope.fraction",
           str("is ", rope.fraction(), ": it rotates ", rotated, " of ", width, " features of a head."),
           "Choose a fraction that gives an even number of features, at least 2.");
}

void check_softmax(const Loaded& config, const Softmax& softmax, const std::string& path) {
  const Model& model = config.experiment.model();
  if (!softmax.has_head_dim())
    refuse(config, path + ".heads", str("is ", softmax.heads(), ", which does not divide model.dim ", model.dim(), "."),
           str("Use a divisor such as ", divisors_near(model.dim(), softmax.heads()), ", or set ", path, ".head_dim."));
  if (softmax.heads() % softmax.kv_heads() != 0)
    refuse(config, path + ".kv_heads",
           str("is ", softmax.kv_heads(), ", which does not divide heads ", softmax.heads(), "."),
           str("Use a divisor: ", divisors_near(softmax.heads(), softmax.kv_heads()), "."));
  if (model.position().has_rope()) check_rope(config, model.position().rope(), softmax, path);
  if (softmax.l2_norm() && softmax.qk_norm())
    refuse(config, path + ".l2_norm", "stands beside qk_norm.", "Use one of the two norms.");
  check_options(config, path, [&](const MixerArgs& args) { completed(train::softmax_options(softmax), args); });
}

}  // namespace

void check_mixer(const Loaded& config, const Mixer& mixer, const std::string& path) {
  if (mixer.has_softmax()) check_softmax(config, mixer.softmax(), path + ".softmax");
  if (mixer.has_softmax() || mixer.has_custom()) return;
  // The others check themselves when they are made.
  std::string name =
      mixer.GetReflection()->GetOneofFieldDescriptor(mixer, mixer.GetDescriptor()->oneof_decl(0))->name();
  check_options(config, path + "." + name, [&](const MixerArgs& args) { train::mixer_maker(mixer)(args, Rng(0)); });
}

void check_umoe(const Loaded& config) {
  const Model& model = config.experiment.model();
  if (!model.ffn().has_umoe()) return;
  for (int i = 0; i < model.mixer_size(); ++i) {
    const std::string path = element_path("model.mixer", i);
    if (!model.mixer(i).has_umoe())
      refuse(config, path, "is not umoe, and model.ffn.umoe runs the experts of its block's mixer.",
             "Use umoe mixers, or another feed-forward network.");
    if (model.mixer(i).umoe().experts() != model.mixer(0).umoe().experts())
      refuse(
          config, path + ".umoe.experts",
          str("is ", model.mixer(i).umoe().experts(), ", the first mixer has ", model.mixer(0).umoe().experts(), "."),
          "Give all umoe mixers the same number of experts.");
  }
  int64_t experts = model.mixer(0).umoe().experts();
  if (model.ffn().umoe().active() > experts)
    refuse(config, "model.ffn.umoe.active",
           str("is ", model.ffn().umoe().active(), ", and there are ", experts, " experts."),
           "Choose at most all of them.");
}

std::string divisors_near(int64_t n, int64_t wanted) {
  std::vector<int64_t> all;
  for (int64_t d = 1; d <= n && d <= 4096; ++d)
    if (n % d == 0) all.push_back(d);
  std::sort(all.begin(), all.end(), [&](int64_t a, int64_t b) { return std::abs(a - wanted) < std::abs(b - wanted); });
  if (all.size() > 8) all.resize(8);
  std::sort(all.begin(), all.end());
  std::string out;
  for (int64_t d : all) out += str(out.empty() ? "" : ", ", d);
  return out;
}

}  // namespace weft::config
