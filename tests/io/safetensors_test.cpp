// The safetensors reader and writer: byte vector, round trips, every rule of the format, random damage.
#include "weft/io/safetensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/io/temp_folder.h"
#include "tests/support/random.h"

namespace weft::io {
namespace {

using test::error_of;
using test::expect_parts;
using test::TempFolder;

// A file from a header text and a number of data bytes.
std::string make_file(const std::string& header, size_t data_bytes) {
  uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof length);
  file += header;
  for (size_t i = 0; i < data_bytes; ++i) file.push_back(static_cast<char>(i));
  return file;
}

SafetensorsFile open_bytes(const TempFolder& folder, std::string_view bytes) {
  std::string path = folder / "x.safetensors";
  write_file_atomically(path, bytes);
  return SafetensorsFile::open(path);
}

template <class T>
void expect_same(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.shape(), b.shape());
  ASSERT_EQ(a.num_bytes(), b.num_bytes());
  if (a.num_bytes() > 0) { EXPECT_EQ(std::memcmp(a.data<T>(), b.data<T>(), a.num_bytes()), 0); }
}

TEST(Safetensors, WritesTheByteVectorOfTheFormat) {
  TempFolder folder;
  std::string path = folder / "w.safetensors";
  FileDigest digest = write_safetensors(path, {{"w", Tensor::from({1.0f, -2.0f}, {2})}});
  std::string header = R"({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  ASSERT_EQ(header.size(), 85u);
  std::string expected =
      std::string("\x58\0\0\0\0\0\0\0", 8) + header + "   " + std::string("\0\0\x80\x3f\0\0\0\xc0", 8);
  EXPECT_EQ(read_file(path), expected);
  EXPECT_EQ(digest.size, 104u);
  EXPECT_EQ(digest.xxh3, xxh3_64(expected));
}

TEST(Safetensors, RoundTripsEveryDtypeWithScalarsEmptyTensorsAndSpecialValues) {
  TempFolder folder;
  float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  std::vector<NamedTensor> tensors = {
      {"f32", Tensor::from({1.5f, nan, -inf, -0.0f}, {2, 2})},
      {"bf16", Tensor::from({BFloat16(1.0f), BFloat16(-3.0f), BFloat16(nan)}, {3})},
      {"f64", Tensor::from({1e300}, {})},
      {"i64", Tensor::from({int64_t{-5}, std::numeric_limits<int64_t>::max()}, {2, 1})},
      {"i32", Tensor::from({7, -7, 8}, {1, 3})},
      {"u8", Tensor::from({uint8_t{0}, uint8_t{255}, uint8_t{9}}, {3})},
      {"bool", Tensor::from({true, false, true}, {3})},
      {"empty", Tensor::zeros({4, 0, 2})},
      {"name \"with\" \xC3\xA4 and \n", Tensor::from({2.0f}, {1, 1, 1, 1, 1, 1, 1, 1})}};
  std::string path = folder / "all.safetensors";
  write_safetensors(path, tensors, {.metadata = {{"step", "12"}}});
  SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}, {"step", "12"}}));
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (size_t i = 0; i + 1 < file.tensors().size(); ++i)
    EXPECT_LE(file.tensors()[i].offset, file.tensors()[i + 1].offset);
  for (const NamedTensor& named : tensors) {
    for (const Tensor& got : {file.load(named.name), file.map(named.name)}) {
      EXPECT_EQ(got.dtype(), named.tensor.dtype());
      EXPECT_EQ(got.shape(), named.tensor.shape());
      ASSERT_EQ(got.num_bytes(), named.tensor.num_bytes());
      if (got.num_bytes() > 0) {
        EXPECT_EQ(std::memcmp(got.raw(), named.tensor.raw(), got.num_bytes()), 0) << named.name;
      }
    }
  }
}

TEST(Safetensors, SortsByElementSizeThenNameAndAlignsData) {
  TempFolder folder;
  std::string path = folder / "s.safetensors";
  write_safetensors(path, {{"a", Tensor::from({uint8_t{1}}, {1})},
                           {"z", Tensor::from({1.0}, {1})},
                           {"c", Tensor::from({1.0f}, {1})},
                           {"b", Tensor::from({1}, {1})}});
  SafetensorsFile file = SafetensorsFile::open(path);
  std::string order;
  for (const TensorEntry& entry : file.tensors()) order += entry.name;
  EXPECT_EQ(order, "zbca");
  EXPECT_EQ(file.tensors()[0].offset % 8, 0u);
}

