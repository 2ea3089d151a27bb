// What transformers' config.json says, field by field, with the defaults that its classes have.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "trainers/huggingface/json_fields.h"
#include "trainers/huggingface/kimi.h"
#include "trainers/huggingface/model_config.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"

namespace weft::huggingface {

namespace {

using nlohmann::json;

constexpr int64_t kMaxSize = 1 << 24;  // of a width; the tensors of a file are looked at before anything is made
constexpr int64_t kMaxLayers = 4096;
constexpr uint64_t kMaxId = (uint64_t{1} << 31) - 1;

// Of those that are made after llama, where config.json leaves a field out.
struct Defaults {
  int64_t vocab, ffn, kv_heads, head_dim, positions;  // 0: heads; dim / heads
};
Defaults defaults_of(Family family) {
  switch (family) {
    case Family::llama: return {32000, 11008, 0, 0, 2048};
    case Family::qwen2: return {151936, 22016, 32, 0, 32768};
    case Family::qwen3: return {151936, 22016, 32, 128, 32768};
    case Family::qwen3_next: return {151936, 5632, 2, 256, 32768};
    case Family::kimi_linear:
    case Family::gpt2: break;
  }
  return {};
}

// Fields of no meaning for the numbers of a forward.
const std::vector<std::string>& plain_fields() {
  static const std::vector<std::string>& fields = *new std::vector<std::string>{"architectures",
                                                                                "model_type",
                                                                                "transformers_version",
                                                                                "torch_dtype",
                                                                                "dtype",
                                                                                "use_cache",
                                                                                "bos_token_id",
                                                                                "eos_token_id",
                                                                                "pad_token_id",
                                                                                "_name_or_path",
                                                                                "initializer_range",
                                                                                "return_dict",
                                                                                "output_attentions",
                                                                                "output_hidden_states",
                                                                                "n_ctx",
                                                                                "task_specific_params",
                                                                                "auto_map",
                                                                                "id2label",
                                                                                "label2id",
                                                                                "pretraining_tp"};
  return fields;
}

void read_scaling(JsonFields& fields, const std::string& type, int64_t context, config::RopeScaling& scaling) {
  constexpr double kMost = 1e9;
  auto integer = [&](const char* key, int64_t missing) { return fields.integer(key, missing); };
  if (type == "linear") {
    scaling.mutable_linear()->set_factor(fields.number("factor", 1, 1, kMost));
  } else if (type == "llama3") {
    config::Llama3Scaling& s = *scaling.mutable_llama3();
    s.set_factor(fields.number("factor", 8, 1, kMost));
    s.set_low_freq_factor(fields.number("low_freq_factor", 1, 0, kMost));
    s.set_high_freq_factor(fields.number("high_freq_factor", 4, 0, kMost));
    s.set_original_context(integer("original_max_position_embeddings", 8192));
  } else if (type == "yarn") {
    config::YarnScaling& s = *scaling.mutable_yarn();
    s.set_factor(fields.number("factor", 1, 1, kMost));
    s.set_original_context(integer("original_max_position_embeddings", context));
    s.set_beta_fast(fields.number("beta_fast", 32, 0, kMost));
    s.set_beta_slow(fields.number("beta_slow", 1, 0, kMost));
    if (fields.find("attention_factor")) s.set_attention_factor(fields.number("attention_factor", 1, 0, kMost));
    fields.expect_flag("truncate", true);
    for (const char* key : {"mscale", "mscale_all_dim"})
      WEFT_CHECK(!fields.find(key), str(fields.where(), ": ", key, " is set, which Weft does not have"),
                 "use attention_factor");
  } else {
    fail(str(fields.where(), ": rope_type is \"", data::show_utf8(type), "\", which Weft does not have"),
         "known are default, linear, llama3 and yarn");
  }
}

// Older files have rope_theta and rope_scaling, newer ones rope_parameters with both.
void read_rope(JsonFields& fields, int64_t context, double plain_fraction, config::Rope& rope) {
  const json* parameters = fields.find("rope_parameters");
  const json* scaling = fields.find("rope_scaling");
  double base = fields.number("rope_theta", 10000, 1.0001, 1e15),
         fraction = fields.number("partial_rotary_factor", plain_fraction, 1e-6, 1);
  for (const auto& [object, key] : {std::pair(scaling, "rope_scaling"), std::pair(parameters, "rope_parameters")}) {
    if (!object) continue;
    JsonFields inner(*object, fields.where() + ": " + key);
    base = inner.number("rope_theta", base, 1.0001, 1e15);
    fraction = inner.number("partial_rotary_factor", fraction, 1e-6, 1);
    const std::string old_type = inner.text("type", "default"), type = inner.text("rope_type", old_type);
    rope.clear_scaling();
    if (type != "default") read_scaling(inner, type, context, *rope.mutable_scaling());
    for (const std::string& name : inner.unread())
      fail(str(inner.where(), ": the field ", data::show_utf8(name), " is unknown"),
           "Weft would not know what to do with it");
  }
  WEFT_CHECK(plain_fraction != 1 || fraction == 1,
             str(fields.where(), ": partial_rotary_factor is ", fraction, ", which models of this type do not have"),
             "leave it out");
  rope.set_base(base);
  if (fraction != 1) rope.set_fraction(fraction);
}

// The layers that see `window` tokens only, as texts of model.pattern; empty: none.
std::string windowed_layers(JsonFields& fields, int64_t layers, int64_t& window) {
  const bool uses = fields.flag("use_sliding_window", false);
  WEFT_CHECK(!uses || fields.find("sliding_window"),
             str(fields.where(), ": use_sliding_window is true, and there is no sliding_window"), "give it, in tokens");
  window = fields.integer("sliding_window", 0);
  const int64_t first = fields.integer("max_window_layers", 28, 0);
  const json* types = fields.find("layer_types");
  std::string pattern;
  bool has_any = false;
  if (types)
    WEFT_CHECK(types->is_array() && static_cast<int64_t>(types->size()) == layers,
               str(fields.where(), ": layer_types is no list of ", layers, " texts, one per layer"),
               "give each of num_hidden_layers its type");
  for (int64_t i = 0; i < layers; ++i) {
    bool is_windowed = uses && i >= first;
    if (types) {
      const json& type = types->at(static_cast<size_t>(i));
      const bool is_full = type == "full_attention", is_sliding = type == "sliding_attention";
      WEFT_CHECK(is_full || is_sliding,
                 str(fields.where(),
                     ": layer_types names another type than full_attention and "
                     "sliding_attention for layer ",
                     i),
                 "Weft knows these two here");
      WEFT_CHECK(is_full || uses,
                 str(fields.where(), ": layer ", i,
                     " is sliding_attention, and use_sliding_window is not "
                     "true"),
                 "set use_sliding_window and sliding_window");
      is_windowed = is_sliding;
    }
    pattern += str(i ? " " : "", is_windowed ? 1 : 0);
    has_any = has_any || is_windowed;
  }
  return has_any ? pattern : "";
}

// By layer: whether mlp_only_layers names it.
std::vector<bool> dense_layers(JsonFields& fields, int64_t layers) {
  std::vector<bool> is_dense(static_cast<size_t>(layers));
  const json* list = fields.find("mlp_only_layers");
  if (!list) return is_dense;
  WEFT_CHECK(list->is_array() && static_cast<int64_t>(list->size()) <= layers,
             str(fields.where(), ": mlp_only_layers is no list of at most ", layers, " layers"),
             "name each layer once, from 0");
  for (const json& entry : *list) {
    const int64_t layer = entry.is_number_integer() ? entry.get<int64_t>() : -1;
    WEFT_CHECK(layer >= 0 && layer < layers,
               str(fields.where(), ": mlp_only_layers has an entry that is no layer from 0 to ", layers - 1),
               "name layers that the model has");
    is_dense[static_cast<size_t>(layer)] = true;
  }
  return is_dense;
}

// The linear layers of Qwen3-Next, and the gate of the others.
void read_next(JsonFields& fields, config::Model& m) {
  config::Softmax& softmax = *m.mutable_mixer(0)->mutable_softmax();
  WEFT_CHECK(!softmax.bias(), str(fields.where(), ": attention_bias is true, which Weft does not have beside the gate"),
             "only attention_bias = false is known here");
  softmax.add_gate()->set_position(config::GatePosition::out);
  const int64_t experts = fields.integer("num_experts", 512, 0), step = fields.integer("decoder_sparse_step", 1);
  const std::vector<bool> listed = dense_layers(fields, m.layers());
  const json* types = fields.find("layer_types");
  const int64_t interval = fields.integer("full_attention_interval", 4);
  WEFT_CHECK(!types || (types->is_array() && static_cast<int64_t>(types->size()) == m.layers()),
             str(fields.where(), ": layer_types is no list of ", m.layers(), " texts, one per layer"),
             "give each of num_hidden_layers its type");
  std::string pattern;
  for (int64_t i = 0; i < m.layers(); ++i) {
    const bool is_dense = experts == 0 || (i + 1) % step != 0 || listed[static_cast<size_t>(i)];
    WEFT_CHECK(is_dense, str(fields.where(), ": layer ", i, " has ", experts, " experts, which Weft does not import"),
               "known are feed-forward networks without experts: num_experts = 0, or all layers in mlp_only_layers");
    bool is_full = (i + 1) % interval == 0;
    if (types) {
      const json& type = types->at(static_cast<size_t>(i));
      is_full = type == "full_attention";
      WEFT_CHECK(is_full || type == "linear_attention",
                 str(fields.where(),
                     ": layer_types names another type than full_attention and linear_attention for layer ", i),
                 "Weft knows these two here");
    }
    pattern += str(i ? " " : "", is_full ? 0 : 1);
  }
  fields.ignore({"moe_intermediate_size", "shared_expert_intermediate_size", "num_experts_per_tok", "norm_topk_prob",
                 "output_router_logits", "router_aux_loss_coef"});
  config::Delta delta;
  delta.set_decay(config::DeltaDecay::head);
  delta.set_heads(fields.integer("linear_num_value_heads", 32, 1, kMaxSize));
  delta.set_key_heads(fields.integer("linear_num_key_heads", 16, 1, kMaxSize));
  delta.set_head_dim(fields.integer("linear_key_head_dim", 128, 1, kMaxSize));
  delta.set_value_dim(fields.integer("linear_value_head_dim", 128, 1, kMaxSize));
  delta.set_kernel(fields.integer("linear_conv_kernel_dim", 4, 1, 1024));
  delta.set_norm_eps(m.norm().rms().eps());
  WEFT_CHECK(delta.heads() % delta.key_heads() == 0,
             str(fields.where(), ": linear_num_key_heads ", delta.key_heads(),
                 " does not divide linear_num_value_heads ", delta.heads()),
             "give a divisor");
  if (pattern.find('0') == std::string::npos) m.clear_mixer();
  if (pattern.find('1') == std::string::npos) return;
  *m.add_mixer()->mutable_delta() = delta;
  if (m.mixer_size() > 1) m.set_pattern(pattern);
}

void note_dropout(JsonFields& fields, const std::vector<std::string>& keys, std::vector<std::string>& notes) {
  for (const std::string& key : keys)
    if (const double rate = fields.number(key, 0, 0, 1); rate > 0)
      notes.push_back(str(key, " ", rate, " is not taken: say dropout in the config of a training"));
}

void read_llama(JsonFields& fields, Family family, ModelConfig& out) {
  const Defaults defaults = defaults_of(family);
  config::Model& m = out.model;
  m.set_vocab(fields.integer("vocab_size", defaults.vocab, 2));
  m.set_dim(fields.integer("hidden_size", 4096, 1, kMaxSize));
  m.set_layers(fields.integer("num_hidden_layers", 32, 1, kMaxLayers));
  m.set_context(fields.integer("max_position_embeddings", defaults.positions));
  m.mutable_embedding()->set_tied(fields.flag("tie_word_embeddings", false));
  m.mutable_norm()->mutable_rms()->set_eps(fields.number("rms_norm_eps", 1e-6, 1e-30, 1));
  read_rope(fields, m.context(), family == Family::qwen3_next ? 0.25 : 1, *m.mutable_position()->mutable_rope());
  m.mutable_ffn()->mutable_swiglu()->set_hidden(fields.integer("intermediate_size", defaults.ffn, 1, kMaxSize));
  fields.expect_text("hidden_act", "silu", {"silu", "swish"});
  fields.expect_flag("mlp_bias", false);
  config::Softmax& softmax = *m.add_mixer()->mutable_softmax();
  softmax.set_heads(fields.integer("num_attention_heads", 32, 1, kMaxSize));
  softmax.set_kv_heads(
      fields.integer("num_key_value_heads", defaults.kv_heads ? defaults.kv_heads : softmax.heads(), 1, kMaxSize));
  const bool divides = m.dim() % softmax.heads() == 0;
  const int64_t head_dim = fields.integer("head_dim",
                                          defaults.head_dim ? defaults.head_dim
                                          : divides         ? m.dim() / softmax.heads()
                                                            : 0,
                                          1, kMaxSize);
  WEFT_CHECK(head_dim > 0,
             str(fields.where(), ": num_attention_heads ", softmax.heads(), " does not divide hidden_size ", m.dim(),
                 ", and there is no head_dim"),
             "give head_dim");
  softmax.set_head_dim(head_dim);
  if (family == Family::qwen2) softmax.set_input_bias(true);
  else softmax.set_bias(fields.flag("attention_bias", false));
  softmax.set_qk_norm(family == Family::qwen3 || family == Family::qwen3_next);
  note_dropout(fields, {"attention_dropout"}, out.notes);
  if (family == Family::llama) return;
  if (family == Family::qwen3_next) return read_next(fields, m);
  int64_t window = 0;
  const std::string pattern = windowed_layers(fields, m.layers(), window);
  if (pattern.empty()) return;
  if (pattern.find('0') == std::string::npos) {
    m.mutable_mixer(0)->mutable_softmax()->set_window(window);
    return;
  }
  *m.add_mixer() = config::Mixer(m.mixer(0));
  m.mutable_mixer(1)->mutable_softmax()->set_window(window);
  m.set_pattern(pattern);
}

void read_gpt2(JsonFields& fields, ModelConfig& out) {
  config::Model& m = out.model;
  m.set_vocab(fields.integer("vocab_size", 50257, 2));
  m.set_dim(fields.integer("n_embd", 768, 1, kMaxSize));
  m.set_layers(fields.integer("n_layer", 12, 1, kMaxLayers));
  m.set_context(fields.integer("n_positions", 1024));
  m.mutable_embedding()->set_tied(fields.flag("tie_word_embeddings", true));
  m.mutable_norm()->mutable_layer()->set_eps(fields.number("layer_norm_epsilon", 1e-5, 1e-30, 1));
  m.mutable_position()->mutable_learned();
  config::Gelu& ffn = *m.mutable_ffn()->mutable_gelu();
  ffn.set_hidden(fields.integer("n_inner", 4 * m.dim(), 1, kMaxSize));
  ffn.set_bias(true);
  fields.expect_text("activation_function", "gelu_new", {"gelu_new", "gelu_pytorch_tanh"});
  config::Softmax& softmax = *m.add_mixer()->mutable_softmax();
  softmax.set_heads(fields.integer("n_head", 12, 1, kMaxSize));
  softmax.set_bias(true);
  fields.expect_flag("scale_attn_weights", true);
  fields.expect_flag("scale_attn_by_inverse_layer_idx", false);
  fields.expect_flag("add_cross_attention", false);
  fields.ignore({"reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation",
                 "summary_proj_to_labels", "summary_first_dropout"});
  note_dropout(fields, {"attn_pdrop", "embd_pdrop", "resid_pdrop"}, out.notes);
}

// An id beyond a small vocabulary never comes.
std::optional<int32_t> default_end_of_text(Family family, int64_t vocab) {
  const int32_t id = family == Family::llama         ? 2
                     : family == Family::gpt2        ? 50256
                     : family == Family::kimi_linear ? 163586
                                                     : -1;
  return id >= 0 && id < vocab ? std::optional(id) : std::nullopt;
}

// An id, or a list of them, of which the first is taken; null is none.
void read_end_of_text(const json& config, const std::string& where, ModelConfig& out) {
  constexpr const char* kKey = "eos_token_id";
  if (!config.contains(kKey)) {
    out.default_end_of_text = default_end_of_text(out.family, out.model.vocab());
    return;
  }
  const json& given = config[kKey];
  if (given.is_null()) return;
  const json list = given.is_array() ? given : json::array({given});
  for (const json& id : list) {
    const bool is_id = id.is_number_unsigned() && id.get<uint64_t>() <= kMaxId;
    WEFT_CHECK(is_id, str(where, ": ", kKey, " is ", data::show_utf8(given.dump().substr(0, 100))),
               str("give an id from 0 to ", kMaxId, ", a list of ids, or null"));
  }
  if (list.empty()) return;
  const auto first = list[0].get<int64_t>();
  if (first >= out.model.vocab()) {
    out.notes.push_back(str(kKey, " ", first, " is not taken: the model has ", out.model.vocab(), " ids"));
    return;
  }
  out.end_of_text = static_cast<int32_t>(first);
  if (list.size() > 1) out.notes.push_back(str("of ", list.size(), " ids in ", kKey, " the first is taken, ", first));
}

Family family_of(JsonFields& fields) {
  const std::string type = fields.text("model_type", "");
  for (Family family : kFamilies)
    if (name_of(family) == type) return family;
  const bool has_experts = type.ends_with("_moe") || type == "mixtral" || type.starts_with("deepseek_v");
  fail(str(fields.where(), ": model_type is \"", data::show_utf8(type), "\", which Weft does not import",
           has_experts ? ": its feed-forward networks have experts" : ""),
       "known are llama, qwen2, qwen3, qwen3_next, kimi_linear and gpt2");
}

}  // namespace

ModelConfig read_model(const json& config, const std::string& where) {
  JsonFields fields(config, where);
  ModelConfig out{.family = family_of(fields)};
  const json* quantised = fields.find("quantization_config");
  WEFT_CHECK(!quantised, str(where, ": has a quantization_config"),
             "give the folder of the model that is not quantised");
  if (out.family == Family::gpt2) read_gpt2(fields, out);
  else if (out.family == Family::kimi_linear) read_kimi(fields, out);
  else read_llama(fields, out.family, out);
  read_end_of_text(config, where, out);
  fields.ignore(plain_fields());
  for (const std::string& key : fields.unread())
    out.notes.push_back(str("field ", data::show_utf8(key), " of config.json is not read"));
  return out;
}

}  // namespace weft::huggingface
