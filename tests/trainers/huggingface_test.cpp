// Folders of every family in and out: the logits against plain loops, what is written against what was read, and folders
// that are damaged or hold what Weft does not have.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/support/errors.h"
#include "tests/trainers/huggingface_support.h"
#include "trainers/config/translate.h"
#include "trainers/huggingface/folder.h"
#include "trainers/huggingface/import.h"
#include "trainers/huggingface/model_config.h"

namespace weft::huggingface {
namespace {

using reference::HfModel;
using test::error_of;
using test::expect_same;
using test::HfFolder;
using test::HuggingFace;
using test::Json;
using test::kIds;
using test::logits_of;

struct Case {
  std::string name;
  HfModel model;
  bool has_bias = false;
  size_t files = 1;
};

std::vector<Case> cases() {
  HfModel gpt2{.family = "gpt2", .heads = 4, .kv_heads = 4, .head_dim = 4, .is_tied = true};
  HfModel untied = gpt2;
  untied.is_tied = false;
  return {
      {"llama", {}, false},
      {"llama_tied_bias_shards", {.is_tied = true}, true, 3},
      {"llama3_scaling", {.head_dim = 8, .llama3_factor = 4}, false},
      {"qwen2", {.family = "qwen2", .kv_heads = 1}, true},
      {"qwen2_windows", {.family = "qwen2", .windows = {0, 3}}, true, 2},
      {"qwen3", {.family = "qwen3", .is_tied = true}, false},
      {"qwen3_bias", {.family = "qwen3", .kv_heads = 4}, true},
      {"qwen3_next",
       {.family = "qwen3_next", .layers = 4, .head_dim = 8, .is_linear = {true, true, true, false}, .rotated = 4}},
      {"qwen3_next_linear_shards", {.family = "qwen3_next", .is_linear = {true, true}, .kernel = 3}, false, 2},
      {"kimi_linear",
       {.family = "kimi_linear",
        .layers = 4,
        .kv_heads = 4,
        .is_linear = {true, true, true, false},
        .value_heads = 3,
        .key_dim = 4,
        .rotated = 2}},
      {"kimi_linear_shards",
       {.family = "kimi_linear",
        .kv_heads = 4,
        .eps = 1e-3,
        .is_linear = {false, true},
        .key_dim = 3,
        .kernel = 2,
        .rotated = 4,
        .q_rank = 3},
       false,
       3},
      {"kimi_linear_attention", {.family = "kimi_linear", .kv_heads = 4, .is_linear = {false, false}, .rotated = 2}},
      {"gpt2", gpt2, false},
      {"gpt2_untied_shards", untied, false, 4}};
}

TEST_F(HuggingFace, LogitsOfAFolderAreThoseOfItsEquations) {
  for (const Case& c : cases()) {
    const HfFolder folder(c.model, c.has_bias);
    folder.write(temp_ / c.name, c.files);
    const Imported done = import_folder({.folder = temp_ / c.name, .run = temp_ / (c.name + "-run")});
    EXPECT_TRUE(done.report.is_complete()) << c.name << ": " << to_string(done.report);
    EXPECT_EQ(done.family, c.model.family);
    const std::vector<float> ours = logits_of(temp_ / (c.name + "-run"), kIds);
    const std::vector<double> wanted = folder.model.logits(kIds);
    ASSERT_EQ(ours.size(), wanted.size()) << c.name;
    double largest = 0, worst = 0;
    for (size_t i = 0; i < ours.size(); ++i) {
      largest = std::max(largest, std::abs(wanted[i]));
      worst = std::max(worst, std::abs(static_cast<double>(ours[i]) - wanted[i]));
    }
    EXPECT_LT(worst, 2e-5 * (1 + largest)) << c.name;
    EXPECT_GT(largest, 0.1) << c.name;
  }
}

TEST_F(HuggingFace, AnExportedFolderHasTheTensorsThatWereImported) {
  for (const Case& c : cases()) {
    // Bit for bit, but for gains that are stored as the difference from 1, and for what goes into a norm with another eps.
    const float slack = c.model.is_next() || c.model.is_kimi() ? 1e-6f : 0;
    const HfFolder folder(c.model, c.has_bias);
    const std::string run = temp_ / (c.name + "-run"), out = temp_ / (c.name + "-out");
    folder.write(temp_ / c.name, c.files);
    import_folder({.folder = temp_ / c.name, .run = run});
    const Exported done = export_run({.run = run, .folder = out});
    EXPECT_EQ(done.family, c.model.family);
    const io::SafetensorsFile file = io::SafetensorsFile::open(out + "/model.safetensors");
    EXPECT_EQ(file.tensors().size(), folder.tensors.size()) << c.name;
    for (const io::NamedTensor& wanted : folder.tensors) {
      ASSERT_NE(file.find(wanted.name), nullptr) << c.name << " " << wanted.name;
      const Tensor got = file.load(wanted.name);
      ASSERT_EQ(got.shape(), wanted.tensor.shape()) << wanted.name;
      expect_same(got.to_vector<float>(), wanted.tensor.to_vector<float>(), slack, c.name + " " + wanted.name);
    }
    // And again: what was written is read as the same model.
    import_folder({.folder = out, .run = temp_ / (c.name + "-again")});
    expect_same(logits_of(run, kIds), logits_of(temp_ / (c.name + "-again"), kIds), 100 * slack, c.name);
  }
}

TEST_F(HuggingFace, Bf16AndHalfAreReadAsTheyAre) {
  HfFolder folder({}, false);
  for (io::NamedTensor& t : folder.tensors)
    t.tensor = Tensor::from(std::span<const float>(t.tensor.to_vector<float>()), t.tensor.shape());
  folder.write(temp_ / "f32");
  import_folder({.folder = temp_ / "f32", .run = temp_ / "run"});
  export_run({.run = temp_ / "run", .folder = temp_ / "bf16", .is_bf16 = true});
  import_folder({.folder = temp_ / "bf16", .run = temp_ / "rounded"});
  const io::SafetensorsFile file = io::SafetensorsFile::open(temp_ / "bf16/model.safetensors");
  EXPECT_EQ(file.find("model.norm.weight")->dtype, "BF16");
  const std::vector<float> a = logits_of(temp_ / "run", kIds), b = logits_of(temp_ / "rounded", kIds);
  EXPECT_NE(a, b);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 0.2) << i;

