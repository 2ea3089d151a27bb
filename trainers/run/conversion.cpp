#include "trainers/run/conversion.h"

#include <algorithm>
#include <map>
#include <set>

#include "trainers/config/check.h"
#include "trainers/config/config_error.h"
#include "trainers/config/translate.h"
#include "trainers/run/folder.h"
#include "trainers/run/session.h"
#include "trainers/run/state.pb.h"
#include "weft/core/error.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"
#include "weft/models/convert.h"
#include "weft/ops/elementwise.h"
#include "weft/training/training.h"

namespace weft::train {

namespace {

using config::ConfigError;

std::vector<config::Softmax*> softmax_mixers(config::Model& model) {
  std::vector<config::Softmax*> out;
  for (config::Mixer& mixer : *model.mutable_mixer())
    if (mixer.has_softmax()) out.push_back(mixer.mutable_softmax());
  if (out.empty()) throw ConfigError("model.mixer: no layer has softmax attention.", "Convert a run that has some.");
  return out;
}

void add_gates(config::Model& model) {
  for (config::Softmax* softmax : softmax_mixers(model)) {
    for (const config::Gate& gate : softmax->gate())
      if (gate.position() == config::GatePosition::out)
        throw ConfigError("model.mixer: a gate on the heads' output is there already.", "Train the run as it is.");
    softmax->add_gate()->set_position(config::GatePosition::out);
  }
}

void add_mixtures(config::Model& model) {
  for (config::Softmax* softmax : softmax_mixers(model)) {
    if (softmax->has_head_mixture())
      throw ConfigError("model.mixer: a mixture of heads is there already.", "Train the run as it is.");
    if (softmax->heads() < 4)
      throw ConfigError(str("model.mixer: a mixture of ", softmax->heads(), " heads."),
                        "Convert a run with 4 heads or more.");
    config::HeadMixture& mixture = *softmax->mutable_head_mixture();
    mixture.set_shared(softmax->heads() / 2);
    mixture.set_active((softmax->heads() - mixture.shared()) / 2);
    mixture.set_query_norm(true);
  }
}

void add_residual(config::Model& model) {
  if (!model.residual().has_standard())
    throw ConfigError("model.residual: is another than standard already.", "Train the run as it is.");
  const double dropout = model.residual().standard().dropout();
  model.mutable_residual()->Clear();
  model.mutable_residual()->mutable_delta()->set_dropout(dropout);
}

void replace_by_slots(config::Model& model, int64_t slots) {
  softmax_mixers(model);
  for (config::Mixer& mixer : *model.mutable_mixer()) {
    if (!mixer.has_softmax()) continue;
    const int64_t heads = mixer.softmax().heads();
    mixer.Clear();
    mixer.mutable_gated_slots()->set_heads(heads);
    mixer.mutable_gated_slots()->set_slots(slots);
  }
}

// The run's config with the new part, and weights in place of data.
config::Loaded converted_config(const LoadedRun& run, const ConversionOptions& options) {
  config::Experiment e = run.config.experiment;
  config::Model& model = *e.mutable_model();
  model.set_vocab(run.model->options().vocab);
  switch (options.kind) {
    case ConversionKind::gates: add_gates(model); break;
    case ConversionKind::moh: add_mixtures(model); break;
    case ConversionKind::delta_residual: add_residual(model); break;
    case ConversionKind::gated_slots: replace_by_slots(model, options.slots); break;
  }
  config::Data data;
  if (e.data().has_task()) data.mutable_tokenizer()->mutable_ids();
  else *data.mutable_tokenizer() = e.data().tokenizer();
  if (e.data().has_end_of_text()) data.set_end_of_text(e.data().end_of_text());
  data.set_first_token(e.data().first_token());
  data.set_weights_only(true);
  *e.mutable_data() = data;
  e.clear_start();
  config::Loaded out =
      config::read_string(config::to_text(e), "config of the converted run", run.folder, options.overrides);
  out.own = options.own;
  config::resolve(out);
  return out;
}

void set_values(const Param& from, Param& to) {
  to.set_value(ops::to(ops::cast(from.value(), kF32), to.value().device()));
}

// By name and shape.
Converted take(const LanguageModel& from, LanguageModel& to) {
  Converted out;
  std::map<std::string, const Param*> theirs;
  for (const NamedParam& p : from.params()) theirs[p.name] = p.param;
  for (const NamedParam& p : to.params()) {
    const auto found = theirs.find(p.name);
    if (found == theirs.end() || found->second->value().shape() != p.param->value().shape()) {
      out.fresh.push_back(p.name);
      continue;
    }
    set_values(*found->second, *p.param);
    out.taken.push_back(p.name);
    theirs.erase(found);
  }
  for (const auto& [name, param] : theirs) out.left.push_back(name);
  out.num_params = to.num_params();
  return out;
}

// 1/2 = sigmoid(0) of what a projection gives that is twice as large, with the adapter that adds to it and without its bias.
void open_gates(LanguageModel& model, const std::vector<std::string>& fresh) {
  constexpr std::string_view kMixer = ".mixer.", kGate = ".mixer.gate_out.";
  std::map<std::string, Param*> params;
  for (const NamedParam& p : model.params()) params[p.name] = p.param;
  std::set<std::string> mixers;
  for (const std::string& name : fresh) {
    const size_t at = name.find(kGate);
    if (at == std::string::npos) continue;
    mixers.insert(name.substr(0, at + kMixer.size()));
    Param& gate = *params.at(name);
    if (name.ends_with("project.weight"))
      gate.set_value(Tensor::zeros(gate.value().shape(), kF32, gate.value().device()));
  }
  for (const std::string& mixer : mixers)
    for (const char* part : {"out.weight", "out.adapter_up"})
      if (const auto out = params.find(mixer + part); out != params.end())
        out->second->set_value(ops::scale(out->second->value(), 2.0));
}

}  // namespace

Converted convert_run(const ConversionOptions& options, cli::Console& console) {
  if (io::file_exists(options.out + "/config.txtpb"))
    throw ConfigError(options.out + ": holds a run already.", "Choose another folder with --out.");
  NoGrad no_grad;
  const LoadedRun run = load_run(options.run, {}, console, options.own);
  const config::Loaded config = converted_config(run, options);
  if (config::is_overridden(config, "data.end_of_text"))
    config::check_end_of_text(config, run.data.tokenizer->name(), run.data.tokenizer->vocab_size());
  const LanguageModelOptions model_options = train::model_options(config, run.model->options().vocab);
  check_size(model_options);
  const Rng rng = Rng(static_cast<uint64_t>(config.experiment.seed()))["model"];
  LanguageModel model(model_options, rng);
  Converted out;
  if (options.kind == ConversionKind::gated_slots) {
    const ConvertedModel slots = to_gated_slots(*run.model, {.slots = options.slots}, rng);
    take(*slots.model, model);
    out = {.num_params = model.num_params(),
           .taken = slots.report.taken,
           .fresh = slots.report.fresh,
           .left = slots.report.left,
           .lost = slots.report.lost};
    out.taken.insert(out.taken.end(), slots.report.repeated.begin(), slots.report.repeated.end());
  } else {
    out = take(*run.model, model);
  }
  if (options.kind == ConversionKind::gates) open_gates(model, out.fresh);

  if (config.experiment.data().tokenizer().has_characters()) {
    io::make_folders(options.out + "/data");
    io::write_file_atomically(options.out + "/data/alphabet.txt", io::read_file(run.folder + "/data/alphabet.txt"));
  }
  const RunFolder folder(options.out, config.experiment, options.overrides);
  RunState state;
  state.set_seed(static_cast<uint64_t>(config.experiment.seed()));
  state.set_best_step(-1);
  out.checkpoint = io::save_checkpoint(
      folder.file("checkpoints"),
      {.model = model_tensors(model), .state = state.SerializeAsString(), .config = folder.config_text()});
  return out;
}

}  // namespace weft::train
