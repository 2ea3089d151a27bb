// The suite itself: mixers with one planted fault each, which the check of that name must find.
#include "trainers/conformance/conformance.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "tests/support/errors.h"
#include "trainers/conformance/ranks_table.h"
#include "weft/autograd/record.h"
#include "weft/nn/mixers/projected.h"
#include "weft/nn/residual.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using conformance::Verdict;

enum class Fault {
  none,
  gradient,
  causality,
  decode,
  documents,
  order,
  mean,
  folds,
  index_shift,
  bf16,
  bf16_long,
  bf16_ranks,
  checkpoint,
  learns
};

// y = W (x + previous x), with a fault.
class Faulty final : public Mixer {
 public:
  Faulty(const MixerArgs& args, Rng rng, Fault fault)
      : fault_(fault), out_(args.dim, args.dim, rng["out"], {.std = args.out_std}), hidden_(rng["hidden"].normal(0)) {
    name_parts({{"out", out_}});
  }
  Var forward(const Var& x, Tokens& tokens) override {
    Var previous = tokens.shift(x, 1);
    if (fault_ == Fault::causality) previous = previous + tokens.sum(x) * 1e-3;
    if (fault_ == Fault::decode || fault_ == Fault::documents || fault_ == Fault::order) {
      // Local: knows neither the cache nor documents nor positions.
      const Var parts[] = {Tensor::zeros({x.size(0), 1, x.size(2)}, x.dtype()), slice(x, 1, 0, x.size(1) - 1)};
      if (fault_ == Fault::documents ? tokens.documents().defined() : !tokens.documents().defined())
        previous = concatenate(parts, 1);
    }
    if (fault_ == Fault::mean) previous = previous + mean(x, 1, true) * 1e-3;
    if (fault_ == Fault::folds) {  // tokens into channels: pairs of numbers are averaged across them
      Var pairs = reshape(x, {x.size(0), x.size(2) * x.size(1) / 3, 3});
      previous = previous + reshape(expand(mean(pairs, 2, true), pairs.shape()) * 1.0, x.shape()) * 1e-3;
    }
    if (fault_ == Fault::index_shift)
      previous = previous + concatenate(std::vector<Var>{slice(x, 1, 1, x.size(1)), slice(x, 1, 0, 1)}, 1) * 1e-3;
    if (fault_ == Fault::gradient)
      previous = record("wrong", previous.value(), {previous},
                        [](const Tensor& dy, Wants) { return Grads{ops::scale(dy, 0.9)}; });
    if (fault_ == Fault::checkpoint) previous = previous * hidden_;
    if (fault_ == Fault::bf16 && x.dtype() == kBF16) previous = previous * 1.5;
    if (fault_ == Fault::bf16_long && x.dtype() == kBF16) {
      // Counts tokens in bf16, which stops at 256.
      Var count = cast(cast(tokens.scan(Tensor::full({x.size(0), x.size(1), 1}, 1)), kBF16), kF32);
      Var right = tokens.scan(Tensor::full({x.size(0), x.size(1), 1}, 1));
      previous = cast(cast(previous, kF32) * minimum(count, Tensor::full({}, 256)) / right, kBF16);
    }
    if (fault_ == Fault::bf16_ranks && x.dtype() == kBF16 && x.size(1) < 96) previous = previous * 1.02;
    if (fault_ == Fault::learns) previous = previous * 0.0;
    return out_(x + previous);
  }
  double flops_per_token(double) const override { return 0; }

 private:
  Fault fault_;
  Linear out_;
  double hidden_;  // a weight that is not named
};

MixerRow row_with(Fault fault) {
  return {.name = "faulty",
          .make = [fault](const MixerArgs& args, Rng rng) { return std::make_unique<Faulty>(args, rng, fault); },
          .toy = fault == Fault::none ? MixerRow::Toy::token : MixerRow::Toy::recent,
          .toy_loss = 0.3};
}

Verdict verdict_of(const MixerRow& row, const std::string& check) {
  auto results = conformance::check_mixers({&row, 1}, {.check = check});
  EXPECT_EQ(results.size(), 1u) << check;
  return results.at(0).verdict;
}

TEST(Conformance, FindsEveryPlantedFault) {
  const std::pair<Fault, const char*> faults[] = {
      {Fault::gradient, "gradient"},   {Fault::causality, "causality"}, {Fault::decode, "decode"},
      {Fault::documents, "documents"}, {Fault::bf16, "bf16"},           {Fault::checkpoint, "checkpoint"},
      {Fault::bf16_long, "bf16_long"}, {Fault::learns, "learns"},       {Fault::order, "order"},
      {Fault::mean, "locality"},       {Fault::folds, "locality"},      {Fault::index_shift, "locality"},
      {Fault::mean, "ranks"},          {Fault::index_shift, "ranks"}};
  for (auto [fault, check] : faults) {
    EXPECT_EQ(verdict_of(row_with(fault), check), Verdict::failed) << check;
    EXPECT_EQ(verdict_of(row_with(Fault::none), check), Verdict::passed) << check;
  }
}

