// The suite itself: mixers with one planted fault each, which the check of that name must find.
#include "trainers/conformance/conformance.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "tests/support/errors.h"
#include "weft/autograd/record.h"
#include "weft/nn/residual.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using conformance::Verdict;

enum class Fault { none, gradient, causality, decode, documents, bf16, checkpoint, learns };

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
    if (fault_ == Fault::decode || fault_ == Fault::documents) {
      // Local: knows neither the cache nor documents.
      const Var parts[] = {Tensor::zeros({x.size(0), 1, x.size(2)}, x.dtype()), slice(x, 1, 0, x.size(1) - 1)};
      if (fault_ == Fault::decode ? !tokens.documents().defined() : tokens.documents().defined())
        previous = concatenate(parts, 1);
    }
    if (fault_ == Fault::gradient)
      previous = record("wrong", previous.value(), {previous},
                        [](const Tensor& dy, Wants) { return Grads{ops::scale(dy, 0.9)}; });
    if (fault_ == Fault::checkpoint) previous = previous * hidden_;
    if (fault_ == Fault::bf16 && x.dtype() == kBF16) previous = previous * 1.5;
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
  const std::pair<Fault, const char*> faults[] = {{Fault::gradient, "gradient"}, {Fault::causality, "causality"},
                                                  {Fault::decode, "decode"},     {Fault::documents, "documents"},
                                                  {Fault::bf16, "bf16"},         {Fault::checkpoint, "checkpoint"},
                                                  {Fault::learns, "learns"}};
  for (auto [fault, check] : faults) {
    EXPECT_EQ(verdict_of(row_with(fault), check), Verdict::failed) << check;
    EXPECT_EQ(verdict_of(row_with(Fault::none), check), Verdict::passed) << check;
  }
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
  EXPECT_EQ(verdict_of(row, "decode"), Verdict::failed);
}

TEST(Conformance, AThrowIsAFailureWithItsText) {
  MixerRow row{.name = "broken",
               .make = [](const MixerArgs&, Rng) -> std::unique_ptr<Mixer> { fail("no such thing", "fix it"); }};
  auto results = conformance::check_mixers({&row, 1}, {});
  EXPECT_EQ(results.size(), conformance::check_names().size());
  for (const auto& r : results)
    if (r.check != "reference" && r.check != "devices") {
      EXPECT_EQ(r.verdict, Verdict::failed);
      EXPECT_NE(r.reason.find("no such thing"), std::string::npos);
    }
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
