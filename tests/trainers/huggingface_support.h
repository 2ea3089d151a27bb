// Tiny Hugging Face folders with random weights, written by the tests themselves.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tests/io/temp_folder.h"
#include "tests/reference/huggingface.h"
#include "tests/support/random.h"
#include "trainers/console/console.h"
#include "trainers/run/session.h"
#include "weft/core/parallel.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"
#include "weft/io/safetensors.h"
#include "weft/ops/elementwise.h"
#include "weft/training/training.h"

namespace weft::test {

using Json = nlohmann::ordered_json;

// Names and shapes of a family's tensors.
inline std::vector<std::pair<std::string, std::vector<int64_t>>> hf_shapes(const reference::HfModel& m,
                                                                           bool has_input_bias) {
  const int64_t D = m.dim, F = m.ffn, Q = m.heads * m.head_dim, K = m.kv_heads * m.head_dim;
  std::vector<std::pair<std::string, std::vector<int64_t>>> out;
  auto add = [&](const std::string& name, std::vector<int64_t> shape, bool has_bias = false) {
    if (has_bias) out.push_back({name + ".bias", {shape.size() == 1 || !m.is_gpt2() ? shape[0] : shape[1]}});
    out.push_back({name + ".weight", std::move(shape)});
  };
  if (m.is_gpt2()) {
    add("transformer.wte", {m.vocab, D});
    add("transformer.wpe", {m.positions, D});
    add("transformer.ln_f", {D}, true);
  } else {
    add("model.embed_tokens", {m.vocab, D});
    add("model.norm", {D});
  }
  if (!m.is_tied) add("lm_head", {m.vocab, D});
  for (int64_t i = 0; i < m.layers; ++i) {
    const std::string at = (m.is_gpt2() ? "transformer.h." : "model.layers.") + std::to_string(i) + ".";
    if (m.is_gpt2()) {
      add(at + "ln_1", {D}, true), add(at + "ln_2", {D}, true);
      add(at + "attn.c_attn", {D, 3 * D}, true), add(at + "attn.c_proj", {D, D}, true);
      add(at + "mlp.c_fc", {D, F}, true), add(at + "mlp.c_proj", {F, D}, true);
      continue;
    }
    add(at + "input_layernorm", {D}), add(at + "post_attention_layernorm", {D});
    add(at + "mlp.gate_proj", {F, D}), add(at + "mlp.up_proj", {F, D}), add(at + "mlp.down_proj", {D, F});
    if (m.is_kimi()) {
      const std::string self = at + "self_attn.";
      if (m.is_linear_layer(i)) {
        const int64_t K = m.key_dim, C = m.value_heads * K;
        for (const char* what : {"q", "k", "v"}) {
          add(self + what + "_proj", {C, D});
          add(self + what + "_conv1d", {C, 1, m.kernel});
        }
        add(self + "b_proj", {m.value_heads, D}), add(self + "o_norm", {K}), add(self + "o_proj", {D, C});
        add(self + "f_a_proj", {K, D}), add(self + "f_b_proj", {C, K});
        add(self + "g_a_proj", {K, D}), add(self + "g_b_proj", {C, K});
        out.push_back({self + "A_log", {1, 1, m.value_heads, 1}}), out.push_back({self + "dt_bias", {C}});
        continue;
      }
      const int64_t W = m.heads * (m.head_dim + m.rotated);
      add(self + "kv_a_proj_with_mqa", {m.kv_rank + m.rotated, D}), add(self + "kv_a_layernorm", {m.kv_rank});
      add(self + "kv_b_proj", {2 * m.heads * m.head_dim, m.kv_rank}), add(self + "o_proj", {D, m.heads * m.head_dim});
      if (m.q_rank == 0) {
        add(self + "q_proj", {W, D});
        continue;
      }
      add(self + "q_a_proj", {m.q_rank, D}), add(self + "q_a_layernorm", {m.q_rank});
      add(self + "q_b_proj", {W, m.q_rank});
      continue;
    }
    if (m.is_linear_layer(i)) {
      const int64_t G = m.key_heads * m.key_dim, V = m.value_heads * m.value_dim, H = m.value_heads;
      add(at + "linear_attn.in_proj_qkvz", {2 * G + 2 * V, D}), add(at + "linear_attn.in_proj_ba", {2 * H, D});
      add(at + "linear_attn.conv1d", {2 * G + V, 1, m.kernel}), add(at + "linear_attn.norm", {m.value_dim});
      add(at + "linear_attn.out_proj", {D, V});
      out.push_back({at + "linear_attn.A_log", {H}}), out.push_back({at + "linear_attn.dt_bias", {H}});
      continue;
    }
    add(at + "self_attn.q_proj", {m.is_next() ? 2 * Q : Q, D}, has_input_bias);
    add(at + "self_attn.k_proj", {K, D}, has_input_bias), add(at + "self_attn.v_proj", {K, D}, has_input_bias);
    add(at + "self_attn.o_proj", {D, Q}, has_input_bias && m.family != "qwen2");
    if (m.family == "qwen3" || m.is_next())
      add(at + "self_attn.q_norm", {m.head_dim}), add(at + "self_attn.k_norm", {m.head_dim});
  }
  return out;
}

inline Json hf_config(const reference::HfModel& m, bool has_input_bias) {
  if (m.is_gpt2())
    return {{"model_type", "gpt2"},
            {"vocab_size", m.vocab},
            {"n_positions", m.positions},
            {"n_embd", m.dim},
            {"n_layer", m.layers},
            {"n_head", m.heads},
            {"n_inner", m.ffn},
            {"activation_function", "gelu_new"},
            {"layer_norm_epsilon", m.eps},
            {"tie_word_embeddings", m.is_tied}};
  if (m.is_kimi()) {
    Json types = Json::array(), dense = Json::array();
    for (int64_t i = 0; i < m.layers; ++i) {
      types.push_back(m.is_linear_layer(i) ? "linear_attention" : "full_attention");
      dense.push_back("dense");
    }
    return {{"model_type", "kimi_linear"},
            {"vocab_size", m.vocab},
            {"hidden_size", m.dim},
            {"intermediate_size", m.ffn},
            {"num_hidden_layers", m.layers},
            {"num_attention_heads", m.heads},
            {"num_key_value_heads", m.heads},
            {"q_lora_rank", m.q_rank > 0 ? Json(m.q_rank) : Json()},
            {"kv_lora_rank", m.kv_rank},
            {"qk_nope_head_dim", m.head_dim},
            {"qk_rope_head_dim", m.rotated},
            {"v_head_dim", m.head_dim},
            {"linear_num_heads", m.value_heads},
            {"linear_head_dim", m.key_dim},
            {"linear_conv_kernel_dim", m.kernel},
            {"layer_types", types},
            {"mlp_layer_types", dense},
            {"model_max_length", m.positions},
            {"rms_norm_eps", m.eps}};
  }
  Json out{{"model_type", m.family},
           {"vocab_size", m.vocab},
           {"hidden_size", m.dim},
           {"intermediate_size", m.ffn},
           {"num_hidden_layers", m.layers},
           {"num_attention_heads", m.heads},
           {"num_key_value_heads", m.kv_heads},
           {"head_dim", m.head_dim},
           {"max_position_embeddings", m.positions},
           {"rms_norm_eps", m.eps},
           {"tie_word_embeddings", m.is_tied},
           {"rope_theta", m.theta}};
  if (m.family != "qwen2") out["attention_bias"] = has_input_bias;
  if (m.llama3_factor > 0)
    out["rope_scaling"] = {{"rope_type", "llama3"},
                           {"factor", m.llama3_factor},
                           {"low_freq_factor", 1.0},
                           {"high_freq_factor", 4.0},
                           {"original_max_position_embeddings", 16}};
  if (m.is_next()) {
    const int64_t rotated = m.rotated ? m.rotated : m.head_dim;
    out["partial_rotary_factor"] = static_cast<double>(rotated) / static_cast<double>(m.head_dim);
    out["num_experts"] = 0;
    out["linear_num_key_heads"] = m.key_heads, out["linear_num_value_heads"] = m.value_heads;
    out["linear_key_head_dim"] = m.key_dim, out["linear_value_head_dim"] = m.value_dim;
    out["linear_conv_kernel_dim"] = m.kernel;
    out["layer_types"] = Json::array();
    for (int64_t i = 0; i < m.layers; ++i)
      out["layer_types"].push_back(m.is_linear_layer(i) ? "linear_attention" : "full_attention");
  }
  if (m.windows.empty()) return out;
  out["use_sliding_window"] = true;
  out["layer_types"] = Json::array();
  for (int64_t window : m.windows) {
    out["layer_types"].push_back(window > 0 ? "sliding_attention" : "full_attention");
    if (window > 0) out["sliding_window"] = window;
  }
  return out;
}

struct HfFolder {
  reference::HfModel model;
  bool has_input_bias = false;
  Json config = {};
  std::vector<io::NamedTensor> tensors = {};

