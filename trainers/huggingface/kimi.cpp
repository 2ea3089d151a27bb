#include "trainers/huggingface/kimi.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "trainers/config/pattern.h"
#include "trainers/huggingface/json_fields.h"
#include "trainers/huggingface/model_config.h"
#include "weft/core/error.h"

namespace weft::huggingface {

namespace {

using nlohmann::json;

constexpr int64_t kMaxSize = 1 << 24, kMaxLayers = 4096;
constexpr double kLatentEps = 1e-6;  // of the norms inside latent attention, whatever rms_norm_eps is

enum class Kind { attention, delta };

// Numbers of layers, counted from 1.
void set_layers(const json& list, Kind kind, const std::string& what, std::vector<std::optional<Kind>>& kinds) {
  WEFT_CHECK(list.is_array() && list.size() <= kinds.size(),
             str(what, " is no list of at most ", kinds.size(), " layers"), "name each layer once, from 1");
  for (const json& entry : list) {
    const int64_t layer = entry.is_number_integer() ? entry.get<int64_t>() : 0;
    WEFT_CHECK(layer >= 1 && layer <= static_cast<int64_t>(kinds.size()),
               str(what, " has an entry that is no layer from 1 to ", kinds.size()), "name layers that the model has");
    std::optional<Kind>& at = kinds[static_cast<size_t>(layer - 1)];
    WEFT_CHECK(!at, str(what, " names layer ", layer, ", which is named already"), "name each layer once");
    at = kind;
  }
}

// layer_types comes first, then the lists of linear_attn_config; without either every fourth layer behind the first has attention.
std::vector<Kind> layer_kinds(JsonFields& fields, const json* lists, int64_t layers) {
  std::vector<Kind> kinds;
  if (const json* types = fields.find("layer_types")) {
    WEFT_CHECK(types->is_array() && static_cast<int64_t>(types->size()) == layers,
               str(fields.where(), ": layer_types is no list of ", layers, " texts, one per layer"),
               "give each of num_hidden_layers its type");
    for (const json& type : *types) {
      WEFT_CHECK(type == "full_attention" || type == "linear_attention",
                 str(fields.where(),
                     ": layer_types names another type than full_attention and linear_attention for "
                     "layer ",
                     kinds.size()),
                 "Weft knows these two here");
      kinds.push_back(type == "full_attention" ? Kind::attention : Kind::delta);
    }
    return kinds;
  }
  const std::string where = fields.where() + ": linear_attn_config: ";
  const bool has_lists = lists && lists->contains("full_attn_layers") && lists->contains("kda_layers");
  if (!has_lists) {
    for (int64_t i = 0; i < layers; ++i) kinds.push_back(i > 0 && i % 4 == 0 ? Kind::attention : Kind::delta);
    return kinds;
  }
  std::vector<std::optional<Kind>> named(static_cast<size_t>(layers));
  set_layers(lists->at("full_attn_layers"), Kind::attention, where + "full_attn_layers", named);
  set_layers(lists->at("kda_layers"), Kind::delta, where + "kda_layers", named);
  for (const std::optional<Kind>& kind : named) {
    WEFT_CHECK(kind, str(where, "no list names layer ", kinds.size() + 1),
               "name each layer in full_attn_layers or kda_layers");
    kinds.push_back(*kind);
  }
  return kinds;
}

void refuse_experts(JsonFields& fields, int64_t layers) {
  const int64_t first = fields.integer("first_k_dense_replace", 1, 0);
  const json* types = fields.find("mlp_layer_types");
  WEFT_CHECK(!types || (types->is_array() && static_cast<int64_t>(types->size()) == layers),
             str(fields.where(), ": mlp_layer_types is no list of ", layers, " texts, one per layer"),
             "give each of num_hidden_layers its type");
  for (int64_t i = 0; i < layers; ++i)
    WEFT_CHECK(types ? types->at(static_cast<size_t>(i)) == "dense" : i < first,
               str(fields.where(), ": layer ", i, " has experts, which Weft does not import"),
               "known are feed-forward networks without experts: mlp_layer_types all dense, or first_k_dense_replace "
               "= num_hidden_layers");
  fields.ignore({"moe_intermediate_size", "num_experts", "num_experts_per_token", "num_shared_experts",
                 "num_expert_group", "topk_group", "moe_renormalize", "moe_router_activation_func", "moe_layer_freq",
                 "routed_scaling_factor", "use_grouped_topk", "output_router_logits", "topk_method"});
}

config::Mla read_mla(JsonFields& fields) {
  config::Mla mla;
  mla.set_heads(fields.integer("num_attention_heads", 32, 1, kMaxSize));
  const int64_t kv_heads = fields.integer("num_key_value_heads", mla.heads(), 1, kMaxSize);
  WEFT_CHECK(kv_heads == mla.heads(),
             str(fields.where(), ": num_key_value_heads ", kv_heads, " beside num_attention_heads ", mla.heads()),
             "latent attention has as many heads of keys as of queries");
  mla.set_head_dim(fields.integer("qk_nope_head_dim", 128, 1, kMaxSize));
  const int64_t values = fields.integer("v_head_dim", 128, 1, kMaxSize);
  WEFT_CHECK(values == mla.head_dim(),
             str(fields.where(), ": v_head_dim ", values, " beside qk_nope_head_dim ", mla.head_dim(),
                 ", which Weft does not have"),
             "only equal widths are known here");
  mla.set_rope_dim(fields.integer("qk_rope_head_dim", 64, 2, kMaxSize));
  mla.set_kv_rank(fields.integer("kv_lora_rank", 512, 1, kMaxSize));
  if (fields.find("q_lora_rank")) mla.set_q_rank(fields.integer("q_lora_rank", 0, 1, kMaxSize));
  fields.expect_flag("attention_bias", false);
  fields.expect_flag("mla_use_nope", true);
  // No rotation reads them.
  fields.ignore({"head_dim", "qk_head_dim", "rope_theta", "rope_scaling", "rope_parameters"});
  return mla;
}

config::Delta read_delta(JsonFields& fields, const json* lists) {
  config::Delta delta;
  delta.set_decay(config::DeltaDecay::channel);
  int64_t heads = fields.integer("linear_num_heads", 32, 1, kMaxSize),
          width = fields.integer("linear_head_dim", 128, 1, kMaxSize),
          kernel = fields.integer("linear_conv_kernel_dim", 4, 1, 1024);
  if (lists) {
    JsonFields inner(*lists, fields.where() + ": linear_attn_config");
    heads = inner.integer("num_heads", heads, 1, kMaxSize);
    width = inner.integer("head_dim", width, 1, kMaxSize);
    kernel = inner.integer("short_conv_kernel_size", kernel, 1, 1024);
  }
  delta.set_heads(heads), delta.set_key_heads(heads);
  delta.set_head_dim(width), delta.set_value_dim(width);
  delta.set_kernel(kernel);
  return delta;
}

Place renamed(const std::string& prefix, const char* name) { return {.name = prefix + "self_attn." + name}; }

// What scales the input of a norm whose eps is another one than theirs: c / rms(c, eps) with c and eps scaled alike.
double latent_factor(const config::Model& model) { return std::sqrt(model.norm().rms().eps() / kLatentEps); }

std::optional<Place> mla_place(const config::Model& model, const config::Mla& mla, std::string_view part,
                               const std::string& prefix) {
  const int64_t N = mla.head_dim(), C = mla.kv_rank();
  auto down = [&](int64_t offset, double factor) {
    return Place{.name = prefix + "self_attn.kv_a_proj_with_mqa.weight",
                 .offset = offset,
                 .stride = C + mla.rope_dim(),
                 .factor = factor};
  };
  auto up = [&](int64_t offset) {
    return Place{
        .name = prefix + "self_attn.kv_b_proj.weight", .groups = mla.heads(), .offset = offset, .stride = 2 * N};
  };
  if (part == "kv_down.weight") return down(0, latent_factor(model));
  if (part == "key_rope.weight") return down(C, 1);
  if (part == "key_up.weight") return up(0);
  if (part == "value_up.weight") return up(N);
  if (part == "kv_norm.weight") return renamed(prefix, "kv_a_layernorm.weight");
  if (part == "query.weight") return renamed(prefix, mla.has_q_rank() ? "q_b_proj.weight" : "q_proj.weight");
  if (part == "query_norm.weight") return renamed(prefix, "q_a_layernorm.weight");
  if (part == "out.weight") return renamed(prefix, "o_proj.weight");
  if (part == "query_down.weight")
    return Place{.name = prefix + "self_attn.q_a_proj.weight", .factor = latent_factor(model)};
  return std::nullopt;
}

std::optional<Place> delta_place(const config::Delta& delta, std::string_view part, const std::string& prefix) {
  auto conv = [&](const char* name) { return Place{.name = prefix + "self_attn." + name, .has_middle = true}; };
  if (part == "q.weight") return renamed(prefix, "q_proj.weight");
  if (part == "k.weight") return renamed(prefix, "k_proj.weight");
  if (part == "v.weight") return renamed(prefix, "v_proj.weight");
  if (part == "q_conv.weight") return conv("q_conv1d.weight");
  if (part == "k_conv.weight") return conv("k_conv1d.weight");
  if (part == "v_conv.weight") return conv("v_conv1d.weight");
  if (part == "strength.weight") return renamed(prefix, "b_proj.weight");
  if (part == "decay_down.weight") return renamed(prefix, "f_a_proj.weight");
  if (part == "decay.weight") return renamed(prefix, "f_b_proj.weight");
  if (part == "gate_down.weight") return renamed(prefix, "g_a_proj.weight");
  if (part == "gate.weight") return renamed(prefix, "g_b_proj.weight");
  if (part == "gate.bias") return Place{.name = prefix + "self_attn.g_b_proj.bias", .is_constant = true};
  if (part == "step_bias") return renamed(prefix, "dt_bias");
  if (part == "head_norm.weight") return renamed(prefix, "o_norm.weight");
  if (part == "out.weight") return renamed(prefix, "o_proj.weight");
  if (part == "log_rate") return Place{.name = prefix + "self_attn.A_log", .reshaped = {1, 1, delta.heads(), 1}};
  return std::nullopt;
}

}  // namespace

void read_kimi(JsonFields& fields, ModelConfig& out) {
  config::Model& m = out.model;
  m.set_vocab(fields.integer("vocab_size", 163840, 2));
  m.set_dim(fields.integer("hidden_size", 2304, 1, kMaxSize));
  m.set_layers(fields.integer("num_hidden_layers", 27, 1, kMaxLayers));
  m.set_context(fields.integer("max_position_embeddings", fields.integer("model_max_length", 1048576)));
  fields.expect_flag("tie_word_embeddings", false);
  m.mutable_embedding()->set_tied(false);
  m.mutable_norm()->mutable_rms()->set_eps(fields.number("rms_norm_eps", 1e-5, 1e-30, 1));
  m.mutable_position()->mutable_none();
  m.mutable_ffn()->mutable_swiglu()->set_hidden(fields.integer("intermediate_size", 9216, 1, kMaxSize));
  fields.expect_text("hidden_act", "silu", {"silu", "swish"});
  refuse_experts(fields, m.layers());
  const json* lists = fields.find("linear_attn_config");
  WEFT_CHECK(!lists || lists->is_object(), str(fields.where(), ": linear_attn_config is no object"),
             "give it as the model's own config.json does");
  config::Mixer attention, delta;
  *attention.mutable_mla() = read_mla(fields);
  *delta.mutable_delta() = read_delta(fields, lists);
  delta.mutable_delta()->set_norm_eps(m.norm().rms().eps());
  const std::vector<Kind> kinds = layer_kinds(fields, lists, m.layers());
  std::string pattern;
  bool has_attention = false, has_delta = false;
  for (Kind kind : kinds) {
    pattern += str(pattern.empty() ? "" : " ", kind == Kind::delta ? 1 : 0);
    (kind == Kind::delta ? has_delta : has_attention) = true;
  }
  if (has_attention) *m.add_mixer() = attention;
  if (has_delta) *m.add_mixer() = delta;
  if (has_attention && has_delta) m.set_pattern(pattern);
}

nlohmann::ordered_json kimi_config(const config::Model& m, int64_t vocab) {
  nlohmann::ordered_json types = json::array(), dense = json::array();
  // A model of one kind of layers says the smallest sizes of the other.
  config::Mla mla;
  config::Delta delta;
  mla.set_heads(1), mla.set_head_dim(2), mla.set_rope_dim(2), mla.set_kv_rank(2);
  delta.set_heads(1), delta.set_head_dim(2), delta.set_kernel(4);
  const std::vector<int> mixers = config::layer_mixers(m);
  for (int64_t i = 0; i < m.layers(); ++i) {
    const config::Mixer& mixer = m.mixer(mixers[static_cast<size_t>(i) % mixers.size()]);
    types.push_back(mixer.has_delta() ? "linear_attention" : "full_attention");
    dense.push_back("dense");
    if (mixer.has_delta()) delta = mixer.delta();
    else mla = mixer.mla();
  }
  return {{"architectures", {"KimiLinearForCausalLM"}},
          {"model_type", "kimi_linear"},
          // Readers fill in an id of the large model's vocabulary where there is none.
          {"pad_token_id", nullptr},
          {"vocab_size", vocab},
          {"hidden_size", m.dim()},
          {"intermediate_size", m.ffn().swiglu().hidden()},
          {"num_hidden_layers", m.layers()},
          {"num_attention_heads", mla.heads()},
          {"num_key_value_heads", mla.heads()},
          {"q_lora_rank", mla.has_q_rank() ? nlohmann::ordered_json(mla.q_rank()) : nlohmann::ordered_json()},
          {"kv_lora_rank", mla.kv_rank()},
          {"qk_nope_head_dim", mla.head_dim()},
          {"qk_rope_head_dim", mla.rope_dim()},
          {"v_head_dim", mla.head_dim()},
          {"linear_num_heads", delta.heads()},
          {"linear_head_dim", delta.head_dim()},
          {"linear_conv_kernel_dim", delta.kernel()},
          {"layer_types", types},
          {"mlp_layer_types", dense},
          {"hidden_act", "silu"},
          {"model_max_length", m.context()},
          {"initializer_range", m.init().std()},
          {"rms_norm_eps", m.norm().rms().eps()},
          {"tie_word_embeddings", m.embedding().tied()},
          {"attention_bias", false},
          {"attention_dropout", 0.0}};
}

std::optional<Place> kimi_place(const config::Model& model, const config::Mixer& mixer, std::string_view in_layer,
                                const std::string& prefix) {
  constexpr std::string_view kMixer = "mixer.";
  if (!in_layer.starts_with(kMixer)) return llama_layer_place(in_layer, prefix);
  const std::string_view part = in_layer.substr(kMixer.size());
  return mixer.has_delta() ? delta_place(completed(mixer.delta(), model.dim()), part, prefix)
                           : mla_place(model, completed(mixer.mla(), model.dim()), part, prefix);
}

}  // namespace weft::huggingface
