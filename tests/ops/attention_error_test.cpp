// Error texts of the attention calls.
#include "tests/ops/attention_case.h"

namespace weft {
namespace {

using namespace test;

struct ErrorRow {
  void (*change)(AttentionCase&);
  std::vector<const char*> texts;
};

TEST(AttentionErrors, SayWhatIsWrongWithTheValues) {
  const ErrorRow rows[] = {
      {[](AttentionCase& c) {
         c.q = random_normal({2, 6, 32}, "q");
       },
       {"attend: q is [2, 6, 32]", "[batch, tokens, heads, width]"}},
      {[](AttentionCase& c) {
         c.q = Tensor::zeros({2, 6, 4, 8}, kI32);
       },
       {"q is [2, 6, 4, 8] i32", "cast it"}},
      {[](AttentionCase& c) {
         c.k = random_normal({2, 9, 2, 8}, "k", kBF16);
       },
       {"k is [2, 9, 2, 8] bf16", "f32"}},
      {[](AttentionCase& c) {
         c.k = random_normal({3, 9, 2, 8}, "k");
       },
       {"batch", "[2, 6, 4, 8]", "[3, 9, 2, 8]"}},
      {[](AttentionCase& c) {
         c.k = random_normal({2, 9, 2, 7}, "k");
       },
       {"key width", "[2, 9, 2, 7]"}},
      {[](AttentionCase& c) {
         c.k = random_normal({2, 9, 3, 8}, "k");
       },
       {"4 query heads are not a multiple of 3 key heads"}},
      {[](AttentionCase& c) {
         c.v = random_normal({2, 8, 2, 8}, "v");
       },
       {"keys and values differ", "[2, 9, 2, 8]", "[2, 8, 2, 8]"}},
      {[](AttentionCase& c) {
         c.v = random_normal({2, 9, 8, 2}, "v").transpose(2, 3);
       },
       {"last dimension of v", "stride 2", "contiguous copy"}},
      {[](AttentionCase& c) { c.queries.positions = {}; }, {"query positions are undefined", "[2, 6] i32"}},
      {[](AttentionCase& c) { c.keys.positions = c.queries.positions; },
       {"key positions are [2, 6] i32", "[2, 9] i32"}},
      {[](AttentionCase& c) { c.options.mask.same_document = true; },
       {"same_document", "query documents are undefined"}},
      {[](AttentionCase& c) { c.use_documents(3), c.keys.documents = {}; }, {"key documents are undefined"}},
      {[](AttentionCase& c) { c.options.mask.window = -1; }, {"window is -1"}},
      {[](AttentionCase& c) { c.options.mask.prefix = -2; }, {"prefix is -2"}},
      {[](AttentionCase& c) { c.options.score.softcap = -1; }, {"softcap is -1"}},
      {[](AttentionCase& c) { c.options.score.alibi_slopes = Tensor::zeros({2}); },
       {"alibi_slopes are [2] f32", "[4]"}},
      {[](AttentionCase& c) { c.options.dropout = 1; }, {"dropout is 1", "[0, 1)"}},
      {[](AttentionCase& c) { c.options.scale = NAN; }, {"scale is nan"}},
      {[](AttentionCase& c) { c.options.score.activation = ops::ScoreActivation::relu; },
       {"score activation without the sum normaliser", "leave them out"}},
      {[](AttentionCase& c) { c.options.score.shift = 1; }, {"score shift without the sum normaliser"}},
      {[](AttentionCase& c) { c.options.score.shift = NAN; }, {"score shift is nan"}},
  };
  for (const ErrorRow& row : rows) {
    AttentionCase c({2, 6, 9, 4, 2, 8, 8}, kF32);
    row.change(c);
    try {
      c.forward();
      ADD_FAILURE() << "no error with " << row.texts[0];
    } catch (const Error& e) {
      for (const char* text : row.texts)
        EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what() << "\nlacks " << text;
    }
  }
}

TEST(AttentionErrors, StateAndGradientsMustFit) {
  AttentionCase c({2, 6, 9, 4, 2, 8, 8}, kF32);
  ops::AttentionState state = ops::attention_state(c.q, 7, c.options);
  try {
    ops::attend_block(state, c.q, c.k, c.v, c.queries, c.keys, c.options);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("attend_block: state.out is [2, 6, 4, 7] f32"), std::string::npos) << e.what();
  }
  ops::Attention y = c.forward();
  EXPECT_THROW(
      ops::attend_backward(random_normal({2, 6, 4, 7}, "x"), {}, c.q, c.k, c.v, y, c.queries, c.keys, c.options),
      Error);
  EXPECT_THROW(ops::attend_backward(c.dout, random_normal({2, 6}, "x"), c.q, c.k, c.v, y, c.queries, c.keys, c.options),
               Error);
  c.options.normaliser = ops::Normaliser::sum;
  EXPECT_THROW(ops::attention_statistics(c.q, c.k, Tensor(), c.queries, c.keys, c.options), Error);
  EXPECT_THROW(ops::attention_delta(c.dout, y.out, c.dlse, c.options), Error);
}

}  // namespace
}  // namespace weft
