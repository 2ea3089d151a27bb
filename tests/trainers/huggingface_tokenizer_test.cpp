// Tokenizers of folders, in and out: tokenizer.json and GPT-2's pair, the id that ends a text and the one that begins it.
#include <gtest/gtest.h>

#include <functional>

#include "tests/support/errors.h"
#include "tests/trainers/huggingface_support.h"
#include "trainers/huggingface/import.h"
#include "trainers/huggingface/tokenizer_files.h"
#include "trainers/run/prompt_start.h"
#include "weft/data/tokenizer.h"
#include "weft/trainers/cli.h"

namespace weft::huggingface {
namespace {

using reference::HfModel;
using test::error_of;
using test::HfFolder;
using test::HuggingFace;
using test::Json;
using test::load_quietly;

Json json_of(const std::string& path) { return Json::parse(io::read_file(path)); }

std::string joined(const std::vector<std::string>& notes) {
  std::string all;
  for (const std::string& note : notes) all += note + "\n";
  return all;
}

// A tokenizer of 270 ids, 269 the end of text.
Json learned(const std::string& folder, const std::string& pattern) {
  io::write_file_atomically(folder + "/text.txt", "some words, some other words and some more words: the same words");
  data::train_bpe({folder + "/text.txt"}, folder + "/learned.json", {.vocab = 270, .pattern = pattern});
  return json_of(folder + "/learned.json");
}

// GPT-2's two files of it.
void write_pair(const std::string& folder, const Json& tokenizer) {
  Json vocab = tokenizer["model"]["vocab"];
  for (const Json& added : tokenizer["added_tokens"]) vocab[added["content"].get<std::string>()] = added["id"];
  std::string merges = "#version: 0.2\n";
  for (const Json& merge : tokenizer["model"]["merges"]) merges += merge.get<std::string>() + "\n";
  io::write_file_atomically(folder + "/vocab.json", vocab.dump());
  io::write_file_atomically(folder + "/merges.txt", merges);
}

TEST_F(HuggingFace, TheEndOfATextGoesInAndOut) {
  struct Row {
    const char* name;
    HfModel model;
    std::optional<Json> given;  // absent: the field is
    std::optional<int32_t> wanted;
    std::string note = {};
  };
  const HfModel gpt2{.family = "gpt2", .heads = 4, .kv_heads = 4, .head_dim = 4, .is_tied = true};
  const HfModel kimi{.family = "kimi_linear", .layers = 1, .kv_heads = 4, .is_linear = {true}, .rotated = 2};
  const std::vector<Row> rows = {
      {"default", {}, {}, 2},
      {"null", {}, Json(nullptr), {}},
      {"id", {}, Json(7), 7},
      {"zero", {.family = "qwen3"}, Json(0), 0},
      {"last", {}, Json(36), 36},
      {"beyond", {}, Json(37), {}, "eos_token_id 37 is not taken: the model has 37 ids"},
      {"list", {}, Json(std::vector<int>{5, 6}), 5, "of 2 ids in eos_token_id the first is taken, 5"},
      {"empty", {}, Json(std::vector<int>{}), {}},
      {"qwen2", {.family = "qwen2"}, {}, {}},
      {"gpt2", gpt2, {}, {}},
      {"gpt2-id", gpt2, Json(3), 3},
      {"kimi", kimi, {}, {}},
      {"kimi-id", kimi, Json(4), 4}};
  for (const Row& row : rows) {
    const std::string name = row.name, run = temp_ / (name + "-run"), out = temp_ / (name + "-out");
    HfFolder folder(row.model, row.model.family == "qwen2");
    if (row.given) folder.config["eos_token_id"] = *row.given;
    folder.write(temp_ / name);
    const Imported done = import_folder({.folder = temp_ / name, .run = run});
    EXPECT_EQ(load_quietly(run).data.end_of_text, row.wanted) << name;
    EXPECT_NE(joined(done.notes).find(row.note), std::string::npos) << name << ": " << joined(done.notes);
    export_run({.run = run, .folder = out});
    const Json config = json_of(out + "/config.json");
    for (const char* key : {"bos_token_id", "eos_token_id"}) ASSERT_TRUE(config.contains(key)) << name << " " << key;
    EXPECT_TRUE(config["bos_token_id"].is_null()) << name;
    EXPECT_EQ(config["eos_token_id"], row.wanted ? Json(*row.wanted) : Json()) << name;
    import_folder({.folder = out, .run = temp_ / (name + "-again")});
    EXPECT_EQ(load_quietly(temp_ / (name + "-again")).data.end_of_text, row.wanted) << name;
  }
  const std::vector<Json> bad{
      "2", -1, 1.5, true, Json::object(), 2147483648u, Json::array({2, "x"}), Json::array({-1})};
  for (size_t i = 0; i < bad.size(); ++i) {
    const std::string path = temp_ / ("bad" + std::to_string(i));
    HfFolder folder({}, false);
    folder.config["eos_token_id"] = bad[i];
    folder.write(path);
    EXPECT_EQ(error_of([&] { import_folder({.folder = path, .run = path + "-run"}); },
                       {"config.json: eos_token_id is ", "a list of ids, or null"}),
              "")
        << bad[i];
  }
}

// The model may have more ids than its tokenizer: what config.json says of those is not taken, what the command line says is refused.
TEST_F(HuggingFace, TheEndOfATextIsAnIdOfTheTokenizer) {
  const Json tokenizer = learned(temp_ / "", "llama3");
  HfFolder folder({.vocab = 300}, false);
  folder.config["eos_token_id"] = 290;
  folder.write(temp_ / "hf");
  io::write_file_atomically(temp_ / "hf/tokenizer.json", tokenizer.dump());
  EXPECT_EQ(
      error_of(
          [&] { import_folder({.folder = temp_ / "hf", .run = temp_ / "bad", .overrides = {"data.end_of_text=290"}}); },
          {"data.end_of_text is 290, but the bpe tokenizer has 270 ids", "[0, 269]"}),
      "");
  EXPECT_FALSE(io::file_exists(temp_ / "bad/config.txtpb"));
  const Imported done = import_folder({.folder = temp_ / "hf", .run = temp_ / "run"});
  EXPECT_NE(joined(done.notes).find("eos_token_id 290 is not taken"), std::string::npos) << joined(done.notes);
  EXPECT_EQ(load_quietly(temp_ / "run").data.end_of_text, 269);
}

TEST_F(HuggingFace, AnIdThatATokenizerPutsBeforeATextStandsBeforePrompts) {
  Json tokenizer = learned(temp_ / "", "llama3");
  const std::string begin = "<|begin|>", run = temp_ / "run";
  tokenizer["added_tokens"].push_back({{"id", 270}, {"content", begin}, {"special", true}});
  tokenizer["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", Json::array({{{"SpecialToken", {{"id", begin}, {"type_id", 0}}}},
                              {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}})},
      {"special_tokens", {{begin, {{"id", begin}, {"ids", Json::array({270})}, {"tokens", Json::array({begin})}}}}}};
  const HfFolder folder({.vocab = 300}, false);
  folder.write(temp_ / "hf");
  io::write_file_atomically(temp_ / "hf/tokenizer.json", tokenizer.dump());
  const Imported done = import_folder({.folder = temp_ / "hf", .run = run});
  EXPECT_EQ(done.tokenizer, "bpe");
  EXPECT_NE(joined(done.notes).find("id 270 stands before every prompt"), std::string::npos) << joined(done.notes);
  train::LoadedRun loaded = load_quietly(run);
  EXPECT_EQ(loaded.data.end_of_text, 269) << "the tokenizer's, where config.json says nothing";
  config::Data data = loaded.config.experiment.data();
  EXPECT_EQ(train::prompt_start(data), 270);
  data.set_weights_only(false);
  EXPECT_EQ(train::prompt_start(data), std::nullopt) << "a training on texts has not seen it";

