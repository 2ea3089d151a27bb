#include "trainers/huggingface/import.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "trainers/config/check.h"
#include "trainers/config/config_error.h"
#include "trainers/config/translate.h"
#include "trainers/huggingface/folder.h"
#include "trainers/huggingface/model_config.h"
#include "trainers/huggingface/tokenizer_files.h"
#include "trainers/run/folder.h"
#include "trainers/run/session.h"
#include "trainers/run/state.pb.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"
#include "weft/ops/elementwise.h"
#include "weft/training/training.h"

namespace weft::huggingface {

namespace {

namespace fs = std::filesystem;

std::vector<int64_t> sizes_of(const Shape& shape) { return {shape.begin(), shape.end()}; }

std::string sizes_text(const std::vector<int64_t>& sizes) {
  std::string text;
  for (int64_t size : sizes) text += str(text.empty() ? "" : ", ", size);
  return "[" + text + "]";
}

// Where parameters lie in the folder, and what there is beside them.
struct Mapping {
  struct Pair {
    std::string ours, theirs;
    Place place;
  };
  std::vector<Pair> taken;
  io::LoadReport report;
};

// With the prefix, or without it in the folder of a bare model.
std::string name_in(const Folder& folder, Family family, const std::string& name) {
  const std::string_view prefix = prefix_of(family);
  for (const std::string& form : {name, other_name(family, name)}) {
    if (form.empty() || folder.find(form)) return form.empty() ? name : form;
    const std::string bare = form.starts_with(prefix) ? form.substr(prefix.size()) : form;
    if (folder.find(bare)) return bare;
  }
  return name;
}

Mapping map_tensors(const Folder& folder, const ModelConfig& config, const config::Model& resolved,
                    const std::vector<io::NamedTensor>& model) {
  Mapping out;
  std::set<std::string> known;
  const Places places(config.family, resolved);
  for (const io::NamedTensor& ours : model) {
    const std::optional<Place> place = places.of(ours.name);
    if (!place) {
      out.report.missing.push_back(ours.name);
      continue;
    }
    if (place->is_constant) {
      out.report.loaded.push_back(ours.name);
      out.taken.push_back({ours.name, "", *place});
      continue;
    }
    const std::string theirs = name_in(folder, config.family, place->name);
    const io::TensorEntry* entry = folder.find(theirs);
    known.insert(theirs);
    const std::vector<int64_t> wanted = place->shape(sizes_of(ours.tensor.shape()));
    if (!entry) {
      out.report.missing.push_back(str(ours.name, " (", place->name, ")"));
    } else if (entry->shape != wanted) {
      out.report.mismatched.push_back(str(ours.name, " (", theirs, " is ", sizes_text(entry->shape),
                                          ", the model needs ", sizes_text(wanted), ")"));
    } else {
      out.report.loaded.push_back(ours.name);
      out.taken.push_back({ours.name, theirs, *place});
    }
  }
  for (const std::string& name : folder.tensors())
    if (!known.contains(name) && !is_ignored(config.family, name, config.model.embedding().tied()))
      out.report.unexpected.push_back(data::show_utf8(name));
  return out;
}

// Our part of their tensor, in our order.
Tensor taken_from(const Folder& folder, const Mapping::Pair& pair, const Shape& ours) {
  const Place& place = pair.place;
  if (place.is_constant) return Tensor::full(ours, place.added, kF32, Device::cpu());
  const Tensor theirs = folder.load(pair.theirs);
  Tensor out = Tensor::empty(ours, kF32, Device::cpu());
  const float* from = theirs.data<float>();
  float* to = out.mutable_data<float>();
  const int64_t rows = ours[0], columns = ours.num_elements() / std::max<int64_t>(rows, 1);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      to[r * columns + c] =
          static_cast<float>(place.factor * static_cast<double>(from[place.index(r, c, rows, columns)]) + place.added);
  return out;
}

// Letters, digits and what else a name may hold.
std::string plain_name(const std::string& path) {
  std::string name = fs::path(path).filename().string();
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_' && c != '.') c = '-';
  while (!name.empty() && name[0] == '.') name.erase(0, 1);
  return name.empty() ? "imported" : name;
}

// A tied model has one table; transformers ignores the second one where it is the same, and does not tie where it is another.
void require_one_table(const Folder& folder, const ModelConfig& config) {
  if (!config.model.embedding().tied() || !folder.find("lm_head.weight")) return;
  const Place table = *Places(config.family, config.model).of("embedding.weight");
  const std::string name = name_in(folder, config.family, table.name);
  if (!folder.find(name)) return;  // said with the others that are missing
  const Tensor a = folder.load(name), b = folder.load("lm_head.weight");
  const bool is_same = a.shape() == b.shape() && a.to_vector<float>() == b.to_vector<float>();
  WEFT_CHECK(
      is_same,
      str(folder.file(kConfigName), ": tie_word_embeddings is true, and lm_head.weight is another table than ", name),
      "set tie_word_embeddings to false, or remove lm_head.weight");
}

// Every layer has tensors of its own. A config that promises more layers would keep a machine busy before one of them is missed.
void require_layers(const Folder& folder, const ModelConfig& config, const ImportOptions& options) {
  const auto num_tensors = static_cast<int64_t>(folder.tensors().size());
  WEFT_CHECK(options.is_partial || config.model.layers() <= num_tensors,
             str(folder.file(kConfigName), ": says ", config.model.layers(), " layers, and the folder has ",
                 num_tensors, " tensors"),
             "fetch the folder again, or take what fits with --partial");
}

// An id that the tokenizer does not have is no prompt, and is never sampled.
bool has_id(const RunTokenizer& tokenizer, int32_t id) { return !tokenizer.vocab || id < *tokenizer.vocab; }

// What config.json says, else the tokenizer's own, else what transformers' class has.
std::optional<int32_t> end_of_text(const ModelConfig& model, const RunTokenizer& tokenizer) {
  for (const std::optional<int32_t>& id : {model.end_of_text, tokenizer.end_of_text, model.default_end_of_text})
    if (id && has_id(tokenizer, *id)) return id;
  return std::nullopt;
}

config::Loaded run_config(const Folder& folder, const ModelConfig& model, const RunTokenizer& tokenizer,
                          const ImportOptions& options) {
  config::Experiment e;
  e.set_name(plain_name(options.run));
  *e.mutable_model() = model.model;
  config::Data& data = *e.mutable_data();
  data.set_weights_only(true);
  *data.mutable_tokenizer() = tokenizer.config;
  if (const auto end = end_of_text(model, tokenizer); end != tokenizer.end_of_text) data.set_end_of_text(*end);
  e.mutable_train()->set_tokens(model.model.context());
  config::Loaded loaded = config::read_string(config::to_text(e), "config made of " + folder.file(kConfigName),
                                              folder.path(), options.overrides);
  loaded.own = options.own;
  config::resolve(loaded);
  config::check_end_of_text(loaded);
  if (tokenizer.vocab) config::check_end_of_text(loaded, tokenizer.name, *tokenizer.vocab);
  return loaded;
}

std::string run_state(int64_t seed) {
  train::RunState state;
  state.set_seed(static_cast<uint64_t>(seed));
  state.set_best_step(-1);
  return state.SerializeAsString();
}

}  // namespace

Imported import_folder(const ImportOptions& options) {
  // An import that was broken off has left a config without weights: the same command does it again.
  if (train::has_begun(options.run))
    throw config::ConfigError(options.run + ": holds a run already.", "Choose another folder with --out.");
  const Folder folder = Folder::open(options.folder);
  const ModelConfig model_config = read_model(folder.config(), folder.file(kConfigName));
  require_layers(folder, model_config, options);
  const RunTokenizer tokenizer = take_tokenizer(folder, model_config.family, model_config.model.vocab(), options.run);
  Imported out{.family = std::string(name_of(model_config.family)), .tokenizer = tokenizer.name};
  out.notes = model_config.notes;
  out.notes.insert(out.notes.end(), tokenizer.notes.begin(), tokenizer.notes.end());
  if (model_config.end_of_text && !has_id(tokenizer, *model_config.end_of_text))
    out.notes.push_back(
        str("eos_token_id ", *model_config.end_of_text, " is not taken: the tokenizer has ", *tokenizer.vocab, " ids"));
  else if (model_config.end_of_text && tokenizer.end_of_text && model_config.end_of_text != tokenizer.end_of_text)
    out.notes.push_back(str("id ", *model_config.end_of_text, " ends a text, as ", kConfigName,
                            " says; the tokenizer's own is ", *tokenizer.end_of_text));
  const config::Loaded config = run_config(folder, model_config, tokenizer, options);
  const LanguageModelOptions model_options = train::model_options(config, model_config.model.vocab());
  // Shapes alone first: a config may promise what no memory holds.
  const Mapping mapping = [&] {
    DryRun dry;
    const LanguageModel model(model_options, Rng(0));
    return map_tensors(folder, model_config, config.experiment.model(), model_tensors(model));
  }();
  out.report = mapping.report;
  WEFT_CHECK(options.is_partial || out.report.is_complete(),
             str(options.folder, " does not fit the model of its ", kConfigName, ": ", out.report),
             "fetch the folder again, or take what fits with --partial");
  WEFT_CHECK(!out.report.loaded.empty(), str(options.folder, ": no tensor of it fits the model: ", out.report),
             "give a folder whose names are those of transformers");
  train::check_size(model_options);
  require_one_table(folder, model_config);

  LanguageModel model(model_options, Rng(static_cast<uint64_t>(config.experiment.seed()))["model"]);
  std::map<std::string, Param*> params;
  for (const NamedParam& p : model.params()) params.emplace(p.name, p.param);
  for (const Mapping::Pair& pair : mapping.taken) {
    Param& param = *params.at(pair.ours);
    param.set_value(ops::to(taken_from(folder, pair, param.value().shape()), param.value().device()));
  }
  out.num_params = model.num_params();

  const train::RunFolder run(options.run, config.experiment, options.overrides, tokenizer.files);
  WEFT_CHECK(!run.existed(), str(options.run, ": another process has made a run there"),
             "choose another folder with --out");
  out.checkpoint = io::save_checkpoint(
      run.file("checkpoints"),
      {.model = model_tensors(model), .state = run_state(config.experiment.seed()), .config = run.config_text()});
  return out;
}

}  // namespace weft::huggingface
