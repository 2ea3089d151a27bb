// Byte and character tokenizers, pieces of the GPT-2 pattern, UTF-8 reading.
#include "weft/data/tokenizer.h"

#include "src/data/pretokenize.h"
#include "src/data/utf8.h"
#include "tests/data/support.h"
#include "tests/support/random.h"

namespace weft::data {
namespace {

using test::expect_error;
using test::TempFolder;

std::string random_bytes(Rng rng, uint64_t index, size_t length, std::string_view choices) {
  std::string text;
  for (size_t i = 0; i < length; ++i)
    text +=
        choices.empty() ? static_cast<char>(rng[index].below(256, i)) : choices[rng[index].below(choices.size(), i)];
  return text;
}

std::vector<std::string> pieces(std::string_view text) {
  std::vector<std::string> out;
  for (size_t at = 0; at < text.size();) {
    size_t end = kGpt2Pieces.piece_end(text, at);
    out.emplace_back(text.substr(at, end - at));
    at = end;
  }
  return out;
}

using Pieces = std::vector<std::string>;

TEST(Gpt2Pieces, EqualThePublishedVectors) {
  EXPECT_EQ(pieces("Hello, I'm a language model,"),
            (Pieces{"Hello", ",", " I", "'m", " a", " language", " model", ","}));
  EXPECT_EQ(pieces("  two  spaces\n\n tab\t end  "),
            (Pieces{" ", " two", " ", " spaces", "\n\n", " tab", "\t", " end", "  "}));
  EXPECT_EQ(pieces("don't DON'T 123abc 4567"), (Pieces{"don", "'t", " DON", "'", "T", " 123", "abc", " 4567"}));
  EXPECT_EQ(pieces("na\u00efve \u4e2d\u6587 \u2014 \u00bd x\u00b2\n"),
            (Pieces{"na\u00efve", " \u4e2d\u6587", " \u2014", " \u00bd", " x", "\u00b2", "\n"}));
  EXPECT_EQ(pieces("a   b"), (Pieces{"a", "  ", " b"}));
  EXPECT_EQ(pieces("   "), (Pieces{"   "}));
}

TEST(Gpt2Pieces, TakeWideSpacesAndInvalidBytesAsTheirClass) {
  EXPECT_EQ(pieces("a\u3000\u3000b"), (Pieces{"a", "\u3000", "\u3000", "b"}));
  EXPECT_EQ(pieces("a\u00a0 b"), (Pieces{"a", "\u00a0", " b"}));
  EXPECT_EQ(pieces("a\xff\xfe! b\xc3"), (Pieces{"a", "\xff\xfe!", " b", "\xc3"}));
  EXPECT_EQ(pieces("e\u0301x"), (Pieces{"e", "\u0301", "x"}));  // a mark is no letter
  EXPECT_EQ(pieces("!'s 's"), (Pieces{"!'", "s", " '", "s"}));
  EXPECT_EQ(pieces(" \t\nx"), (Pieces{" \t", "\n", "x"}));
}

TEST(Gpt2Pieces, AreTheSameOnBothSidesOfACut) {
  Rng rng = Rng(test::seed())["cut"];
  for (uint64_t i = 0; i < 3000; ++i) {
    std::string text = random_bytes(rng, i, 1 + i % 40, "ab' \n\t1.\xe3\x80\x80\xc2\xa0");
    std::string rest = random_bytes(rng["rest"], i, i % 7, "ab' \n\t1.\xe3\x80");
    size_t cut = kGpt2Pieces.last_cut(text);
    Pieces whole = pieces(text + rest), parts = pieces(text.substr(0, cut)), tail = pieces(text.substr(cut) + rest);
    parts.insert(parts.end(), tail.begin(), tail.end());
    ASSERT_EQ(whole, parts) << "cut " << cut << " text " << i;
  }
}

TEST(Utf8, ShowsInvalidBytesAsReplacementCharacters) {
  EXPECT_EQ(show_utf8("a\xc3\xa9z"), "a\xc3\xa9z");
  EXPECT_EQ(show_utf8("a\xc3"), "a\xef\xbf\xbd");
  EXPECT_EQ(show_utf8("\xc0\x80"), "\xef\xbf\xbd\xef\xbf\xbd");                    // overlong
  EXPECT_EQ(show_utf8("\xed\xa0\x80!"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd!");  // a surrogate
}

TEST(Utf8, ShowsNothingThatATerminalWouldObey) {
  EXPECT_EQ(show_utf8("a\nb\tc"), "a\nb\tc");
  EXPECT_EQ(show_utf8("\x1b[2J\r\x07"), "\\x1b[2J\\x0d\\x07");
  EXPECT_EQ(show_utf8(std::string_view("\0\x7f", 2)), "\\x00\\x7f");
  EXPECT_EQ(show_utf8("\xc2\x9b\x31mA"), "\\x9b1mA");  // CSI as one character
  EXPECT_EQ(show_utf8("\xe2\x80\xae|\xe2\x81\xa7"), "\\u202e|\\u2067");
  EXPECT_EQ(show_utf8("\xc2\xa0\xe4\xb8\xad"), "\xc2\xa0\xe4\xb8\xad");
  std::string all, shown;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  for (char c : show_utf8(all + all)) {
    bool is_control = (static_cast<unsigned char>(c) < 32 && c != '\n' && c != '\t') || c == 127;
    EXPECT_FALSE(is_control) << static_cast<int>(c);
  }
}

TEST(Utf8, CharacterBeforeEqualsForwardScan) {
  Rng rng = Rng(test::seed())["before"];
  for (uint64_t i = 0; i < 2000; ++i) {
    std::string text = random_bytes(rng, i, 12, i % 2 ? "" : "a \xe3\x80\xc2\xa0\xf0\x9f");
    for (size_t at = 0; at < text.size();) {
      Char c = char_at(text, at);
      at += c.length;
      Char back = char_before(text, at);
      ASSERT_EQ(back.code, c.code);
      ASSERT_EQ(back.length, c.length);
      ASSERT_EQ(back.kind, c.kind);
    }
  }
}

TEST(ByteTokenizer, IsTheIdentity) {
  auto tokenizer = make_byte_tokenizer();
  std::string all;
  for (int c = 0; c < 256; ++c) all += static_cast<char>(c);
  std::vector<int32_t> ids = tokenizer->encode(all);
  EXPECT_EQ(ids[200], 200);
  EXPECT_EQ(tokenizer->decode(ids), all);
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  EXPECT_EQ(tokenizer->byte_length(7), 1);
  EXPECT_FALSE(tokenizer->end_of_text());
  EXPECT_EQ(tokenizer->last_cut("abc"), 3u);
}

TEST(CharacterTokenizer, NumbersTheSortedCharacters) {
  auto tokenizer = make_character_tokenizer(make_alphabet("b\u00e9a\U0001f600b"));
  EXPECT_EQ(tokenizer->vocab_size(), 4);
  EXPECT_EQ(tokenizer->encode("ab\u00e9\U0001f600"), (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{3, 0}), "\U0001f600a");
  EXPECT_EQ(tokenizer->byte_length(0), 1);
  EXPECT_EQ(tokenizer->byte_length(2), 2);
  EXPECT_EQ(tokenizer->byte_length(3), 4);
  EXPECT_EQ(tokenizer->last_cut("ab\xc3"), 2u);
  EXPECT_EQ(tokenizer->last_cut("ab\xf0\x9f\x98"), 2u);
  EXPECT_EQ(tokenizer->last_cut("\xc3"), 0u);
}

TEST(CharacterTokenizer, KeepsItsAlphabetInAFile) {
  TempFolder folder;
  Alphabet alphabet = make_alphabet("hello\n \u4e2d\U0001f600");
  save_alphabet(folder / "alphabet", alphabet);
  EXPECT_EQ(load_alphabet(folder / "alphabet"), alphabet);
  EXPECT_EQ(make_character_tokenizer(alphabet)->fingerprint(), make_character_tokenizer(alphabet)->fingerprint());
  EXPECT_NE(make_character_tokenizer(alphabet)->fingerprint(), make_character_tokenizer({U'a'})->fingerprint());
}

TEST(CharacterTokenizer, MissesNoCharacterOfShakespeare) {
  WEFT_NEED_SHARED("tinyshakespeare.txt");
  std::string text = test::read_bytes(shared_file);
  auto tokenizer = make_character_tokenizer(make_alphabet(text));
  EXPECT_EQ(tokenizer->vocab_size(), 65);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
}

TEST(TokenizerErrors, SayWhatAndWhere) {
  TempFolder folder;
  auto characters = make_character_tokenizer({U'a', U'b'});
  auto bytes = make_byte_tokenizer();
  auto load = [&](std::string_view content) {
    test::write_bytes(folder / "alphabet", content);
    load_alphabet(folder / "alphabet");
  };
  expect_error([&] { characters->encode("abc"); }, {"U+0063", "byte 2", "alphabet of 2"});
  expect_error([&] { characters->encode("a\xff"); }, {"byte 1", "UTF-8"});
  expect_error([&] { characters->decode(std::vector<int32_t>{2}); }, {"id 2", "2 ids"});
  expect_error([&] { bytes->decode(std::vector<int32_t>{256}); }, {"id 256", "256 ids"});
  expect_error([&] { bytes->byte_length(-1); }, {"id -1"});
  expect_error([&] { make_alphabet("ab\x80"); }, {"byte 2"});
  expect_error([&] { make_character_tokenizer({}); }, {"empty"});
  expect_error([&] { make_character_tokenizer({U'b', U'a'}); }, {"U+0061 follows U+0062", "sort"});
  expect_error([&] { make_character_tokenizer({char32_t{0xd800}}); }, {"U+D800"});
  expect_error([&] { load("nonsense\n"); }, {"alphabet:1:", "first line"});
  expect_error([&] { load("weft characters 1\nU+0041\nU+zz\n"); }, {"alphabet:3:", "U+0041"});
  expect_error([&] { load("weft characters 1\nU+0041\nU+0041\n"); }, {"alphabet:3:", "ascend"});
  expect_error([&] { load("weft characters 1\nU+110000\n"); }, {"alphabet:2:"});
  expect_error([&] { load("weft characters 1\n"); }, {"no characters"});
  expect_error([&] { load_alphabet(folder / "absent"); }, {"absent", "No such file"});
  expect_error([&] { load_alphabet(folder.path()); }, {"not a regular file"});
}

TEST(IdTokenizer, ReadsAndWritesNumbers) {
  auto tokenizer = make_id_tokenizer(20);
  const std::vector<int32_t> ids{12, 7, 0, 19};
  EXPECT_EQ(tokenizer->encode(" 12 7  0 19 "), ids);
  EXPECT_EQ(tokenizer->decode(ids), "12 7 0 19");
  EXPECT_EQ(tokenizer->encode("").size(), 0u);
  EXPECT_EQ(tokenizer->byte_length(3), 0);
  EXPECT_EQ(tokenizer->last_cut("12 7"), 3u);
  EXPECT_NE(tokenizer->fingerprint(), make_id_tokenizer(21)->fingerprint());
  for (const char* text : {"1 20", "1 -2", "1 2x", "a"}) EXPECT_THROW(tokenizer->encode(text), Error) << text;
  EXPECT_THROW(tokenizer->decode(std::vector<int32_t>{20}), Error);
}

}  // namespace
}  // namespace weft::data
