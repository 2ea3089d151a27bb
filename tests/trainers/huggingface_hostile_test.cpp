// Folders that are damaged, or that nobody made in good faith: one error each, and no run.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <functional>

#include "tests/support/errors.h"
#include "tests/trainers/huggingface_support.h"
#include "trainers/huggingface/folder.h"
#include "trainers/huggingface/import.h"
#include "trainers/huggingface/json_fields.h"

namespace weft::huggingface {
namespace {

namespace fs = std::filesystem;
using reference::HfModel;
using test::error_of;
using test::HfFolder;
using test::HuggingFace;
using test::Json;

struct Row {
  std::string name;
  HfModel model;
  std::function<void(Json& config)> change;
  std::vector<std::string_view> parts;
};

std::function<void(Json&)> set(const char* key, const Json& value) {
  return [=](Json& config) { config[key] = value; };
}

void expect_refused(const std::string& path, const std::vector<std::string_view>& parts, const std::string& name) {
  const std::string run = path + "-run";
  EXPECT_EQ(error_of([&] { import_folder({.folder = path, .run = run}); }, parts), "") << name;
  EXPECT_FALSE(io::file_exists(run + "/config.txtpb")) << name;
}

TEST_F(HuggingFace, RefusesConfigsOfWhatWeftDoesNotHave) {
  const HfModel kimi{.family = "kimi_linear", .kv_heads = 4, .is_linear = {true, false}, .rotated = 2};
  const HfModel next{.family = "qwen3_next", .is_linear = {true, false}};
  const HfModel gpt2{.family = "gpt2", .heads = 4, .kv_heads = 4, .head_dim = 4, .is_tied = true};
  auto scaling = [](const Json& value) { return set("rope_scaling", value); };
  const std::vector<Row> rows = {
      {"other name of llama", {}, set("model_type", "Llama"), {"\"Llama\"", "not import", "known are llama"}},
      {"neighbour of llama", {}, set("model_type", "llama4"), {"\"llama4\"", "not import"}},
      {"mistral", {}, set("model_type", "mistral"), {"\"mistral\"", "not import"}},
      {"gemma", {}, set("model_type", "gemma2"), {"\"gemma2\"", "not import"}},
      {"experts of qwen2", {}, set("model_type", "qwen2_moe"), {"\"qwen2_moe\"", "feed-forward networks have experts"}},
      {"experts of qwen3", {}, set("model_type", "qwen3_moe"), {"\"qwen3_moe\"", "feed-forward networks have experts"}},
      {"mixtral", {}, set("model_type", "mixtral"), {"\"mixtral\"", "experts"}},
      {"deepseek", {}, set("model_type", "deepseek_v3"), {"\"deepseek_v3\"", "experts"}},
      {"type that is a number", {}, set("model_type", 3), {"model_type is 3, not a text"}},
      {"control characters", {}, set("model_type", "a\x1b[2Jb"), {"not import", "known are"}},
      {"text for NaN", {}, set("rms_norm_eps", "nan"), {"rms_norm_eps is \"nan\""}},
      {"infinite theta", {}, set("rope_theta", "Infinity"), {"rope_theta is \"Infinity\""}},
      {"theta", {}, set("rope_theta", 0), {"rope_theta is 0"}},
      {"no heads", {}, set("num_attention_heads", 0), {"num_attention_heads is 0"}},
      {"more heads of keys", {}, set("num_key_value_heads", 8), {"kv_heads"}},
      {"odd head", {}, set("head_dim", 5), {"head_dim"}},
      {"no layers", {}, set("num_hidden_layers", 0), {"num_hidden_layers is 0"}},
      {"flag as a text", {}, set("tie_word_embeddings", "yes"), {"tie_word_embeddings is \"yes\"", "true or false"}},
      {"flag as a number", {}, set("attention_bias", 1), {"attention_bias is 1"}},
      {"biases that are missing", {}, set("attention_bias", true), {"does not fit", "layers.0.mixer.q.bias"}},
      {"activation", {}, set("hidden_act", "gelu"), {"hidden_act is \"gelu\""}},
      {"dynamic scaling", {}, scaling({{"type", "dynamic"}, {"factor", 2}}), {"\"dynamic\"", "known are default"}},
      {"longrope", {}, scaling({{"rope_type", "longrope"}, {"factor", 2}}), {"\"longrope\"", "known are default"}},
      {"su", {}, scaling({{"type", "su"}}), {"\"su\""}},
      {"mrope", {}, scaling({{"type", "mrope"}, {"mrope_section", {1, 1, 1}}}), {"\"mrope\""}},
      {"ntk", {}, scaling({{"rope_type", "ntk"}}), {"\"ntk\""}},
      {"factor", {}, scaling({{"rope_type", "linear"}, {"factor", "2"}}), {"rope_scaling: factor is \"2\""}},
      {"small factor", {}, scaling({{"rope_type", "linear"}, {"factor", 0.5}}), {"rope_scaling: factor is 0.5"}},
      {"mscale",
       {},
       scaling({{"rope_type", "yarn"}, {"factor", 2}, {"mscale", 1.0}}),
       {"mscale is set", "attention_factor"}},
      {"yarn that is not truncated",
       {},
       scaling({{"rope_type", "yarn"}, {"factor", 2}, {"truncate", false}}),
       {"truncate is false"}},
      {"parameters per kind of layer",
       {.family = "qwen3"},
       set("rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}),
       {"rope_parameters", "full_attention", "unknown"}},
      {"window without its length", {.family = "qwen2"}, set("use_sliding_window", true), {"no sliding_window"}},
      {"window of 0",
       {.family = "qwen2"},
       [](Json& c) { c["use_sliding_window"] = true, c["sliding_window"] = 0; },
       {"sliding_window is 0"}},
      {"windows that are not used",
       {.family = "qwen3"},
       set("layer_types", {"sliding_attention", "full_attention"}),
       {"layer 0 is sliding_attention", "use_sliding_window"}},
      {"chunked layers",
       {.family = "qwen3"},
       set("layer_types", {"chunked_attention", "full_attention"}),
       {"layer_types names another type"}},
      {"short list of layers", {.family = "qwen3"}, set("layer_types", {"full_attention"}), {"no list of 2 texts"}},
      {"layers as a text", {.family = "qwen3"}, set("layer_types", "full_attention"), {"no list of 2 texts"}},
      {"bias beside the gate", next, set("attention_bias", true), {"attention_bias is true"}},
      {"key heads", next, set("linear_num_key_heads", 3), {"does not divide"}},
      {"gpt2 with another activation", gpt2, set("activation_function", "relu"), {"activation_function is \"relu\""}},
      {"gpt2 with exact gelu", gpt2, set("activation_function", "gelu"), {"activation_function is \"gelu\""}},
      {"gpt2 with scaled layers", gpt2, set("scale_attn_by_inverse_layer_idx", true), {"scale_attn_by_inverse"}},
      {"gpt2 with cross attention", gpt2, set("add_cross_attention", true), {"add_cross_attention"}},
      {"kimi with experts", kimi, set("mlp_layer_types", {"dense", "sparse"}), {"layer 1 has experts", "all dense"}},
      {"kimi with experts by default",
       kimi,
       [](Json& c) { c.erase("mlp_layer_types"); },
       {"layer 1 has experts", "first_k_dense_replace"}},
      {"kimi with rotation", kimi, set("mla_use_nope", false), {"mla_use_nope is false"}},
      {"kimi with groups", kimi, set("num_key_value_heads", 2), {"num_key_value_heads 2", "as many"}},
      {"kimi with wide values", kimi, set("v_head_dim", 8), {"v_head_dim 8 beside qk_nope_head_dim 6"}},
      {"kimi with a tied table", kimi, set("tie_word_embeddings", true), {"tie_word_embeddings is true"}},
      {"kimi with biases", kimi, set("attention_bias", true), {"attention_bias is true"}},
      {"kimi with another kind", kimi, set("layer_types", {"mamba", "full_attention"}), {"another type", "layer 0"}},
      {"kimi with a list of one",
       kimi,
       [](Json& c) {
         c.erase("layer_types");
         c["linear_attn_config"] = {{"full_attn_layers", {2}}, {"kda_layers", Json::array()}};
       },
       {"no list names layer 1"}},
      {"kimi with a layer twice",
       kimi,
       [](Json& c) {
         c.erase("layer_types");
         c["linear_attn_config"] = {{"full_attn_layers", {2}}, {"kda_layers", {1, 2}}};
       },
       {"kda_layers names layer 2, which is named already"}},
      {"kimi with a layer 0",
       kimi,
       [](Json& c) {
         c.erase("layer_types");
         c["linear_attn_config"] = {{"full_attn_layers", {2}}, {"kda_layers", {0}}};
       },
       {"no layer from 1 to 2"}},
      {"kimi with a text for its lists", kimi, set("linear_attn_config", "no"), {"linear_attn_config is no object"}},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    const Row& row = rows[i];
    HfFolder folder(row.model, row.model.family == "qwen2");
    row.change(folder.config);
    folder.write(temp_ / std::to_string(i));
    expect_refused(temp_ / std::to_string(i), row.parts, row.name);
  }
}

TEST_F(HuggingFace, RefusesNumbersThatAreNone) {
  for (const char* number : {"NaN", "Infinity", "-Infinity", "1e999", "0x10", "1.", ".5", "01"}) {
    const std::string path = temp_ / (std::string("number") + number);
    HfFolder({}, false).write(path);
    io::write_file_atomically(path + "/config.json",
                              std::string(R"({"model_type":"llama","rms_norm_eps":)") + number + "}");
    expect_refused(path, {"config.json", "not valid JSON"}, number);
  }
}

TEST_F(HuggingFace, AFileOfManyObjectsIsReadAtOnce) {
  std::string text = "[{}";
  while (text.size() < size_t{2} << 20) text += ",{}";
  const std::string file = temp_ / "objects.json";
  io::write_file_atomically(file, text + "]");
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(read_json(file, size_t{4} << 20).size(), text.size() / 3);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST_F(HuggingFace, RefusesFilesThatAreNotWhatTheIndexSays) {
  const HfFolder good({}, false);
  const auto shard = [](const std::string& path, int i) {
    return path + "/model-0000" + std::to_string(i) + "-of-00003.safetensors";
  };
  struct Damage {
    std::string name;
    std::function<void(const std::string& path)> change;
    std::vector<std::string_view> parts;
  };
  auto rewrite_index = [](const std::string& path, const std::function<void(Json&)>& change) {
    Json index = Json::parse(io::read_file(path + "/model.safetensors.index.json"));
    change(index["weight_map"]);
    io::write_file_atomically(path + "/model.safetensors.index.json", index.dump());
  };
  auto index_to = [&](const std::string& file) {
    return [=](const std::string& path) { rewrite_index(path, [&](Json& map) { map["model.norm.weight"] = file; }); };
  };
  const std::vector<Damage> rows = {
      {"shard missing", [&](const auto& path) { fs::remove(shard(path, 2)); }, {"model-00002-of-00003.safetensors"}},
      {"shard empty", [&](const auto& path) { fs::resize_file(shard(path, 2), 0); }, {"model-00002-of-00003"}},
      {"shard cut",
       [&](const auto& path) { fs::resize_file(shard(path, 2), fs::file_size(shard(path, 2)) - 1); },
       {"model-00002-of-00003"}},
      {"header cut", [&](const auto& path) { fs::resize_file(shard(path, 1), 20); }, {"model-00001-of-00003"}},
      {"shard is a folder",
       [&](const auto& path) {
         fs::remove(shard(path, 3));
         fs::create_directory(shard(path, 3));
       },
       {"model-00003-of-00003"}},
      {"shard is a pipe",
       [&](const auto& path) {
         fs::remove(shard(path, 3));
         ::mkfifo(shard(path, 3).c_str(), 0600);
       },
       {"model-00003-of-00003"}},
      {"shard is a device",
       [&](const auto& path) {
         fs::remove(shard(path, 3));
         fs::create_symlink("/dev/zero", shard(path, 3));
       },
       {"model-00003-of-00003"}},
      {"shard is a link to itself",
       [&](const auto& path) {
         fs::remove(shard(path, 3));
         fs::create_symlink(shard(path, 3), shard(path, 3));
       },
       {"model-00003-of-00003"}},
      {"tensor in two shards",
       [&](const auto& path) { fs::copy_file(shard(path, 1), shard(path, 2), fs::copy_options::overwrite_existing); },
       {"stands in two files"}},
      {"shards that change places",
       [&](const auto& path) {
         fs::rename(shard(path, 1), path + "/x");
         fs::rename(shard(path, 2), shard(path, 1));
         fs::rename(path + "/x", shard(path, 2));
       },
       {"is not in model-0000"}},
      {"a tensor that no shard has",
       [&](const auto& path) {
         rewrite_index(path, [](Json& map) { map["model.more"] = "model-00001-of-00003.safetensors"; });
       },
       {"tensor 'model.more' is not in"}},
      {"parent folder", index_to("../x.safetensors"), {"../x.safetensors", "same folder"}},
      {"folder below", index_to("a/x.safetensors"), {"a/x.safetensors", "same folder"}},
      {"absolute", index_to("/dev/zero.safetensors"), {"/dev/zero.safetensors", "same folder"}},
      {"hidden", index_to("..safetensors"), {"..safetensors", "same folder"}},
      {"no name", index_to(""), {"names the file ''"}},
      {"other kind", index_to("config.json"), {"names the file 'config.json'"}},
      {"pickle", index_to("pytorch_model.bin"), {"pytorch_model.bin", "*.safetensors"}},
      {"zero byte", index_to(std::string("a\0.safetensors", 14)), {"names the file"}},
      {"index is a list",
       [](const auto& path) { io::write_file_atomically(path + "/model.safetensors.index.json", "[]"); },
       {"index.json", "object"}},
      {"map is a list",
       [](const auto& path) {
         io::write_file_atomically(path + "/model.safetensors.index.json", R"({"weight_map":[]})");
       },
       {"has no weight_map"}},
      {"config is a pipe",
       [](const auto& path) {
         fs::remove(path + "/config.json");
         ::mkfifo((path + "/config.json").c_str(), 0600);
       },
       {"config.json"}},
      {"config is endless",
       [](const auto& path) {
         fs::remove(path + "/config.json");
         fs::create_symlink("/dev/zero", path + "/config.json");
       },
       {"config.json"}},
      {"config is large",
       [](const auto& path) { fs::resize_file(path + "/config.json", 1 << 26); },
       {"config.json", "bytes"}},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::string path = temp_ / std::to_string(i);
    good.write(path, 3);
    rows[i].change(path);
    expect_refused(path, rows[i].parts, rows[i].name);
  }
}

// As caches of downloads have them.
TEST_F(HuggingFace, LinksToFilesElsewhereAreFollowed) {
  const HfFolder folder({}, false);
  folder.write(temp_ / "blobs", 2);
  fs::create_directory(temp_ / "snapshot");
  for (const std::string& name : io::list_folder(temp_ / "blobs"))
    fs::create_symlink("../blobs/" + name, (temp_ / "snapshot/") + name);
  EXPECT_TRUE(import_folder({.folder = temp_ / "snapshot", .run = temp_ / "run"}).report.is_complete());
}

TEST_F(HuggingFace, RefusesTensorsOfOtherKindsAndShapes) {
  struct Change {
    std::string name, tensor;
    std::function<void(std::vector<io::NamedTensor>& all, io::NamedTensor& one)> change;
    std::vector<std::string_view> parts;
  };
  auto to = [](const Tensor& value) {
    return [=](std::vector<io::NamedTensor>&, io::NamedTensor& t) { t.tensor = value; };
  };
  const std::vector<Change> rows = {
      {"whole numbers", "model.norm.weight", to(Tensor::zeros({16}, kI64)), {"model.norm.weight", "I64", "F32"}},
      {"booleans", "model.norm.weight", to(Tensor::zeros({16}, kBool)), {"model.norm.weight", "BOOL"}},
      {"transposed", "model.layers.0.mlp.up_proj.weight", to(Tensor::zeros({16, 20})), {"[16, 20]", "[20, 16]"}},
      {"one dimension more", "model.norm.weight", to(Tensor::zeros({16, 1})), {"[16, 1]", "[16]"}},
      {"no dimension", "model.norm.weight", to(Tensor::zeros({})), {"model.norm.weight is []"}},
      {"no rows", "model.embed_tokens.weight", to(Tensor::zeros({0, 16})), {"[0, 16]", "[37, 16]"}},
      {"more ids", "model.embed_tokens.weight", to(Tensor::zeros({38, 16})), {"[38, 16]", "[37, 16]"}},
      {"renamed", "lm_head.weight", [](auto&, auto& t) { t.name = "head.weight"; }, {"head.weight (lm_head.weight)"}},
      {"untied without a head",
       "lm_head.weight",
       [](auto& all, auto& t) { t = all.back(), all.pop_back(); },
       {"missing", "lm_head.weight"}},
      {"left over",
       "lm_head.weight",
       [](auto& all, auto&) {
         all.push_back({"model.layers.0.self_attn.sinks", Tensor::zeros({4})});
       },
       {"unexpected", "self_attn.sinks"}},
      {"name with control characters",
       "lm_head.weight",
       [](auto& all, auto&) {
         all.push_back({"a\x1b[2J", Tensor::zeros({4})});
       },
       {"unexpected"}},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    HfFolder folder({}, false);
    for (io::NamedTensor& t : folder.tensors)
      if (t.name == rows[i].tensor) {
        rows[i].change(folder.tensors, t);
        break;
      }
    folder.write(temp_ / std::to_string(i));
    expect_refused(temp_ / std::to_string(i), rows[i].parts, rows[i].name);
  }
}

// Readers tie the tables, or do not, by what stands in the file.
TEST_F(HuggingFace, ATiedModelHasOneTable) {
  HfFolder folder({.is_tied = true}, false);
  const auto table = [&]() -> io::NamedTensor {
    for (const io::NamedTensor& t : folder.tensors)
      if (t.name == "model.embed_tokens.weight") return t;
    return {};
  }();
  folder.tensors.push_back({"lm_head.weight", table.tensor});
  folder.write(temp_ / "same");
  EXPECT_TRUE(import_folder({.folder = temp_ / "same", .run = temp_ / "same-run"}).report.is_complete());
  folder.tensors.back().tensor = test::random_normal({37, 16}, "another");
  folder.write(temp_ / "other");
  expect_refused(temp_ / "other", {"tie_word_embeddings is true", "another table than model.embed_tokens.weight"},
                 "other");
  folder.tensors.back().tensor = Tensor::zeros({36, 16});
  folder.write(temp_ / "short");
  expect_refused(temp_ / "short", {"tie_word_embeddings is true", "another table"}, "short");
}

// Kimi-Linear as its own authors name things, with layers counted from 1, and as transformers saves it.
TEST_F(HuggingFace, KimiLinearIsReadInBothForms) {
  HfFolder folder({.family = "kimi_linear",
                   .layers = 3,
                   .kv_heads = 4,
                   .is_linear = {true, false, true},
                   .value_heads = 3,
                   .rotated = 2},
                  false);
  folder.write(temp_ / "plain");
  import_folder({.folder = temp_ / "plain", .run = temp_ / "plain-run"});
  for (const char* key :
       {"layer_types", "mlp_layer_types", "linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim"})
    folder.config.erase(key);
  folder.config["linear_attn_config"] = {{"full_attn_layers", {2}},
                                         {"kda_layers", {1, 3}},
                                         {"num_heads", 3},
                                         {"head_dim", 3},
                                         {"short_conv_kernel_size", 4}};
  folder.config["first_k_dense_replace"] = 3;
  folder.config["num_experts"] = 256;
  folder.config["rope_theta"] = 10000.0;
  for (io::NamedTensor& t : folder.tensors)
    if (const size_t at = t.name.find(".mlp."); at != std::string::npos) t.name.replace(at, 5, ".block_sparse_moe.");
  folder.write(temp_ / "other");
  const Imported done = import_folder({.folder = temp_ / "other", .run = temp_ / "other-run"});
  EXPECT_TRUE(done.report.is_complete()) << to_string(done.report);
  test::expect_same(test::logits_of(temp_ / "other-run", test::kIds), test::logits_of(temp_ / "plain-run", test::kIds),
                    0, "both forms");
}

}  // namespace
}  // namespace weft::huggingface