TEST(Safetensors, WritesTiedWeightsOnceAndFindsThemByEveryName) {
  TempFolder folder;
  Tensor w = test::random_normal({3, 4}, "tied");
  write_safetensors(folder / "t", {{"embed", w}, {"head", w}, {"third", w}, {"part", w.slice(0, 0, 1)}});
  SafetensorsFile file = SafetensorsFile::open(folder / "t");
  EXPECT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.metadata().at("head"), "embed") << "as common writers say it";
  EXPECT_EQ(file.aliases().size(), 2u);
  for (const char* name : {"embed", "head", "third"}) {
    expect_same<float>(file.load(name), w);
    expect_same<float>(file.map(name), w);
  }
  Tensor embed = Tensor::zeros({3, 4}), head = Tensor::zeros({3, 4}), part = Tensor::zeros({1, 4});
  LoadReport report =
      load_into(file, {{"embed", embed}, {"head", head}, {"third", embed}, {"part", part}}, LoadRule::exact);
  EXPECT_EQ(report.loaded.size(), 4u);
  expect_same<float>(embed, w);
  expect_same<float>(head, w);
}

// Of shared memory nothing is dropped: a view of another shape, dtype or place is a tensor of its own.
TEST(Safetensors, WritesEveryViewOfSharedMemory) {
  TempFolder folder;
  Tensor w = test::random_normal({4, 6}, "shared");
  std::vector<NamedTensor> tensors = {{"w", w},
                                      {"flat", w.reshape({24})},
                                      {"turned", w.reshape({6, 4})},
                                      {"first", w.slice(0, 0, 2)},
                                      {"overlapping", w.slice(0, 1, 3)},
                                      {"again", w.slice(0, 1, 3)},
                                      {"empty", w.slice(0, 0, 0)},
                                      {"empty too", w.slice(0, 0, 0)}};
  write_safetensors(folder / "v", tensors);
  SafetensorsFile file = SafetensorsFile::open(folder / "v");
  EXPECT_EQ(file.tensors().size(), 7u);
  for (const NamedTensor& named : tensors) expect_same<float>(file.load(named.name), named.tensor);
  EXPECT_EQ(file.aliases().begin()->second, "overlapping");
}

TEST(Safetensors, SecondNamesNeverTakeThePlaceOfMetadata) {
  TempFolder folder;
  Tensor w = Tensor::from({1.0f}, {1});
  expect_parts(error_of([&] {
                 write_safetensors(folder / "x", {{"a", w}, {"format", w}});
               }),
               {"'format' is the same memory as 'a'", "another name"});
  expect_parts(error_of([&] {
                 write_safetensors(folder / "x", {{"a", w}, {"b", w}}, {.metadata = {{"b", "mine"}}});
               }),
               {"'b' is the same memory as 'a'", "already"});
  EXPECT_FALSE(file_exists(folder / "x"));
  write_safetensors(folder / "y", {{"pt", w}}, {.metadata = {{"step", "12"}}});
  SafetensorsFile file = SafetensorsFile::open(folder / "y");
  EXPECT_FALSE(file.find("format"));
  EXPECT_FALSE(file.find("step"));
}

// One byte too many for a reader is an error that leaves nothing behind.
TEST(Safetensors, RefusesHeadersThatNoReaderTakes) {
  TempFolder folder;
  Tensor w = Tensor::from({1.0f}, {1});
  auto with_text = [&](size_t size) {
    write_safetensors(folder / "x", {{"w", w}}, {.metadata = {{"text", std::string(size, 'a')}}});
  };
  with_text(0);
  std::string file = read_file(folder / "x");
  const size_t without_padding = file.find_last_of('}') + 1 - 8, most = 100'000'000 - without_padding;
  remove_folder(folder / "x");
  expect_parts(error_of([&] { with_text(most + 1); }),
               {"x", "header of 1 tensors would have 100000008 bytes", "more than 100000000", "write several files"});
  EXPECT_TRUE(list_folder(folder.path()).empty());
  auto bad = static_cast<uint8_t>(2);
  Tensor truth = Tensor::borrow(&bad, {1}, kBool, nullptr);
  expect_parts(error_of([&] { write_safetensors(folder / "x", {{"b", truth}}); }), {"BOOL tensor 'b' holds 2"});
  EXPECT_TRUE(list_folder(folder.path()).empty());
}