  auto read_by_sample = [&](const std::string& prompt) {
    std::vector<std::string> words{"weft", "sample", run, "--prompt", prompt, "--logits", temp_ / "file", "--quiet"};
    std::vector<char*> pointers;
    for (std::string& word : words) pointers.push_back(word.data());
    EXPECT_EQ(cli::main(static_cast<int>(pointers.size()), pointers.data()), cli::kSuccess);
    return io::SafetensorsFile::open(temp_ / "file").load("ids").to_vector<int32_t>();
  };
  std::vector<int32_t> wanted = loaded.data.tokenizer->encode("some words");
  wanted.insert(wanted.begin(), 270);
  EXPECT_EQ(read_by_sample("some words"), wanted);
  EXPECT_EQ(read_by_sample(""), std::vector<int32_t>{270});

  export_run({.run = run, .folder = temp_ / "out"});
  const Json config = json_of(temp_ / "out/config.json");
  EXPECT_EQ(config["bos_token_id"], 270);
  EXPECT_EQ(config["eos_token_id"], 269);
  EXPECT_EQ(json_of(temp_ / "out/tokenizer.json"), tokenizer);
}

TEST_F(HuggingFace, WhatOfATokenizerIsNotTakenIsNamed) {
  const Json tokenizer = learned(temp_ / "", "gpt2");
  const std::string end = "<|endoftext|>";
  const Json special{{"SpecialToken", {{"id", end}, {"type_id", 0}}}}, text{{"Sequence", {{"id", "A"}}}};
  auto with_template = [&](const std::vector<Json>& pieces) {
    return [=](Json& file, Json&) {
      file["post_processor"] = {{"type", "TemplateProcessing"},
                                {"single", pieces},
                                {"special_tokens", {{end, {{"ids", Json::array({269})}}}}}};
    };
  };
  struct Row {
    std::function<void(Json& tokenizer, Json& config)> change;
    std::string name, note;  // of the tokenizer
  };
  const std::vector<Row> rows = {
      {with_template({text, special}), "bpe", "the ids 269 that tokenizer.json puts behind a text are not put there"},
      {with_template({special, special, text}), "bpe", "the ids 269, 269 that tokenizer.json puts before a text"},
      {[](Json&, Json& config) { config["eos_token_id"] = 9; }, "bpe",
       "id 9 ends a text, as config.json says; the tokenizer's own is 269"},
      {[](Json&, Json& config) { config["eos_token_id"] = 280; }, "bpe",
       "eos_token_id 280 is not taken: the tokenizer has 270 ids"},
      {[](Json& file, Json&) { file["decoder"]["type"] = "Metaspace"; }, "ids", "the decoder Metaspace is not known"},
      {[](Json& file, Json&) {
         file["post_processor"] = Json::object();
         file["post_processor"]["type"] = "RobertaProcessing";
       },
       "ids", "the post_processor RobertaProcessing is not known"}};
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::string path = temp_ / std::to_string(i);
    HfFolder folder({.vocab = 300}, false);
    Json file = tokenizer;
    rows[i].change(file, folder.config);
    folder.write(path);
    io::write_file_atomically(path + "/tokenizer.json", file.dump());
    const Imported done = import_folder({.folder = path, .run = path + "-run"});
    EXPECT_EQ(done.tokenizer, rows[i].name) << i << ": " << joined(done.notes);
    EXPECT_NE(joined(done.notes).find(rows[i].note), std::string::npos) << joined(done.notes);
    const train::LoadedRun loaded = load_quietly(path + "-run");
    EXPECT_EQ(train::prompt_start(loaded.config.experiment.data()), std::nullopt) << i;
    const std::vector<int32_t> prompt = train::prompt_ids(loaded.data, "");
    ASSERT_EQ(prompt.size(), 1u) << i;
    EXPECT_LT(prompt[0], loaded.data.tokenizer->vocab_size()) << i;
    loaded.data.tokenizer->decode(prompt);
  }
}

