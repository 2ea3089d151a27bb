#include "trainers/huggingface/names.h"

#include <algorithm>
#include <charconv>
#include <span>

#include "trainers/config/pattern.h"
#include "trainers/huggingface/kimi.h"

namespace weft::huggingface {

namespace {

// A parameter without ".weight" or ".bias".
struct Row {
  std::string_view ours, theirs;
};

constexpr Row kLlamaModel[] = {{"embedding", "model.embed_tokens"}, {"norm", "model.norm"}, {"head", "lm_head"}};
constexpr Row kLlamaLayer[] = {{"mixer_norm", "input_layernorm"},    {"ffn_norm", "post_attention_layernorm"},
                               {"mixer.q", "self_attn.q_proj"},      {"mixer.k", "self_attn.k_proj"},
                               {"mixer.v", "self_attn.v_proj"},      {"mixer.out", "self_attn.o_proj"},
                               {"mixer.q_norm", "self_attn.q_norm"}, {"mixer.k_norm", "self_attn.k_norm"},
                               {"ffn.gate", "mlp.gate_proj"},        {"ffn.up", "mlp.up_proj"},
                               {"ffn.down", "mlp.down_proj"}};
constexpr Row kGpt2Model[] = {{"embedding", "transformer.wte"},
                              {"positions", "transformer.wpe"},
                              {"norm", "transformer.ln_f"},
                              {"head", "lm_head"}};
constexpr Row kGpt2Layer[] = {{"mixer_norm", "ln_1"},     {"ffn_norm", "ln_2"},       {"mixer.q", "attn.c_attn"},
                              {"mixer.k", "attn.c_attn"}, {"mixer.v", "attn.c_attn"}, {"mixer.out", "attn.c_proj"},
                              {"ffn.up", "mlp.c_fc"},     {"ffn.down", "mlp.c_proj"}};

std::optional<Place> find(std::span<const Row> rows, std::string_view ours, const std::string& prefix) {
  const size_t dot = ours.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string_view part = ours.substr(0, dot), kind = ours.substr(dot + 1);
  if (kind != "weight" && kind != "bias") return std::nullopt;
  for (const Row& row : rows)
    if (row.ours == part) return Place{.name = prefix + std::string(row.theirs) + "." + std::string(kind)};
  return std::nullopt;
}

// q, k and v side by side, all matrices [in, out].
std::optional<Place> gpt2_place(const config::Model& model, std::string_view in_layer, const std::string& prefix) {
  std::optional<Place> place = find(kGpt2Layer, in_layer, prefix);
  if (!place) return place;
  const bool is_matrix = in_layer.ends_with(".weight") && !in_layer.ends_with("norm.weight");
  place->is_transposed = is_matrix;
  for (int64_t i = 0; i < 3; ++i)
    if (in_layer.starts_with(std::string("mixer.") + "qkv"[i] + "."))
      place->offset = i * model.dim(), place->stride = 3 * model.dim();
  return place;
}

// Gated DeltaNet as Qwen3-Next stores it: per key head its rows of q, k, v and the gate; per key head its strengths and decays; one
// convolution over q, k and v.
std::optional<Place> delta_place(const config::Delta& d, std::string_view part, const std::string& prefix) {
  const int64_t G = d.key_heads(), K = d.head_dim(), values = d.heads() / G * d.value_dim();
  const int64_t each = 2 * K + 2 * values, channels = G * (2 * K + values), shared = d.heads() / G;
  auto at = [&](const char* name) { return prefix + "linear_attn." + name; };
  auto rows = [&](int64_t offset) {
    return Place{.name = at("in_proj_qkvz.weight"), .groups = G, .offset = offset, .stride = each};
  };
  auto conv = [&](int64_t offset) {
    return Place{.name = at("conv1d.weight"), .has_middle = true, .offset = offset, .stride = channels};
  };
  auto per_head = [&](int64_t offset) {
    return Place{.name = at("in_proj_ba.weight"), .groups = G, .offset = offset, .stride = 2 * shared};
  };
  if (part == "q.weight") return rows(0);
  if (part == "k.weight") return rows(K);
  if (part == "v.weight") return rows(2 * K);
  if (part == "gate.weight") return rows(2 * K + values);
  if (part == "strength.weight") return per_head(0);
  if (part == "decay.weight") return per_head(shared);
  if (part == "q_conv.weight") return conv(0);
  if (part == "k_conv.weight") return conv(G * K);
  if (part == "v_conv.weight") return conv(2 * G * K);
  if (part == "log_rate") return Place{.name = at("A_log")};
  if (part == "step_bias") return Place{.name = at("dt_bias")};
  if (part == "head_norm.weight") return Place{.name = at("norm.weight")};
  if (part == "out.weight") return Place{.name = at("out_proj.weight")};
  return std::nullopt;
}

// Qwen3-Next: gains are stored as differences from 1, and the gate on a head's output behind the head's queries.
std::optional<Place> next_place(const config::Model& model, const config::Mixer& mixer, std::string_view in_layer,
                                const std::string& prefix) {
  constexpr std::string_view kMixer = "mixer.";
  if (mixer.has_delta() && in_layer.starts_with(kMixer))
    return delta_place(completed(mixer.delta(), model.dim()), in_layer.substr(kMixer.size()), prefix);
  const config::Softmax& softmax = mixer.softmax();
  const bool is_gate = in_layer == "mixer.gate_out.project.weight";
  if (is_gate || in_layer == "mixer.q.weight")
    return Place{.name = prefix + "self_attn.q_proj.weight",
                 .groups = softmax.heads(),
                 .offset = is_gate ? softmax.head_dim() : 0,
                 .stride = 2 * softmax.head_dim()};
  std::optional<Place> place = find(kLlamaLayer, in_layer, prefix);
  if (place && in_layer.ends_with("norm.weight")) place->added = 1;
  return place;
}

}  // namespace

std::string_view name_of(Family family) {
  switch (family) {
    case Family::llama: return "llama";
    case Family::qwen2: return "qwen2";
    case Family::qwen3: return "qwen3";
    case Family::qwen3_next: return "qwen3_next";
    case Family::kimi_linear: return "kimi_linear";
    case Family::gpt2: return "gpt2";
  }
  return "";
}

config::Delta completed(const config::Delta& delta, int64_t dim) {
  const bool is_per_head = delta.decay() == config::DeltaDecay::head;
  config::Delta out = delta;
  if (!out.has_key_heads()) out.set_key_heads(out.heads());
  if (!out.has_head_dim()) out.set_head_dim((is_per_head ? 3 * dim / 4 : dim) / out.heads());
  if (!out.has_value_dim()) out.set_value_dim(is_per_head ? 2 * out.head_dim() : out.head_dim());
  return out;
}

config::Mla completed(const config::Mla& mla, int64_t dim) {
  config::Mla out = mla;
  if (!out.has_head_dim()) out.set_head_dim(dim / out.heads());
  if (!out.has_rope_dim()) out.set_rope_dim(std::max<int64_t>(out.head_dim() / 2 / 2 * 2, 2));
  if (!out.has_kv_rank()) out.set_kv_rank(2 * out.head_dim());
  return out;
}

std::optional<Place> llama_layer_place(std::string_view in_layer, const std::string& prefix) {
  return find(kLlamaLayer, in_layer, prefix);
}

std::vector<int64_t> Place::shape(const std::vector<int64_t>& ours) const {
  if (!reshaped.empty()) return reshaped;
  std::vector<int64_t> out = ours;
  if (out.empty()) return out;
  if (stride > 0) out[0] = groups * stride;
  if (is_transposed) std::reverse(out.begin(), out.end());
  if (has_middle) out.insert(out.begin() + 1, 1);
  return out;
}

int64_t Place::index(int64_t row, int64_t column, int64_t rows, int64_t columns) const {
  const int64_t each = rows / groups, their_rows = stride > 0 ? groups * stride : rows;
  const int64_t theirs = stride > 0 ? row / each * stride + offset + row % each : row;
  return is_transposed ? column * their_rows + theirs : theirs * columns + column;
}

Places::Places(Family family, const config::Model& model)
    : family_(family), model_(model), mixers_(config::layer_mixers(model)) {}

std::optional<Place> Places::of(std::string_view ours) const {
  const bool is_gpt2 = family_ == Family::gpt2;
  constexpr std::string_view kLayers = "layers.";
  if (!ours.starts_with(kLayers)) {
    std::optional<Place> place = is_gpt2 ? find(kGpt2Model, ours, "") : find(kLlamaModel, ours, "");
    if (place && family_ == Family::qwen3_next && ours == "norm.weight") place->added = 1;
    return place;
  }
  const size_t dot = ours.find('.', kLayers.size());
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string layer(ours.substr(kLayers.size(), dot - kLayers.size()));
  const std::string_view in_layer = ours.substr(dot + 1);
  if (is_gpt2) return gpt2_place(model_, in_layer, "transformer.h." + layer + ".");
  const std::string prefix = "model.layers." + layer + ".";
  if (family_ != Family::qwen3_next && family_ != Family::kimi_linear) return find(kLlamaLayer, in_layer, prefix);
  size_t number = 0;
  std::from_chars(layer.data(), layer.data() + layer.size(), number);
  const config::Mixer& mixer = model_.mixer(mixers_[number % mixers_.size()]);
  return family_ == Family::kimi_linear ? kimi_place(model_, mixer, in_layer, prefix)
                                        : next_place(model_, mixer, in_layer, prefix);
}

std::string_view prefix_of(Family family) { return family == Family::gpt2 ? "transformer." : "model."; }

// transformers renames Kimi-Linear's experts when it saves a folder, and networks without experts with them.
std::string other_name(Family family, const std::string& theirs) {
  constexpr std::string_view kOurs = ".mlp.";
  const size_t at = family == Family::kimi_linear ? theirs.find(kOurs) : std::string::npos;
  return at == std::string::npos ? "" : std::string(theirs).replace(at, kOurs.size(), ".block_sparse_moe.");
}

bool is_ignored(Family family, std::string_view theirs, bool has_tied_embedding) {
  if (theirs == "lm_head.weight") return has_tied_embedding;
  if (family == Family::gpt2) return theirs.ends_with(".attn.bias") || theirs.ends_with(".attn.masked_bias");
  return theirs.ends_with("rotary_emb.inv_freq");
}

}  // namespace weft::huggingface