  HfFolder(reference::HfModel m, bool has_bias) : model(std::move(m)), has_input_bias(has_bias) {
    config = hf_config(model, has_bias);
    for (const auto& [name, shape] : hf_shapes(model, has_bias)) {
      Tensor values = random_normal(Shape(shape), name);
      std::vector<double>& wide = model.tensors[name];
      for (int64_t i = 0; i < values.num_elements(); ++i) {
        float& x = values.mutable_data<float>()[i];
        x = 0.3f * x + (shape.size() == 1 && name.ends_with(".weight") ? 1.0f : 0.0f);
        wide.push_back(static_cast<double>(x));
      }
      tensors.push_back({name, values});
    }
  }

  // In `files` files, with an index if there are several.
  void write(const std::string& path, size_t files = 1) const {
    io::make_folders(path);
    io::write_file_atomically(path + "/config.json", config.dump(1));
    if (files == 1) {
      io::write_safetensors(path + "/model.safetensors", tensors);
      return;
    }
    Json map = Json::object();
    for (size_t f = 0; f < files; ++f) {
      const std::string name =
          "model-0000" + std::to_string(f + 1) + "-of-0000" + std::to_string(files) + ".safetensors";
      std::vector<io::NamedTensor> part;
      for (size_t i = f; i < tensors.size(); i += files) part.push_back(tensors[i]), map[tensors[i].name] = name;
      io::write_safetensors(path + "/" + name, part);
    }
    io::write_file_atomically(path + "/model.safetensors.index.json", Json{{"weight_map", map}}.dump(1));
  }
};

class HuggingFace : public ::testing::Test {
 protected:
  void SetUp() override { set_num_threads(1); }
  TempFolder temp_;
};

inline const std::vector<int32_t> kIds = {3, 0, 36, 7, 7, 12, 1, 30, 25, 3, 2, 19, 8, 33, 5, 11, 6};

inline train::LoadedRun load_quietly(const std::string& run) {
  cli::Console quiet(cli::Verbosity::quiet, false);
  return train::load_run(run, {}, quiet, {});
}

// A model whose adapters are no longer 0, as a training leaves it.
inline void train_adapters(const std::string& run) {
  const train::LoadedRun loaded = load_quietly(run);
  for (const NamedParam& p : loaded.model->params())
    if (p.name.ends_with("adapter_up"))
      p.param->set_value(ops::scale(random_normal(p.param->value().shape(), p.name), 0.1));
  const io::Checkpoint last = io::load_checkpoint(loaded.checkpoint);
  io::save_checkpoint(loaded.folder + "/checkpoints",
                      {.step = 1, .model = model_tensors(*loaded.model), .state = last.state, .config = last.config});
}

inline std::vector<float> logits_of(const std::string& run, const std::vector<int32_t>& ids) {
  train::LoadedRun loaded = load_quietly(run);
  const auto count = static_cast<int64_t>(ids.size());
  Tokens tokens(plain_tokens(1, count, 0));
  return loaded.model->logits(Tensor::from(std::span<const int32_t>(ids), {1, count}), tokens).to_vector<float>();
}

inline void expect_same(const std::vector<float>& got, const std::vector<float>& wanted, float slack,
                        const std::string& what) {
  ASSERT_EQ(got.size(), wanted.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) ASSERT_LE(std::abs(got[i] - wanted[i]), slack) << what << " at " << i;
}

}  // namespace weft::test