TEST(Safetensors, MappedTensorsOutliveTheFileObjectAndNeverWriteToIt) {
  TempFolder folder;
  write_safetensors(folder / "m", {{"w", Tensor::from({1.0f, 2.0f}, {2})}});
  Tensor w = SafetensorsFile::open(folder / "m").map("w");
  w.mutable_data<float>()[0] = 9;
  EXPECT_EQ(w.to_vector<float>(), (std::vector<float>{9, 2}));
  expect_same<float>(SafetensorsFile::open(folder / "m").load("w"), Tensor::from({1.0f, 2.0f}, {2}));
}

TEST(Safetensors, MisalignedDataOfOtherWritersIsCopied) {
  TempFolder folder;
  std::string header =
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  SafetensorsFile file = open_bytes(folder, make_file(header, 5));
  float expected;
  std::memcpy(&expected, "\1\2\3\4", 4);
  EXPECT_EQ(file.map("w").to_vector<float>(), std::vector<float>{expected});
}

TEST(Safetensors, ListsForeignDtypesAndRefusesToLoadThemByName) {
  TempFolder folder;
  std::string header =
      R"({"h":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"f4":{"dtype":"F4","shape":[2],"data_offsets":[2,3]},)"
      R"("deep":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[3,4]},"f6":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[4,7]}})";
  SafetensorsFile file = open_bytes(folder, make_file(header, 7));
  ASSERT_EQ(file.tensors().size(), 4u);
  for (const TensorEntry& entry : file.tensors()) EXPECT_FALSE(entry.is_loadable);
  expect_parts(error_of([&] { file.load("h"); }), {"x.safetensors", "tensor 'h' is F16", "convert it to F32"});
  expect_parts(error_of([&] { file.map("f4"); }), {"tensor 'f4' is F4"});
  expect_parts(error_of([&] { file.load("deep"); }), {"'deep'", "9 dimensions"});
  expect_parts(error_of([&] { file.load("none"); }), {"no tensor 'none' among its 4"});
}

TEST(Safetensors, RefusesBoolsThatAreNeitherZeroNorOne) {
  TempFolder folder;
  std::string header = R"({"b":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}})";
  SafetensorsFile file = open_bytes(folder, make_file(header, 3));
  expect_parts(error_of([&] { file.load("b"); }), {"BOOL tensor 'b'", str("byte ", 8 + header.size() + 2)});
}

