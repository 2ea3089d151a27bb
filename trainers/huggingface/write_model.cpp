// A model as config.json. What is written is read again: where that gives another model, the field that differs has no form there.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "trainers/config/config_error.h"
#include "trainers/config/pattern.h"
#include "trainers/huggingface/folder.h"
#include "trainers/huggingface/kimi.h"
#include "trainers/huggingface/model_config.h"

namespace weft::huggingface {

namespace {

using Json = nlohmann::ordered_json;
using config::ConfigError;

constexpr const char* kForms =
    "A folder can hold Llama, Qwen-2 and Qwen-3 (softmax, rope, rms norm, swiglu), Qwen3-Next (delta with a decay per "
    "head, and softmax with qk_norm and a gate on its output), Kimi-Linear (delta with a decay per channel, and mla, "
    "position none) and GPT-2 (softmax with bias, learned positions, layer norm, gelu with bias).";

Json scaling_of(const config::Rope& rope) {
  const config::RopeScaling& s = rope.scaling();
  Json out{{"rope_type", "default"}};
  if (s.has_linear()) out = {{"rope_type", "linear"}, {"factor", s.linear().factor()}};
  if (s.has_llama3())
    out = {{"rope_type", "llama3"},
           {"factor", s.llama3().factor()},
           {"low_freq_factor", s.llama3().low_freq_factor()},
           {"high_freq_factor", s.llama3().high_freq_factor()},
           {"original_max_position_embeddings", s.llama3().original_context()}};
  if (s.has_yarn()) {
    out = {{"rope_type", "yarn"},
           {"factor", s.yarn().factor()},
           {"original_max_position_embeddings", s.yarn().original_context()},
           {"beta_fast", s.yarn().beta_fast()},
           {"beta_slow", s.yarn().beta_slow()}};
    if (s.yarn().has_attention_factor()) out["attention_factor"] = s.yarn().attention_factor();
  }
  return out;
}

// Both the older and the newer way, for readers of either.
void write_rope(const config::Rope& rope, Family family, Json& out) {
  Json scaling = scaling_of(rope);
  out["rope_theta"] = rope.base();
  out["rope_scaling"] = rope.has_scaling() ? scaling : Json();
  scaling["rope_theta"] = rope.base();
  if (family == Family::qwen3_next) out["partial_rotary_factor"] = scaling["partial_rotary_factor"] = rope.fraction();
  out["rope_parameters"] = scaling;
}

// Layers of one kind of mixer, or of two that differ by the window alone.
void write_windows(const config::Model& m, Json& out) {
  int64_t window = 0, first = m.layers();
  Json types = Json::array();
  const std::vector<int> mixers = config::layer_mixers(m);
  for (int64_t i = 0; i < m.layers(); ++i) {
    const config::Softmax& softmax = m.mixer(mixers[static_cast<size_t>(i) % mixers.size()]).softmax();
    types.push_back(softmax.has_window() ? "sliding_attention" : "full_attention");
    if (!softmax.has_window()) continue;
    window = softmax.window();
    first = std::min(first, i);
  }
  out["use_sliding_window"] = window > 0;
  out["sliding_window"] = window > 0 ? Json(window) : Json();
  out["max_window_layers"] = first;
  out["layer_types"] = types;
}

// A model of recurrences alone has none, and says the heads of a softmax that is not there.
const config::Softmax& first_softmax(const config::Model& m) {
  for (const config::Mixer& mixer : m.mixer())
    if (mixer.has_softmax()) return mixer.softmax();
  static const config::Softmax& none = *[] {
    auto* made = new config::Softmax;
    made->set_heads(1), made->set_kv_heads(1), made->set_head_dim(2);
    return made;
  }();
  return none;
}

void write_next(const config::Model& m, Json& out) {
  Json types = Json::array(), dense = Json::array();
  const std::vector<int> mixers = config::layer_mixers(m);
  for (int64_t i = 0; i < m.layers(); ++i) {
    const config::Mixer& mixer = m.mixer(mixers[static_cast<size_t>(i) % mixers.size()]);
    types.push_back(mixer.has_delta() ? "linear_attention" : "full_attention");
    dense.push_back(i);
    if (!mixer.has_delta()) continue;
    const config::Delta& delta = mixer.delta();
    out["linear_num_value_heads"] = delta.heads();
    out["linear_num_key_heads"] = delta.key_heads();
    out["linear_key_head_dim"] = delta.head_dim();
    out["linear_value_head_dim"] = delta.value_dim();
    out["linear_conv_kernel_dim"] = delta.kernel();
  }
  out["layer_types"] = types;
  out["num_experts"] = 0;
  out["mlp_only_layers"] = dense;
}

Json llama_config(const config::Model& m, Family family, int64_t vocab) {
  const config::Softmax& softmax = first_softmax(m);
  const char* architecture = family == Family::llama        ? "LlamaForCausalLM"
                             : family == Family::qwen2      ? "Qwen2ForCausalLM"
                             : family == Family::qwen3_next ? "Qwen3NextForCausalLM"
                                                            : "Qwen3ForCausalLM";
  Json out{{"architectures", {architecture}},
           {"model_type", name_of(family)},
           {"vocab_size", vocab},
           {"hidden_size", m.dim()},
           {"intermediate_size", m.ffn().swiglu().hidden()},
           {"num_hidden_layers", m.layers()},
           {"num_attention_heads", softmax.heads()},
           {"num_key_value_heads", softmax.kv_heads()},
           {"head_dim", softmax.head_dim()},
           {"hidden_act", "silu"},
           {"max_position_embeddings", m.context()},
           {"initializer_range", m.init().std()},
           {"rms_norm_eps", m.norm().rms().eps()},
           {"tie_word_embeddings", m.embedding().tied()},
           {"attention_dropout", 0.0}};
  if (family != Family::qwen2) out["attention_bias"] = softmax.bias();
  if (family == Family::llama) out["mlp_bias"] = false;
  else if (family == Family::qwen3_next) write_next(m, out);
  else write_windows(m, out);
  write_rope(m.position().rope(), family, out);
  return out;
}

Json gpt2_config(const config::Model& m, int64_t vocab) {
  return {{"architectures", {"GPT2LMHeadModel"}},
          {"model_type", "gpt2"},
          {"vocab_size", vocab},
          {"n_positions", m.context()},
          {"n_embd", m.dim()},
          {"n_layer", m.layers()},
          {"n_head", m.mixer(0).softmax().heads()},
          {"n_inner", m.ffn().gelu().hidden()},
          {"activation_function", "gelu_new"},
          {"resid_pdrop", 0.0},
          {"embd_pdrop", 0.0},
          {"attn_pdrop", 0.0},
          {"layer_norm_epsilon", m.norm().layer().eps()},
          {"initializer_range", m.init().std()},
          {"scale_attn_weights", true},
          {"scale_attn_by_inverse_layer_idx", false},
          {"tie_word_embeddings", m.embedding().tied()}};
}

std::string_view kind_of(const config::Mixer& mixer) {
  const auto* kind = mixer.GetReflection()->GetOneofFieldDescriptor(mixer, mixer.GetDescriptor()->oneof_decl(0));
  return kind ? std::string_view(kind->name()) : "nothing";
}

Family family_of(const config::Model& m) {
  auto has_decay = [](const config::Mixer& x, config::DeltaDecay::Value decay) {
    return x.has_delta() && x.delta().decay() == decay;
  };
  auto is_softmax = [](const config::Mixer& x) { return x.has_softmax(); };
  auto is_kimi = [&](const config::Mixer& x) { return x.has_mla() || has_decay(x, config::DeltaDecay::channel); };
  auto is_known = [&](const config::Mixer& x) {
    return is_softmax(x) || is_kimi(x) || has_decay(x, config::DeltaDecay::head);
  };
  const auto odd = std::find_if_not(m.mixer().begin(), m.mixer().end(), is_known);
  if (odd != m.mixer().end())
    throw ConfigError(str("model.mixer: ", kind_of(*odd), " has no form in a Hugging Face folder."), kForms);
  if (std::any_of(m.mixer().begin(), m.mixer().end(), is_kimi)) {
    const auto other = std::find_if_not(m.mixer().begin(), m.mixer().end(), is_kimi);
    if (other != m.mixer().end())
      throw ConfigError(str("model.mixer: ", kind_of(*other),
                            " beside mla or a delta with a decay per channel has no form in a Hugging Face folder."),
                        kForms);
    return Family::kimi_linear;
  }
  if (!std::all_of(m.mixer().begin(), m.mixer().end(), is_softmax)) return Family::qwen3_next;
  if (m.position().has_learned()) return Family::gpt2;
  if (m.mixer(0).softmax().qk_norm()) return m.mixer(0).softmax().gate_size() > 0 ? Family::qwen3_next : Family::qwen3;
  const bool has_window =
      std::any_of(m.mixer().begin(), m.mixer().end(), [](const auto& x) { return x.softmax().has_window(); });
  return m.mixer(0).softmax().input_bias() || has_window ? Family::qwen2 : Family::llama;
}

void require_kinds(const config::Model& m, Family family) {
  const bool is_gpt2 = family == Family::gpt2, is_kimi = family == Family::kimi_linear;
  const std::pair<bool, const char*> kinds[] = {
      {is_gpt2 || is_kimi || m.position().has_rope(), "model.position: only rope and learned positions have"},
      {!is_kimi || m.position().has_none(), "model.position: beside mla and a decay per channel only none has"},
      {is_gpt2 ? m.norm().has_layer() : m.norm().has_rms(),
       is_gpt2 ? "model.norm: beside learned positions only layer has" : "model.norm: beside rope only rms has"},
      {is_gpt2 ? m.ffn().has_gelu() : m.ffn().has_swiglu(),
       is_gpt2 ? "model.ffn: beside learned positions only gelu has" : "model.ffn: beside rope only swiglu has"},
      {m.residual().has_standard(), "model.residual: only standard has"}};
  for (const auto& [is_so, what] : kinds)
    if (!is_so) throw ConfigError(str(what, " a form in a Hugging Face folder."), kForms);
}

// One mixer per layer, and without what says nothing about a trained model's logits.
void spread_out(config::Model& m) {
  const config::Model given = m;
  const std::vector<int> mixers = config::layer_mixers(given);
  m.clear_mixer();
  for (int64_t i = 0; i < given.layers(); ++i)
    *m.add_mixer() = given.mixer(mixers[static_cast<size_t>(i) % mixers.size()]);
  m.clear_pattern();
  m.clear_init();
  m.clear_placement();
  for (config::Mixer& mixer : *m.mutable_mixer()) {
    mixer.clear_preset();
    if (mixer.has_softmax()) mixer.mutable_softmax()->clear_dropout();
  }
  m.mutable_residual()->clear_preset();
  if (m.residual().has_standard()) m.mutable_residual()->mutable_standard()->clear_dropout();
}

}  // namespace

Written write_model(const config::Loaded& loaded, int64_t vocab) {
  config::Model model = loaded.experiment.model();
  model.set_vocab(vocab);
  for (config::Mixer& mixer : *model.mutable_mixer()) {
    if (mixer.has_delta()) *mixer.mutable_delta() = completed(mixer.delta(), model.dim());
    if (mixer.has_mla()) *mixer.mutable_mla() = completed(mixer.mla(), model.dim());
  }
  Written out;
  if (model.ffn().has_none())
    throw ConfigError(
        "model.ffn={none{}}: layers without a feed-forward network have no form in a Hugging Face folder.", kForms);
  out.family = family_of(model);
  require_kinds(model, out.family);
  out.config = out.family == Family::gpt2          ? gpt2_config(model, vocab)
               : out.family == Family::kimi_linear ? kimi_config(model, vocab)
                                                   : llama_config(model, out.family, vocab);
  out.config["torch_dtype"] = "float32";

  config::Loaded again;
  again.experiment = loaded.experiment;
  try {
    *again.experiment.mutable_model() = read_model(nlohmann::json::parse(out.config.dump()), kConfigName).model;
    config::fill_presets(again.experiment);
    config::fill_derived(again);
  } catch (const ConfigError&) { throw; } catch (const Error& error) {
    throw ConfigError(
        str("the model has no form in a Hugging Face folder of ", name_of(out.family), ": ", error.problem()), kForms);
  }
  config::Model back = again.experiment.model();
  spread_out(model);
  spread_out(back);
  const std::vector<config::Difference> lost = config::differences(model, back);
  if (!lost.empty())
    throw ConfigError(str("model.", lost[0].path, "=", lost[0].a.empty() ? "(not set)" : lost[0].a,
                          " has no form in a Hugging Face folder: ", name_of(out.family), " has ",
                          lost[0].b.empty() ? "nothing there" : lost[0].b, "."),
                      kForms);
  return out;
}

}  // namespace weft::huggingface