TEST(Conformance, EveryRowIsSpreadInEachLayoutSchemeAndNumberOfRanks) {
  const MixerRow row = row_with(Fault::none);
  const auto results = conformance::check_mixers({&row, 1}, {.check = "ranks"});
  std::set<dist::LayoutKind> layouts;
  std::set<dist::Scheme> schemes;
  std::set<int> ranks;
  for (const conformance::Spread& s : results.at(0).spreads)
    layouts.insert(s.of.layout), schemes.insert(s.of.scheme), ranks.insert(s.of.ranks);
  EXPECT_EQ(layouts.size(), 4u);
  EXPECT_EQ(schemes.size(), dist::all_schemes().size());
  EXPECT_EQ(ranks, std::set<int>({2, 3, 4, 8}));
  const auto all = conformance::check_mixers({&row, 1}, {.check = "ranks", .covers_product = true});
  EXPECT_EQ(all.at(0).verdict, Verdict::passed);
  EXPECT_EQ(all.at(0).spreads.size(), 4 * 4 * 2 * dist::all_schemes().size());
}

TEST(Conformance, RanksThatLoseBitsAreAFaultInRowsOfTheList) {
  MixerRow row = row_with(Fault::bf16_ranks);
  EXPECT_EQ(verdict_of(row, "ranks"), Verdict::passed);
  row.name = "mha";  // one of those that run in f32 and bf16 too
  EXPECT_EQ(verdict_of(row, "ranks"), Verdict::failed);
  EXPECT_EQ(verdict_of({.name = "mha", .make = row_with(Fault::none).make, .toy = MixerRow::Toy::token}, "ranks"),
            Verdict::passed);
}

// An attention of 3 heads, which 2 ranks cannot exchange: said by name, and counted as a ring.
TEST(Conformance, WhatASchemeRefusesIsCountedWithItsReason) {
  const MixerRow row{.name = "three", .make = [](const MixerArgs& args, Rng rng) -> std::unique_ptr<Mixer> {
                       return SoftmaxOptions{.heads = 3, .head_dim = 4}(args, rng);
                     }};
  const auto results = conformance::check_mixers({&row, 1}, {.check = "ranks"});
  EXPECT_EQ(results.at(0).verdict, Verdict::passed) << results.at(0).reason;
  const std::string table = conformance::ranks_table(results), summary = conformance::ranks_summary(results);
  EXPECT_NE(table.find("ulysses: 3 query heads for 2 ranks that divide heads"), std::string::npos) << table;
  EXPECT_NE(summary.find("conformance: ranks: refused by ulysses: 3 query heads for 8 ranks that divide heads: three"),
            std::string::npos)
      << summary;
}

TEST(Conformance, AShortRowDoesNotShowAFaultOf512Tokens) {
  EXPECT_EQ(verdict_of(row_with(Fault::bf16_long), "bf16"), Verdict::passed);
}

// Attention whose heads are joined in one of three ways, and parts that are not named.
enum class Heads { passed, left_out, ignored };
class Attending final : public ProjectedMixer {
 public:
  Attending(const MixerArgs& args, Rng rng, Heads heads, bool has_unnamed)
      : ProjectedMixer("attending", {.heads = 2}, args, rng),
        heads_(heads),
        join_(args.dim, args.dim, rng["join"], {.std = args.out_std}) {
    if (!has_unnamed) name_parts({{"join", join_}});
  }
  Var forward(const Var& x, Tokens& tokens) override {
    Var y = tokens.attend(rotated(queries(x), args_, tokens), rotated(keys(x), args_, tokens), values(x))[0];
    if (heads_ == Heads::passed) return join_(written(y, tokens));
    if (heads_ == Heads::ignored) tokens.heads(y);
    return join_(merge_heads(y));
  }
  double flops_per_token(double) const override { return 0; }

 private:
  Heads heads_;
  Linear join_;
};

MixerRow attending(Heads heads, bool has_unnamed = false) {
  return {.name = "attending", .make = [=](const MixerArgs& args, Rng rng) {
            return std::make_unique<Attending>(args, rng, heads, has_unnamed);
          }};
}

TEST(Conformance, HeadsThatDoNotPassTokensAreAFault) {
  EXPECT_EQ(verdict_of(attending(Heads::passed), "heads"), Verdict::passed);
  EXPECT_EQ(verdict_of(attending(Heads::left_out), "heads"), Verdict::failed);
  EXPECT_EQ(verdict_of(attending(Heads::ignored), "heads"), Verdict::failed);
  MixerRow declared = attending(Heads::left_out);
  declared.lacks.heads = "by its nature";
  EXPECT_EQ(verdict_of(declared, "heads"), Verdict::unsupported);
  declared.make = attending(Heads::passed).make;
  EXPECT_EQ(verdict_of(declared, "heads"), Verdict::failed) << "it has heads";
}