  // One F16 tensor beside: 1, -2, the smallest number, the largest.
  const std::string json = R"({"x.weight":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}})";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(json.size());
  bytes += json + std::string("\x00\x3c\x00\xc0\x01\x00\xff\x7b", 8);
  io::make_folders(temp_ / "half");
  io::write_file_atomically(temp_ / "half/model.safetensors", bytes);
  io::write_file_atomically(temp_ / "half/config.json", "{}");
  EXPECT_EQ(Folder::open(temp_ / "half").load("x.weight").to_vector<float>(),
            (std::vector<float>{1, -2, std::ldexp(1.0f, -24), 65504}));
}

TEST_F(HuggingFace, APartialImportSaysWhatItTook) {
  HfFolder folder({}, false);
  for (io::NamedTensor& t : folder.tensors) {
    if (t.name == "lm_head.weight") t.name = "score.weight";
    if (t.name == "model.layers.1.mlp.up_proj.weight") t.tensor = Tensor::zeros({3, 16});
  }
  folder.write(temp_ / "odd");
  EXPECT_EQ(error_of([&] { import_folder({.folder = temp_ / "odd", .run = temp_ / "run"}); },
                     {"does not fit", "head.weight (lm_head.weight)", "score.weight", "layers.1.ffn.up.weight",
                      "[3, 16]", "[20, 16]", "--partial"}),
            "");
  EXPECT_FALSE(io::file_exists(temp_ / "run"));
  const Imported done = import_folder({.folder = temp_ / "odd", .run = temp_ / "run", .is_partial = true});
  EXPECT_EQ(done.report.missing.size(), 1u);
  EXPECT_EQ(done.report.mismatched.size(), 1u);
  EXPECT_EQ(done.report.unexpected, std::vector<std::string>{"score.weight"});
  EXPECT_EQ(done.report.loaded.size(), folder.tensors.size() - 2);
  EXPECT_EQ(logits_of(temp_ / "run", kIds).size(), kIds.size() * 37);
}

TEST_F(HuggingFace, NamesWithoutThePrefixAndMaskBuffersAreKnown) {
  HfFolder folder({.family = "gpt2", .kv_heads = 4, .head_dim = 4, .is_tied = true}, false);
  for (io::NamedTensor& t : folder.tensors) t.name = t.name.substr(std::string("transformer.").size());
  folder.tensors.push_back({"h.0.attn.bias", Tensor::zeros({1, 1, 24, 24})});
  folder.write(temp_ / "bare");
  const Imported done = import_folder({.folder = temp_ / "bare", .run = temp_ / "run"});
  EXPECT_TRUE(done.report.is_complete()) << to_string(done.report);
}

// A change of a good folder, and what its error says.
struct Damage {
  std::string name;
  std::function<void(HfFolder&, const std::string& path)> change;  // before or after it is written
  bool is_after = false;
  std::vector<std::string_view> parts;
};

TEST_F(HuggingFace, RefusesDamagedFoldersWithOneError) {
  auto set = [](const char* key, const Json& value) {
    return [=](HfFolder& folder, const std::string&) { folder.config[key] = value; };
  };
  auto text = [](const char* file, const std::string& content) {
    return [=](HfFolder&, const std::string& path) { io::write_file_atomically(path + "/" + file, content); };
  };
  const std::string deep = std::string(5000, '[') + std::string(5000, ']');
  auto index = [](const std::string& name) { return Json{{"weight_map", {{"model.norm.weight", name}}}}.dump(); };
  const std::vector<Damage> rows = {
      {"no type",
       set("model_type", nullptr),
       false,
       {"model_type", "llama, qwen2, qwen3, qwen3_next, kimi_linear and gpt2"}},
      {"other type", set("model_type", "mamba"), false, {"mamba", "not import"}},
      {"text for a number", set("hidden_size", "wide"), false, {"hidden_size is \"wide\"", "whole number"}},
      {"fraction", set("num_hidden_layers", 2.5), false, {"num_hidden_layers is 2.5"}},
      {"negative", set("vocab_size", -3), false, {"vocab_size is -3"}},
      {"huge unsigned", set("hidden_size", 18446744073709551615u), false, {"hidden_size is 18446744073709551615"}},
      {"many layers", set("num_hidden_layers", 1000000), false, {"num_hidden_layers is 1000000"}},
      {"layers that the file lacks",
       set("num_hidden_layers", 5),
       false,
       {"does not fit", "layers.2.mixer_norm.weight"}},
      {"more layers than tensors",
       set("num_hidden_layers", 22),
       false,
       {"config.json: says 22 layers, and the folder has 21 tensors", "--partial"}},
      {"a vocabulary that the file lacks", set("vocab_size", 2000000000), false, {"does not fit", "2000000000"}},
      {"heads", set("num_key_value_heads", 3), false, {"kv_heads"}},
      {"eps", set("rms_norm_eps", -1), false, {"rms_norm_eps"}},
      {"activation", set("hidden_act", "relu"), false, {"hidden_act is \"relu\""}},
      {"mlp bias", set("mlp_bias", true), false, {"mlp_bias"}},
      {"scaling",
       set("rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2}}),
       false,
       {"rope_type is \"dynamic\"", "yarn"}},
      {"scaling as a list", set("rope_scaling", Json::array({1})), false, {"rope_scaling", "object"}},
      {"scaling with more",
       set("rope_scaling", {{"rope_type", "linear"}, {"factor", 2}, {"odd", 1}}),
       false,
       {"odd", "unknown"}},
      {"experts", set("model_type", "qwen3_next"), false, {"layer 0 has 512 experts", "num_experts = 0"}},
      {"a dense layer that is none",
       [](HfFolder& folder, const std::string&) {
         folder.config["model_type"] = "qwen3_next";
         folder.config["mlp_only_layers"] = {0, 65536};
       },
       false,
       {"mlp_only_layers has an entry that is no layer from 0 to 1"}},
      {"more dense layers than layers",
       [](HfFolder& folder, const std::string&) {
         folder.config["model_type"] = "qwen3_next";
         folder.config["mlp_only_layers"] = std::vector<int64_t>(100000, 1);
       },
       false,
       {"mlp_only_layers is no list of at most 2 layers"}},
      {"quantised", set("quantization_config", {{"bits", 4}}), false, {"quantization_config"}},
      {"config is a list", text("config.json", "[1]"), true, {"config.json", "object"}},
      {"config is no JSON", text("config.json", "{\"a\": "), true, {"config.json", "not valid JSON"}},
      {"deep config", text("config.json", deep), true, {"config.json", "nested deeper"}},
      {"number beyond doubles",
       text("config.json", R"({"model_type":"llama","hidden_size":1e999})"),
       true,
       {"config.json", "not valid JSON"}},
      {"weights cut", text("model.safetensors", "short"), true, {"model.safetensors"}},
      {"index escapes",
       text("model.safetensors.index.json", index("../model.safetensors")),
       true,
       {"../model.safetensors", "same folder"}},
      {"index is absolute", text("model.safetensors.index.json", index("/etc/passwd")), true, {"/etc/passwd"}},
      {"index names no shard",
       text("model.safetensors.index.json", index("absent.safetensors")),
       true,
       {"absent.safetensors"}},
      {"index maps to a number",
       text("model.safetensors.index.json", R"({"weight_map":{"a":1}})"),
       true,
       {"is no text"}},
      {"index without map", text("model.safetensors.index.json", "{}"), true, {"weight_map"}},
      {"index of another tensor",
       text("model.safetensors.index.json", R"({"weight_map":{"a":"model.safetensors"}})"),
       true,
       {"tensor 'a' is not in"}},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    const Damage& row = rows[i];
    const std::string path = temp_ / std::to_string(i), run = path + "-run";
    HfFolder folder({}, false);
    if (!row.is_after) row.change(folder, path);
    folder.write(path);
    if (row.is_after) row.change(folder, path);
    EXPECT_EQ(error_of([&] { import_folder({.folder = path, .run = run}); }, row.parts), "") << row.name;
    EXPECT_FALSE(io::file_exists(run + "/config.txtpb")) << row.name;
  }
  EXPECT_EQ(error_of([&] { import_folder({.folder = temp_ / "absent", .run = temp_ / "r"}); }, {"no such folder"}), "");
  io::make_folders(temp_ / "bare");
  io::write_file_atomically(temp_ / "bare/config.json", "{}");
  EXPECT_EQ(
      error_of([&] { import_folder({.folder = temp_ / "bare", .run = temp_ / "r"}); }, {"neither", "safetensors"}), "");
}

// A config of some bytes, whose model would keep a machine busy before its first missing tensor is found.
TEST_F(HuggingFace, MoreLayersThanTensorsAreRefusedBeforeAModelIsMade) {
  const HfModel kimi{.family = "kimi_linear", .kv_heads = 4, .is_linear = {true, false}, .rotated = 2};
  const HfModel next{.family = "qwen3_next", .is_linear = {true, false}};
  const HfModel gpt2{.family = "gpt2", .heads = 4, .kv_heads = 4, .head_dim = 4, .is_tied = true};
  size_t number = 0;
  for (const HfModel& model : {HfModel{}, kimi, next, gpt2})
    for (const auto& [layers, said] :
         {std::pair(4096, std::string("says 4096 layers, and the folder has ")), {4097, "layer"}, {65536, "layer"}}) {
      HfFolder folder(model, false);
      folder.config[model.is_gpt2() ? "n_layer" : "num_hidden_layers"] = layers;
      for (const char* key : {"layer_types", "mlp_layer_types"}) folder.config.erase(key);
      if (model.is_kimi()) folder.config["first_k_dense_replace"] = layers;
      const std::string path = temp_ / std::to_string(number++);
      folder.write(path);
      const std::string count = std::to_string(layers);
      EXPECT_EQ(error_of([&] { import_folder({.folder = path, .run = path + "-run"}); }, {"config.json", said, count}),
                "")
          << model.family;
      EXPECT_FALSE(io::file_exists(path + "-run")) << model.family;
    }
}

TEST_F(HuggingFace, WhatHasNoFormThereIsRefusedByName) {
  struct Row {
    std::string change;
    std::vector<std::string_view> parts;
  };
  const char* base = R"(model { dim: 64 layers: 2 context: 32 mixer { softmax { heads: 4 } } }
data { train { path: "a.txt" } val { fraction: 0.1 } } train { tokens: 6400 })";
  const std::vector<Row> rows = {
      {"model.mixer[0].softmax.gate=[{position:out}]", {"model.mixer[0].softmax.gate"}},
      {"model.mixer[0].softmax.sink={kind:logit}", {"softmax.sink"}},
      {"model.mixer[0].softmax.soft_cap=30", {"soft_cap"}},
      {"model.mixer[0].softmax.l2_norm=true", {"l2_norm"}},
      {"model.mixer=[{retnet{heads:4}}]", {"retnet"}},
      {"model.position={none{}}", {"model.position"}},
      {"model.position.rope.style=interleaved", {"style"}},
      {"model.position.rope.fraction=0.5", {"model.position.rope.fraction"}},
      {"model.adapter=[{match:\"layers.*\"}]", {"model.adapter"}},
      {"model.mixer=[{delta{heads:4,decay:channel}}]", {"delta"}},
      {"model.residual={delta{}}", {"model.residual"}},
      {"model.norm={layer{}}", {"model.norm"}},
      {"model.ffn={gelu{}}", {"model.ffn"}},
      {"model.ffn={none{}}", {"model.ffn={none{}}", "no form in a Hugging Face folder"}},
      {"model.position={learned{}}", {"model.norm"}},
  };
  const config::Loaded plain = config::read_string(base, "base.txtpb", "/config", {});
  for (const Row& row : rows) {
    config::Loaded loaded = config::read_string(base, "base.txtpb", "/config", {row.change});
    config::resolve(loaded);
    EXPECT_EQ(error_of([&] { write_model(loaded, 256); }, row.parts), "") << row.change;
  }
  for (const char* change :
       {"model.mixer[0].softmax.qk_norm=true", "model.mixer[0].softmax.input_bias=true",
        "model.mixer[0].softmax.bias=true", "model.position.rope.scaling={yarn{factor:4,original_context:16}}",
        "model.mixer[0].softmax.dropout=0.1", "model.mixer=[{softmax{heads:4,window:8,qk_norm:true}}]",
        "model.mixer=[{delta{heads:4,decay:head,head_dim:8,value_dim:8,norm_eps:1e-6}}]"}) {
    config::Loaded loaded = config::read_string(base, "base.txtpb", "/config", {change});
    config::resolve(loaded);
    EXPECT_NO_THROW(write_model(loaded, 256)) << change;
  }
}

TEST_F(HuggingFace, LayersInMlpOnlyLayersHaveNoExperts) {
  HfFolder folder({.family = "qwen3_next", .layers = 2, .is_linear = {true, true}}, false);
  folder.config["num_experts"] = 8;
  folder.config["mlp_only_layers"] = {1, 0};
  folder.write(temp_ / "all");
  EXPECT_TRUE(import_folder({.folder = temp_ / "all", .run = temp_ / "all-run"}).report.is_complete());
  folder.config["mlp_only_layers"] = {0};
  folder.write(temp_ / "one");
  EXPECT_EQ(
      error_of([&] { import_folder({.folder = temp_ / "one", .run = temp_ / "one-run"}); }, {"layer 1 has 8 experts"}),
      "");
}

// What a killed import leaves is a folder without a checkpoint: the same command makes the run.
TEST_F(HuggingFace, AnImportThatWasBrokenOffIsDoneAgain) {
  const HfFolder folder({.vocab = 300}, false);
  folder.write(temp_ / "hf");
  io::write_file_atomically(temp_ / "text.txt", "some words, some other words and some more words");
  data::train_bpe({temp_ / "text.txt"}, temp_ / "hf/tokenizer.json", {.vocab = 270});
  const ImportOptions options{.folder = temp_ / "hf", .run = temp_ / "run"};

  // The tokenizer cannot be written: there is no config yet which would name it.
  io::make_folders(temp_ / "early/tokenizer.json");
  EXPECT_THROW(import_folder({.folder = temp_ / "hf", .run = temp_ / "early"}), Error);
  EXPECT_FALSE(io::file_exists(temp_ / "early/config.txtpb"));

  EXPECT_EQ(import_folder(options).tokenizer, "bpe");
  io::rename_path(temp_ / "run/checkpoints/step-00000000", temp_ / "run/checkpoints/step-00000000.partial");
  io::remove_folder(temp_ / "run/checkpoints/latest");
  EXPECT_TRUE(import_folder(options).report.is_complete());
  EXPECT_EQ(logits_of(temp_ / "run", kIds).size(), kIds.size() * 300);
  EXPECT_FALSE(io::file_exists(temp_ / "run/checkpoints/step-00000000.partial"));
  EXPECT_EQ(error_of([&] { import_folder(options); }, {"holds a run already"}), "");
}

TEST_F(HuggingFace, AnImportedRunIsNotTrainedItself) {
  HfFolder folder({}, false);
  folder.write(temp_ / "hf");
  import_folder({.folder = temp_ / "hf", .run = temp_ / "run"});
  EXPECT_EQ(error_of([&] { import_folder({.folder = temp_ / "hf", .run = temp_ / "run"}); }, {"holds a run already"}),
            "");
  std::string program = "weft", command = "train", config = temp_ / "run/config.txtpb", flag = "--run",
              to = temp_ / "new", quiet = "--quiet";
  char* words[] = {program.data(), command.data(), config.data(), flag.data(), to.data(), quiet.data()};
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(cli::main(6, words), cli::kUsageError);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("data.weights_only"), std::string::npos) << said;
  EXPECT_NE(said.find("start={from:RUN}"), std::string::npos) << said;
}

}  // namespace
}  // namespace weft::huggingface