TEST_F(HuggingFace, TheFirstTokenGoesOutWhereTheModelHasMoreIds) {
  learned(temp_ / "", "gpt2");
  config::Loaded run;
  run.experiment.mutable_data()->mutable_tokenizer()->mutable_bpe()->set_file(temp_ / "learned.json");
  EXPECT_EQ(give_tokenizer(run, 271).begin_of_text, std::nullopt);
  run.experiment.mutable_data()->set_first_token(true);
  EXPECT_EQ(give_tokenizer(run, 271).begin_of_text, 270);
  run.experiment.mutable_model()->set_vocab(300);
  EXPECT_EQ(give_tokenizer(run, 300).begin_of_text, 270);
  run.experiment.mutable_data()->mutable_tokenizer()->mutable_bytes();
  EXPECT_EQ(give_tokenizer(run, 300).begin_of_text, 256);
  run.experiment.mutable_data()->mutable_tokenizer()->mutable_ids();
  EXPECT_EQ(give_tokenizer(run, 300).begin_of_text, std::nullopt) << "no file says how many ids there are";
  run.experiment.mutable_model()->clear_vocab();
  EXPECT_EQ(give_tokenizer(run, 300).begin_of_text, 299);
}

TEST_F(HuggingFace, ThePairOfGpt2IsReadAndReadBack) {
  const Json tokenizer = learned(temp_ / "", "gpt2");
  const auto ids = data::make_bpe_tokenizer(temp_ / "learned.json")->encode("some other words");
  auto expect_taken = [&](const std::string& folder, const std::string& run) {
    const Imported done = import_folder({.folder = folder, .run = run});
    EXPECT_EQ(done.tokenizer, "gpt2") << joined(done.notes);
    const train::LoadedRun loaded = load_quietly(run);
    EXPECT_EQ(loaded.data.tokenizer->encode("some other words"), ids);
    EXPECT_EQ(loaded.data.end_of_text, 269);
    for (const char* name : {"/vocab.json", "/merges.txt"}) EXPECT_TRUE(io::file_exists(run + name)) << name;
  };
  const HfFolder gpt2({.family = "gpt2", .vocab = 300, .heads = 4, .kv_heads = 4, .head_dim = 4, .is_tied = true},
                      false);
  const HfFolder llama({.vocab = 300}, false);
  // The folder of GPT-2 needs no other file; then the one that an export writes, where the class of the tokenizer stands.
  gpt2.write(temp_ / "gpt2"), write_pair(temp_ / "gpt2", tokenizer);
  llama.write(temp_ / "llama"), write_pair(temp_ / "llama", tokenizer);
  io::write_file_atomically(temp_ / "llama/tokenizer_config.json", R"({"tokenizer_class": "GPT2TokenizerFast"})");
  for (const std::string name : {"gpt2", "llama"}) {
    expect_taken(temp_ / name, temp_ / (name + "-run"));
    export_run({.run = temp_ / (name + "-run"), .folder = temp_ / (name + "-out")});
    EXPECT_EQ(json_of(temp_ / (name + "-out/tokenizer_config.json"))["tokenizer_class"], "GPT2Tokenizer");
    EXPECT_EQ(json_of(temp_ / (name + "-out/config.json"))["eos_token_id"], 269);
    expect_taken(temp_ / (name + "-out"), temp_ / (name + "-again"));
  }
  struct Row {
    std::string config;  // tokenizer_config.json; empty: absent
    std::string note;
  };
  const std::vector<Row> rows = {
      {"", "do not say how texts are cut"},
      {R"({"tokenizer_class": "Qwen2Tokenizer"})", "tokenizer_class is \"Qwen2Tokenizer\""},
      {"{}", "tokenizer_class is \"\""},
      {"[", "not valid JSON"},
      {R"({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true})", "add_prefix_space is true"},
      {R"({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": true})", "add_bos_token is true"}};
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::string path = temp_ / ("odd" + std::to_string(i));
    llama.write(path), write_pair(path, tokenizer);
    if (!rows[i].config.empty()) io::write_file_atomically(path + "/tokenizer_config.json", rows[i].config);
    const Imported done = import_folder({.folder = path, .run = path + "-run"});
    EXPECT_EQ(done.tokenizer, "ids") << i;
    EXPECT_NE(joined(done.notes).find(rows[i].note), std::string::npos) << joined(done.notes);
  }
  io::write_file_atomically(temp_ / "gpt2/merges.txt", "no merge\n");
  const Imported damaged = import_folder({.folder = temp_ / "gpt2", .run = temp_ / "damaged"});
  EXPECT_EQ(damaged.tokenizer, "ids");
  EXPECT_NE(joined(damaged.notes).find("merges.txt:1"), std::string::npos) << joined(damaged.notes);
  // More ids than the model has.
  HfFolder small({.family = "gpt2", .vocab = 269, .heads = 4, .kv_heads = 4, .head_dim = 4, .is_tied = true}, false);
  small.write(temp_ / "small"), write_pair(temp_ / "small", tokenizer);
  const Imported beyond = import_folder({.folder = temp_ / "small", .run = temp_ / "small-run"});
  EXPECT_NE(joined(beyond.notes).find("has 270 ids, and the model has 269"), std::string::npos) << joined(beyond.notes);
}

}  // namespace
}  // namespace weft::huggingface
