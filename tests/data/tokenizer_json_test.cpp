// Files that are not known to the reader of tokenizer.json, and the special ids that a file puts around a text.
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "src/data/bpe.h"
#include "tests/data/bpe_support.h"
#include "tests/data/support.h"
#include "weft/data/tokenizer.h"

namespace weft::data {
namespace {

using test::expect_error;
using test::file_of;
using test::make;
using test::TempFolder;
using Ids = std::vector<int32_t>;
using Json = nlohmann::json;
using Words = std::vector<std::string>;

Json of_type(const char* type) {
  Json out = Json::object();
  out["type"] = type;
  return out;
}

// A template of these special tokens, of id 257, around the text "A".
Json template_of(const Words& names) {
  Json pieces = Json::array(), special = Json::object();
  for (const std::string& name : names) {
    const bool is_text = name == "A";
    pieces.push_back({{is_text ? "Sequence" : "SpecialToken", {{"id", name}, {"type_id", 0}}}});
    if (!is_text) special[name] = {{"id", name}, {"ids", {257}}, {"tokens", {name}}};
  }
  return {{"type", "TemplateProcessing"}, {"single", pieces}, {"pair", pieces}, {"special_tokens", special}};
}

TEST(Bpe, ReadsWhatATemplatePutsAroundATextAndPutsNothingThere) {
  TempFolder folder;
  Json file = file_of({{"a", "b"}});
  auto ends = [&](const Json& given) {
    file["post_processor"] = given;
    EXPECT_EQ(make(folder, file)->encode("ab"), (Ids{256}));
    TokenizerFile read = read_tokenizer_json(folder / "tokenizer.json");
    return std::pair(read.before, read.behind);
  };
  using Ends = std::pair<Ids, Ids>;
  const std::string end = "<|end_of_text|>";
  const Json bytes{{"type", "ByteLevel"}, {"trim_offsets", false}};
  EXPECT_EQ(ends(nullptr), Ends());
  EXPECT_EQ(ends(bytes), Ends());
  EXPECT_EQ(ends(template_of({end, "A"})), Ends(Ids{257}, Ids{}));
  EXPECT_EQ(ends(template_of({end, end, "A", end})), Ends(Ids{257, 257}, Ids{257}));
  EXPECT_EQ(ends({{"type", "Sequence"}, {"processors", Json::array({bytes, template_of({end, "A"})})}}),
            Ends(Ids{257}, Ids{}));
  const Words most(64, end);
  Words around = most;
  around.push_back("A"), around.insert(around.end(), most.begin(), most.end());
  EXPECT_EQ(ends(template_of(around)), Ends(Ids(64, 257), Ids(64, 257)));
  file["decoder"] = bytes, file["model"]["unk_token"] = "a", file["model"]["fuse_unk"] = true;
  EXPECT_EQ(ends(template_of({"A"})), Ends());
}

TEST(Bpe, RefusesFilesThatItDoesNotKnow) {
  struct Row {
    const char* name;
    std::function<void(Json&)> change;
    std::initializer_list<std::string_view> parts;
  };
  const Row rows[] = {
      {"unigram", [](Json& f) { f["model"]["type"] = "Unigram"; }, {"Unigram", "BPE"}},
      {"no model", [](Json& f) { f.erase("model"); }, {"has no model"}},
      {"no merges", [](Json& f) { f["model"].erase("merges"); }, {"has no merges"}},
      {"merges of numbers", [](Json& f) { f["model"]["merges"] = {1}; }, {"merge 0"}},
      {"merge of three",
       [](Json& f) {
         f["model"]["merges"].push_back({"a", "b", "c"});
       },
       {"merge 1"}},
      {"merge twice",
       [](Json& f) {
         f["model"]["merges"].push_back({"a", "b"});
       },
       {"merge 1", "already"}},
      {"merge of nothing",
       [](Json& f) {
         f["model"]["merges"].push_back({"q", "q"});
       },
       {"\"qq\"", "no token"}},
      {"vocab is a list", [](Json& f) { f["model"]["vocab"] = {1}; }, {"vocab"}},
      {"negative id", [](Json& f) { f["model"]["vocab"]["a"] = -1; }, {"\"a\"", "no id"}},
      {"huge id", [](Json& f) { f["model"]["vocab"]["a"] = 1000000000; }, {"\"a\"", "no id"}},
      {"far id", [](Json& f) { f["model"]["vocab"]["xyz"] = 9000000; }, {"ids up to 9000000"}},
      {"two tokens of an id", [](Json& f) { f["model"]["vocab"]["xyz"] = 97; }, {"97", "two tokens"}},
      {"missing byte", [](Json& f) { f["model"]["vocab"].erase("z"); }, {"no token for byte 122"}},
      {"no byte token", [](Json& f) { f["model"]["vocab"]["\xE4\xB8\xAD"] = 300; }, {"byte alphabet"}},
      {"added without id",
       [](Json& f) {
         f["added_tokens"].push_back({{"content", "<x>"}});
       },
       {"added token"}},
      {"added with two ids",
       [](Json& f) {
         f["added_tokens"].push_back({{"content", "a"}, {"id", 300}});
       },
       {"two ids"}},
      {"metaspace",
       [](Json& f) {
         f["pre_tokenizer"] = {{"type", "Metaspace"}};
       },
       {"Metaspace"}},
      {"no pre_tokenizer", [](Json& f) { f["pre_tokenizer"] = nullptr; }, {"pre_tokenizer"}},
      {"other pattern",
       [](Json& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\w+"; },
       {"\\w+", "Llama 3"}},
      {"removed pieces", [](Json& f) { f["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; }, {"Isolated"}},
      {"prefix space",
       [](Json& f) { f["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; },
       {"add_prefix_space"}},
      {"fallback", [](Json& f) { f["model"]["byte_fallback"] = true; }, {"byte_fallback"}},
      {"dropout", [](Json& f) { f["model"]["dropout"] = 0.1; }, {"dropout"}},
      {"unknown token", [](Json& f) { f["model"]["unk_token"] = 3; }, {"unk_token"}},
      {"fused", [](Json& f) { f["model"]["fuse_unk"] = "yes"; }, {"fuse_unk"}},
      {"decoder", [](Json& f) { f["decoder"] = of_type("WordPiece"); }, {"decoder WordPiece", "only ByteLevel"}},
      {"decoders",
       [](Json& f) {
         f["decoder"] = {{"type", "Sequence"}, {"decoders", Json::array({of_type("ByteFallback"), of_type("Fuse")})}};
       },
       {"decoder Sequence"}},
      {"ends of BERT",
       [](Json& f) {
         f["post_processor"] = {{"type", "BertProcessing"}, {"sep", {"[SEP]", 1}}, {"cls", {"[CLS]", 2}}};
       },
       {"post_processor BertProcessing", "TemplateProcessing"}},
      {"ends in a list",
       [](Json& f) {
         f["post_processor"] = {{"type", "Sequence"}, {"processors", Json::array({of_type("RobertaProcessing")})}};
       },
       {"post_processor RobertaProcessing"}},
      {"no list", [](Json& f) { f["post_processor"] = of_type("Sequence"); }, {"no list of processors"}},
      {"two templates",
       [](Json& f) {
         f["post_processor"] = {{"type", "Sequence"},
                                {"processors", Json::array({template_of({"A"}), template_of({"A"})})}};
       },
       {"two templates"}},
      {"template without text", [](Json& f) { f["post_processor"] = template_of({"<|end_of_text|>"}); }, {"no text"}},
      {"text twice",
       [](Json& f) {
         f["post_processor"] = template_of({"A", "A"});
       },
       {"text twice"}},
      {"template of a text", [](Json& f) { f["post_processor"] = of_type("TemplateProcessing"); }, {"no single"}},
      {"template of strings",
       [](Json& f) {
         f["post_processor"] = template_of({"A"});
         f["post_processor"]["single"][0] = "$A";
       },
       {"\"$A\"", "neither"}},
      {"unknown name",
       [](Json& f) {
         f["post_processor"] = template_of({"<|end_of_text|>", "A"});
         f["post_processor"]["special_tokens"] = Json::object();
       },
       {"special_tokens lacks", "<|end_of_text|>"}},
      {"unknown id",
       [](Json& f) {
         f["post_processor"] = template_of({"<|end_of_text|>", "A"});
         f["post_processor"]["special_tokens"]["<|end_of_text|>"]["ids"] = {258};
       },
       {"the id 258 is no token"}},
      {"negative id in a template",
       [](Json& f) {
         f["post_processor"] = template_of({"<|end_of_text|>", "A"});
         f["post_processor"]["special_tokens"]["<|end_of_text|>"]["ids"] = {-1};
       },
       {"the id -1 is no token"}},
      {"more ids than memory holds",
       [](Json& f) {
         Words names(20000, "<|end_of_text|>");
         names.push_back("A");
         f["post_processor"] = template_of(names);
         f["post_processor"]["special_tokens"]["<|end_of_text|>"]["ids"] = Ids(20000, 257);
       },
       {"puts more than 64 ids before or behind a text"}},
      {"65 ids behind a text",
       [](Json& f) {
         Words names(66, "<|end_of_text|>");
         names[0] = "A";
         f["post_processor"] = template_of(names);
       },
       {"puts more than 64 ids before or behind a text"}},
  };
  TempFolder folder;
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    Json file = file_of({{"a", "b"}});
    row.change(file);
    expect_error([&] { make(folder, file); }, row.parts);
  }
  for (const std::string& text : {std::string("{"), std::string("[]"), std::string(4000, '['), std::string()}) {
    test::write_bytes(folder / "bad.json", text);
    expect_error([&] { make_bpe_tokenizer(folder / "bad.json"); }, {"bad.json"});
  }
}

}  // namespace
}  // namespace weft::data