// Header texts (with the bytes of data) that break one rule each.
TEST(Safetensors, RefusesEveryBrokenRuleWithPathAndOffset) {
  struct Row {
    std::string header;
    size_t data_bytes;
    std::string part;
  };
  auto tensor = [](std::string dtype, std::string shape, std::string offsets) {
    return R"({"w":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  std::string w = R"("w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  std::vector<Row> rows = {
      {"[]", 0, "byte 8: the header does not begin with '{'"},
      {"", 0, "does not begin with '{'"},
      {"{", 0, "no valid JSON"},
      {"{} x", 0, "no valid JSON"},
      {"{}\n{}", 0, "no valid JSON"},
      {std::string("{}\0\0", 4), 0, "byte 10: the header holds a zero byte"},
      {"{\"\xff\":1}", 0, "no valid JSON"},
      {"{" + w + "," + w + "}", 1, "tensor 'w' occurs twice"},
      {R"({"__metadata__":{"a":1}})", 0, "maps texts to texts"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0, "metadata key occurs twice"},
      {R"({"__metadata__":{"a":{}}})", 0, "maps texts to texts"},
      {R"({"__metadata__":[]})", 0, "maps texts to texts"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "__metadata__ occurs twice"},
      {R"({"w":[]})", 0, "tensor 'w' holds an array"},
      {R"({"w":{}})", 0, "lacks dtype"},
      {R"({"w":{"dtype":"U8","shape":[1]}})", 1, "lacks dtype, shape or data_offsets"},
      {R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":[1]}})", 1, "field 'extra'"},
      {R"({"w":{"dtype":"U8","dtype":"U8"}})", 1, "field 'dtype', which is unknown or given twice"},
      {tensor("U9", "[1]", "[0,1]"), 1, "dtype 'U9', which the format does not have"},
      {tensor("U8", "[-1]", "[0,1]"), 1, "negative number"},
      {tensor("U8", "[1.0]", "[0,1]"), 1, "no 64-bit integer"},
      {tensor("U8", "[[1]]", "[0,1]"), 1, "holds an array"},
      {tensor("U8", "[null]", "[0,1]"), 1, "null"},
      {tensor("U8", "[1]", "[0]"), 1, "1 data_offsets, not 2"},
      {tensor("U8", "[1]", "[1,0]"), 1, "outside of the 1 bytes"},
      {tensor("U8", "[2]", "[0,2]"), 1, "outside of the 1 bytes"},
      {tensor("U8", "[1]", "[0,18446744073709551615]"), 1, "outside of"},
      {tensor("U8", "[1]", "[0,18446744073709551616]"), 1, "no 64-bit integer"},
      {tensor("F32", "[1]", "[0,1]"), 1, "has 1 bytes, but its shape and dtype F32 need 4"},
      {tensor("F4", "[1]", "[0,0]"), 0, "F4 need 0"},
      {tensor("U8", "[4294967296,4294967296,4294967296]", "[0,0]"), 0, "overflows"},
      {tensor("U8", "[0,9223372036854775807,9223372036854775807]", "[0,0]"), 0, "overflows"},
      {tensor("U8", "[18446744073709551615,0]", "[0,0]"), 0, "overflows"},
      {tensor("F64", "[2305843009213693952]", "[0,0]"), 0, "overflows"},
      {tensor("U8", "[1]", "[1,2]"), 2, "leaves a hole"},
      {tensor("U8", "[1]", "[0,1]"), 2, "the tensors end here, but the file has"},
      {"{" + w + R"(,"v":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2, "overlaps"},
      {"{}", 1, "the tensors end here"},
  };
  TempFolder folder;
  for (const Row& row : rows) {
    SCOPED_TRACE(row.header);
    expect_parts(error_of([&] { open_bytes(folder, make_file(row.header, row.data_bytes)); }),
                 {"x.safetensors: byte ", row.part, "fix: the file is damaged"});
  }
}

TEST(Safetensors, RefusesFilesThatAreShorterThanTheirHeader) {
  TempFolder folder;
  for (const auto& [bytes, part] : std::vector<std::pair<std::string, std::string>>{
           {"", "the file has 0 bytes"},
           {"1234567", "the file has 7 bytes"},
           {std::string("\x03\0\0\0\0\0\0\0{}", 10), "length is 3, but only 2 bytes follow"},
           {std::string(8, '\xff') + "{}", "more than 100000000"},
           {std::string("\0\xe1\xf5\x05\0\0\0\0{}", 10), "100000000, but only 2"}})
    expect_parts(error_of([&, &text = bytes] { open_bytes(folder, text); }), {"byte 0", part});
}

TEST(Safetensors, AcceptsTheEmptyFileOfNoTensors) {
  TempFolder folder;
  EXPECT_TRUE(open_bytes(folder, make_file("{}", 0)).tensors().empty());
  write_safetensors(folder / "none", {});
  EXPECT_TRUE(SafetensorsFile::open(folder / "none").tensors().empty());
}

TEST(Safetensors, DeeplyNestedHeadersNeitherCrashNorPass) {
  TempFolder folder;
  expect_parts(error_of([&] { open_bytes(folder, make_file("{\"a\":" + std::string(200000, '['), 0)); }),
               {"tensor 'a' holds an array"});
}

// Truncations and flipped bytes: an Error or a valid file, and loading touches only bytes of the file (address
// sanitizer sees others).
TEST(Safetensors, RandomDamageNeverCrashes) {
  TempFolder folder;
  write_safetensors(folder / "good", {{"a", test::random_normal({5, 3}, "a")},
                                      {"b", test::random_normal({7}, "b", kBF16)},
                                      {"c", Tensor::from({true}, {1})}});
  std::string good = read_file(folder / "good");
  Rng rng = Rng(test::seed())["damage"];
  size_t num_opened = 0, header_end = 8 + static_cast<uint8_t>(good[0]) + 256u * static_cast<uint8_t>(good[1]);
  for (uint64_t i = 0; i < 1500; ++i) {
    std::string bytes = good;
    auto draw = [&, number = uint64_t{0}](uint64_t bound) mutable { return rng[i].below(bound, number++); };
    uint64_t place = draw(header_end), kind = draw(4);
    if (kind == 0) bytes.resize(draw(bytes.size()));
    else if (kind == 1) bytes.append(1 + draw(9), ' ');
    else bytes[place] = static_cast<char>(draw(256));
    if (kind == 3) bytes[draw(header_end)] ^= static_cast<char>(1u << draw(8));
    try {
      // A plain write: this test does not need a thousand synced files.
      FileWriter writer(folder / "bad", FileWriter::Placement::in_place);
      writer.write(bytes);
      SafetensorsFile file = SafetensorsFile::open(folder / "bad");
      ++num_opened;
      for (const TensorEntry& entry : file.tensors()) {
        if (entry.is_loadable) { EXPECT_EQ(file.load(entry.name).num_bytes(), entry.size); }
      }
    } catch (const Error& error) { EXPECT_NE(std::string(error.what()).find("bad"), std::string::npos); }
  }
  EXPECT_GT(num_opened, 0u);
}

TEST(LoadInto, ExactLoadFillsEveryTargetAlsoTiedOnes) {
  TempFolder folder;
  Tensor embed = test::random_normal({4, 3}, "embed"), bias = test::random_normal({3}, "bias", kBF16),
         none = Tensor::zeros({0, 2});
  write_safetensors(folder / "f", {{"embed", embed}, {"head", embed}, {"bias", bias}, {"none", none}});
  Tensor embed2 = Tensor::zeros({4, 3}), bias2 = Tensor::zeros({3}, kBF16), none2 = Tensor::zeros({0, 2});
  uint64_t version = embed2.version();
  LoadReport report =
      load_into(SafetensorsFile::open(folder / "f"),
                {{"embed", embed2}, {"head", embed2}, {"bias", bias2}, {"none", none2}}, LoadRule::exact);
  EXPECT_TRUE(report.is_complete());
  EXPECT_EQ(to_string(report), "4 loaded");
  expect_same<float>(embed2, embed);
  expect_same<BFloat16>(bias2, bias);
  EXPECT_GT(embed2.version(), version);
}

TEST(LoadInto, ReportsMissingUnexpectedAndMismatchedTensors) {
  TempFolder folder;
  write_safetensors(folder / "f", {{"a", Tensor::full({2}, 1)},
                                   {"b", Tensor::full({2, 3}, 2)},
                                   {"c", Tensor::full({2}, 3)},
                                   {"extra", Tensor::full({1}, 4)}});
  SafetensorsFile file = SafetensorsFile::open(folder / "f");
  std::vector<NamedTensor> targets = {{"a", Tensor::zeros({2})},
                                      {"b", Tensor::zeros({3, 2})},
                                      {"c", Tensor::zeros({2}, kF64)},
                                      {"d", Tensor::zeros({1})}};
  expect_parts(error_of([&] { load_into(file, targets, LoadRule::exact); }),
               {"/f does not fit the model: 1 loaded; 1 missing from the file: d; 1 unexpected in the file: extra; 2 "
                "of another shape or dtype: ",
                "'b' (file: [2, 3] F32, model: [3, 2] F32)", "'c' (file: [2] F32, model: [2] F64)", "load partially"});
  EXPECT_EQ(targets[0].tensor.to_vector<float>(), (std::vector<float>{0, 0}));
  LoadReport report = load_into(file, targets, LoadRule::partial);
  EXPECT_EQ(report.loaded, std::vector<std::string>{"a"});
  EXPECT_EQ(report.mismatched.size(), 2u);
  EXPECT_EQ(targets[0].tensor.to_vector<float>(), (std::vector<float>{1, 1}));
  expect_parts(error_of([&] { load_into(file, {targets[0], targets[0]}, LoadRule::partial); }), {"'a' is given twice"});
}

TEST(Safetensors, WriterRefusesWhatItCannotWrite) {
  TempFolder folder;
  Tensor w = Tensor::zeros({2, 3});
  auto attempt = [&](std::vector<NamedTensor> tensors) {
    return error_of([&] { write_safetensors(folder / "r", tensors); });
  };
  expect_parts(attempt({{"w", w}, {"w", w}}), {"name 'w' is given twice"});
  expect_parts(attempt({{"__metadata__", w}}), {"no tensor name"});
  expect_parts(attempt({{"t", w.transpose(0, 1)}}),
               {"tensor 't' is [3, 2] f32 cpu, not contiguous", "give row-major tensors"});
  expect_parts(attempt({{"u", Tensor()}}), {"tensor 'u' is undefined"});
  expect_parts(attempt({{"\xff", w}}), {"not valid UTF-8"});
  EXPECT_TRUE(list_folder(folder.path()).empty());
}

}  // namespace
}  // namespace weft::io
