// weft boost RUN [path=value]... --out CONFIG [--scan identity|removal] [--rows N] [--window W] [--heal TOKENS]: how much each layer of softmax
// attention of a trained model matters, and the config of a model in which the layers that matter least have cheaper mixers (LayerBoost, 2604.22050). It begins with
// the weights of the run and learns from it.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/command/stored_result.h"
#include "trainers/config/check.h"
#include "trainers/config/config_error.h"
#include "trainers/config/pattern.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/run/evaluate.h"
#include "trainers/run/session.h"
#include "weft/core/error.h"
#include "weft/io/files.h"
#include "weft/io/safetensors.h"
#include "weft/models/analysis.h"
#include "weft/training/training.h"

namespace weft::cli {

namespace {

struct Options {
  ConfigArguments run;
  std::string out, scan = "identity";
  int64_t rows = 8, window = 64, heal = 0;
};

enum class Use { keep, linear, identity };

struct Layer {
  int64_t number;
  double growth;  // of the loss without its attention
  Use use = Use::keep;
  std::vector<std::string> without = {};  // options of its softmax attention that the new mixer does not have
};

std::string word_of(Use use) {
  return use == Use::keep ? "softmax" : use == Use::linear ? "linear window" : "identity";
}

// Other mixers in place of softmax attention in some layers.
void replace(config::Model& model, const std::vector<Layer>& layers, int64_t window) {
  const std::vector<int> before = config::layer_mixers(model);
  std::vector<int> pattern;
  for (int64_t layer = 0; layer < model.layers(); ++layer)
    pattern.push_back(before[static_cast<size_t>(layer) % before.size()]);
  std::map<std::pair<int, Use>, int> made;  // the new mixer in place of this one
  for (const Layer& layer : layers) {
    int& mixer = pattern[static_cast<size_t>(layer.number)];
    if (layer.use == Use::keep) continue;
    const auto [known, is_new] = made.try_emplace({mixer, layer.use}, model.mixer_size());
    if (is_new) {
      const config::Softmax from = model.mixer(mixer).softmax();
      config::Replacement& to = *model.add_mixer()->mutable_replacement();
      to.set_kind(layer.use == Use::linear ? config::ReplacementKind::linear : config::ReplacementKind::identity);
      to.set_heads(from.heads());
      to.set_kv_heads(from.kv_heads());
      to.set_head_dim(from.head_dim());
      to.set_window(from.window() > 0 ? std::min(window, from.window()) : window);
      if (layer.use == Use::linear) to.set_position(from.position());
      config::fill_presets(to);
    }
    mixer = known->second;
  }
  model.clear_placement();
  model.set_pattern(fmt::format("{}", fmt::join(pattern, " ")));
}

// How much the loss grows if each token attends to itself alone: y = v in place of the layer's attention.
double growth_as_identity(const train::LoadedRun& run, const AnalysisRows& rows, int64_t layer, double loss) {
  config::Loaded config = run.config;
  replace(*config.experiment.mutable_model(), {{.number = layer, .growth = 0, .use = Use::identity}}, 1);
  const std::unique_ptr<LanguageModel> model = train::make_model(config, run.data);
  const auto file = io::SafetensorsFile::open(run.checkpoint + "/model.safetensors");
  const io::LoadReport report = io::load_into(file, model_tensors(*model), io::LoadRule::partial);
  WEFT_CHECK(report.missing.empty() && report.mismatched.empty(),
             str("boost: the values of layer ", layer, " have no place in the identity: ", to_string(report)),
             "use --scan removal");
  return analysis_loss(*model, rows) - loss;
}

// The layers of softmax attention with what the loss grows without it; the third that matters least becomes the identity, the next third
// linear. At equal growth the later layer matters less.
std::vector<Layer> planned(const train::LoadedRun& run, const AnalysisRows& rows, bool is_removal) {
  const config::Model& config = run.config.experiment.model();
  const std::vector<int> mixers = config::layer_mixers(config);
  auto has_softmax = [&](int64_t layer) {
    return config.mixer(mixers[static_cast<size_t>(layer) % mixers.size()]).has_softmax();
  };
  std::vector<Layer> layers;
  if (is_removal) {
    const auto growths = layer_sensitivity(*run.model, rows);
    for (const auto& [path, more] : growths) {
      const std::string head = "model.layers.";
      const int64_t number = std::stoll(path.substr(path.find(head) + head.size()));
      if (has_softmax(number)) layers.push_back({number, more});
    }
  } else {
    const double loss = analysis_loss(*run.model, rows);
    for (int64_t layer = 0; layer < config.layers(); ++layer)
      if (has_softmax(layer)) layers.push_back({layer, growth_as_identity(run, rows, layer, loss)});
  }
  WEFT_CHECK(layers.size() >= 3, str("boost: the model has ", layers.size(), " layers of softmax attention"),
             "choose a run with at least three");
  std::vector<Layer*> order;
  for (Layer& layer : layers) order.push_back(&layer);
  std::sort(order.begin(), order.end(), [](const Layer* a, const Layer* b) {
    return a->growth != b->growth ? a->growth < b->growth : a->number > b->number;
  });
  const size_t third = layers.size() / 3;
  for (size_t i = 0; i < 2 * third; ++i) order[i]->use = i < third ? Use::identity : Use::linear;
  return layers;
}

// Options of softmax attention beside its sizes, which a replacement takes over.
std::vector<std::string> options_of(const config::Softmax& softmax) {
  config::Softmax plain;
  plain.set_heads(softmax.heads());
  config::fill_presets(plain);
  std::set<std::string> names;
  for (const config::Difference& d : config::differences(plain, softmax))
    names.insert(d.path.substr(0, d.path.find_first_of(".[")));
  for (const char* size : {"heads", "kv_heads", "head_dim", "window"}) names.erase(size);
  return {names.begin(), names.end()};
}

// What each replaced layer loses. Positions are not among it: the identity needs none, and linear attention has the layer's own, but alibi.
void note_options(std::vector<Layer>& layers, const config::Model& model) {
  const std::vector<int> mixers = config::layer_mixers(model);
  for (Layer& layer : layers) {
    if (layer.use == Use::keep) continue;
    const int mixer = mixers[static_cast<size_t>(layer.number) % mixers.size()];
    layer.without = options_of(model.mixer(mixer).softmax());
    std::erase(layer.without, "position");
    WEFT_CHECK(layer.use == Use::identity || model.mixer(mixer).softmax().position() != config::MixerPosition::alibi,
               str("boost: layer ", layer.number,
                   " matters little enough for linear attention over a window, which has no alibi, but its softmax "
                   "attention (model.mixer[",
                   mixer, "]) has"),
               "choose a run whose layers of softmax attention have position: model or none");
  }
}

// The run's config with other mixers in these layers, its weights to begin with and its model as teacher.
config::Experiment boosted(const train::LoadedRun& run, const std::vector<Layer>& layers, const Options& options) {
  config::Experiment e = run.config.experiment;
  replace(*e.mutable_model(), layers, options.window);
  e.set_name(e.name() + "_boosted");
  config::Start& start = *e.mutable_start();
  start.Clear();
  start.set_from(str(run.folder, "@", run.step));
  start.mutable_distill();
  config::fill_presets(start);
  if (options.heal > 0) e.mutable_train()->set_tokens(options.heal);
  return e;
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  const std::string scans[] = {"identity", "removal"};
  config::check_choice("--scan", options.scan, scans, "scan");
  const bool is_removal = options.scan == "removal";
  train::LoadedRun run = train::load_run(options.run.file(), options.run.overrides(), console, extensions);
  // The new run starts with the same data.
  config::check_end_of_text(run.config, run.data.tokenizer->name(), run.data.tokenizer->vocab_size());
  run.folder = std::filesystem::absolute(run.folder).lexically_normal().string();
  const AnalysisRows rows = train::analysis_rows(run.data, run.model->options().context, options.rows);
  std::vector<Layer> layers = planned(run, rows, is_removal);
  note_options(layers, run.config.experiment.model());
  config::Loaded config;
  config.experiment = boosted(run, layers, options);
  config.own = extensions;
  config::resolve(config);  // what cannot be trained is refused here
  io::write_file_atomically(options.out, config::to_text(config.experiment));

  nlohmann::ordered_json table = nlohmann::ordered_json::array();
  std::string text = fmt::format("{:>5}  {:>16}  mixer\n", "layer", is_removal ? "loss without" : "loss as identity");
  for (const Layer& layer : layers) {
    table.push_back({{"layer", layer.number},
                     {"loss_growth", layer.growth},
                     {"mixer", word_of(layer.use)},
                     {"options_left_out", layer.without}});
    text += fmt::format("{:>5}  {:>+16.4f}  {}{}\n", layer.number, layer.growth, word_of(layer.use),
                        layer.without.empty() ? "" : fmt::format(", without {}", fmt::join(layer.without, ", ")));
  }
  text += fmt::format("config {}: weft train {}\n", options.out, options.out);
  console.result(console.is_json() ? json_text(nlohmann::ordered_json{{"run", run.folder},
                                                                      {"step", run.step},
                                                                      {"scan", options.scan},
                                                                      {"layers", table},
                                                                      {"config", options.out}})
                                   : text);
  return kSuccess;
}

}  // namespace

Action define_boost(Arguments& app) {
  auto options = std::make_shared<Options>();
  options->run.add_run(app);
  app.add_option("--out", options->out, "Config to write").required().type_name("CONFIG");
  app.add_option(
         "--scan", options->scan,
         "What stands for a layer while its loss is taken: identity (y = v) or removal (its heads write nothing)")
      .capture_default_str()
      .type_name("SCAN");
  app.add_option("--rows", options->rows, "Validation rows that the loss without a layer is taken on")
      .range(int64_t{1}, int64_t{65536})
      .capture_default_str()
      .type_name("N")
      .takes_size();
  app.add_option("--window", options->window,
                 "Tokens that a layer of linear attention sees, or its own window if that is smaller")
      .range(int64_t{1}, int64_t{2147483647})
      .capture_default_str()
      .type_name("W")
      .takes_size();
  app.add_option("--heal", options->heal, "Tokens to train on; default: as many as the run was trained on")
      .range(int64_t{1}, int64_t{1} << 50)
      .type_name("TOKENS")
      .takes_size();
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