TEST(Conformance, AParamThatIsNotNamedIsReportedAsThat) {
  MixerRow row = attending(Heads::passed, true);
  for (const auto& r : conformance::check_mixers({&row, 1}, {})) {
    if (r.check == "reference" || r.check == "devices") continue;
    EXPECT_EQ(r.verdict, Verdict::failed) << r.check;
    if (r.reason.find("the same error as in") != std::string::npos) continue;
    EXPECT_NE(r.reason.find("its Param ["), std::string::npos) << r.check << ": " << r.reason;
    EXPECT_NE(r.reason.find("name_parts()"), std::string::npos) << r.check << ": " << r.reason;
  }
}

// The maker, the reference and gradcheck see the numbers and texts of the row.
TEST(Conformance, ARowGivesItsMixerNumbersAndTexts) {
  MixerRow row = attending(Heads::passed);
  row.numbers = {{"share", 0.5}};
  row.texts = {{"mode", "slow"}};
  int made = 0;
  row.make = [make = row.make, &made](const MixerArgs& args, Rng rng) {
    EXPECT_EQ(args.numbers.at("share"), 0.5);
    EXPECT_EQ(args.texts.at("mode"), "slow");
    ++made;
    return make(args, rng);
  };
  auto reference = [](const MixerArgs& args, const auto&, const Tensor& x, const TokenData&) {
    EXPECT_EQ(args.numbers.at("share"), 0.5);
    return x.to_vector<double>();
  };
  for (const char* check : {"reference", "gradient", "checkpoint"})
    conformance::check_mixers({&row, 1}, {.check = check, .references = {{"attending", reference}}});
  EXPECT_EQ(made, 4);
}

TEST(Conformance, ReferenceIsComparedAndItsAbsenceSaid) {
  MixerRow row = row_with(Fault::none);
  EXPECT_EQ(verdict_of(row, "reference"), Verdict::unsupported);
  auto wrong = [](const MixerArgs&, const auto&, const Tensor& x, const TokenData&) { return x.to_vector<double>(); };
  auto results = conformance::check_mixers({&row, 1}, {.check = "reference", .references = {{"faulty", wrong}}});
  EXPECT_EQ(results.at(0).verdict, Verdict::failed);
}

TEST(Conformance, WhatIsDeclaredMissingMustBeRefused) {
  MixerRow row = row_with(Fault::none);
  row.lacks.decode = "never was";
  row.lacks.order = "never was";
  EXPECT_EQ(verdict_of(row, "decode"), Verdict::failed);
  EXPECT_EQ(verdict_of(row, "order"), Verdict::failed);
}

TEST(Conformance, AThrowIsAFailureWithItsText) {
  MixerRow row{.name = "broken",
               .make = [](const MixerArgs&, Rng) -> std::unique_ptr<Mixer> { fail("no such thing", "fix it"); }};
  auto results = conformance::check_mixers({&row, 1}, {});
  EXPECT_EQ(results.size(), conformance::check_names().size());
  for (const auto& r : results) {
    if (r.check == "reference" || r.check == "devices") continue;
    EXPECT_EQ(r.verdict, Verdict::failed);
    EXPECT_NE(r.reason.find(r.check == "gradient" ? "no such thing" : "the same error as in gradient"),
              std::string::npos)
        << r.check << ": " << r.reason;
  }
}

// y = x W with a weight of another width: one shape error in every check.
class Misshapen final : public Mixer {
 public:
  Misshapen(const MixerArgs& args, Rng rng) : out_(args.dim + 1, args.dim, rng["out"]) { name_parts({{"out", out_}}); }
  Var forward(const Var& x, Tokens&) override { return out_(x); }
  double flops_per_token(double) const override { return 0; }

 private:
  Linear out_;
};

TEST(Conformance, AFaultThatShowsInEveryCheckIsToldOnce) {
  MixerRow row{.name = "misshapen",
               .make = [](const MixerArgs& args, Rng rng) { return std::make_unique<Misshapen>(args, rng); }};
  int num_told = 0, num_failed = 0;
  for (const auto& r : conformance::check_mixers({&row, 1}, {})) {
    num_failed += r.verdict == Verdict::failed;
    num_told += r.reason.find("17") != std::string::npos;
  }
  EXPECT_GE(num_failed, 7);
  EXPECT_EQ(num_told, 1);
}

// docs/mixers.md holds what `weft check --table` printed: it must be printed again when a row comes or goes.
TEST(Docs, TableOfMixersNamesEveryRow) {
  std::ifstream file(WEFT_DOCS "/mixers.md");
  std::set<std::string> documented, rows;
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("| `")) documented.insert(line.substr(3, line.find('`', 3) - 3));
  for (const MixerRow& row : mixer_table()) rows.insert(row.name);
  for (const ResidualRow& row : residual_table()) rows.insert("residual." + row.name);
  EXPECT_EQ(documented, rows);
}

}  // namespace
}  // namespace weft
