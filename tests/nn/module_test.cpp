// Modules name their parts; parameters keep their shapes.
#include "weft/nn/module.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/functions.h"
#include "weft/core/profile.h"
#include "weft/nn/layers.h"

namespace weft {
namespace {

using test::error_of;

struct Pair : Module {
  Param a{Tensor::full({2}, 1)}, b{Tensor::full({3}, 1)};
  explicit Pair(const char* second) { name_parts({{"a", a}, {second, b}}); }
};

TEST(Module, RefusesNamesThatAreEmptyOrTaken) {
  EXPECT_EQ(error_of([] { Pair pair("a"); }, {"'a' is empty or given twice"}), "");
  EXPECT_EQ(error_of([] { Pair pair(""); }, {"'' is empty or given twice"}), "");
  Pair pair("b");
  EXPECT_EQ(pair.num_params(), 5);
  EXPECT_EQ(error_of([&] { pair.a.set_value(Tensor::full({3}, 1)); }, {"[3] f32", "[2] f32"}), "");
}

struct Forgetful : Module {
  Param a{Tensor::full({2}, 1)};
  Linear inner{4, 3, Rng(1)};
  Buffer mean{Tensor::full({5}, 1)};
  explicit Forgetful(int num_named) {
    if (num_named > 0) name_part({"a", a});
    if (num_named > 1) name_part({"inner", inner});
    if (num_named > 2) name_part({"mean", mean});
  }
};

TEST(Module, WhatIsNotNamedIsFound) {
  const std::string_view missing[] = {"its Param [2] f32", "its Param [3, 4] f32", "its Buffer [5] f32"};
  for (int named = 0; named <= 3; ++named) {
    PartWatch watch;
    { Param temporary(Tensor::full({9}, 1)); }  // gone before anybody asks
    Forgetful module(named);
    auto check = [&] { watch.check_named(module, "forgetful"); };
    if (named == 3) EXPECT_NO_THROW(check());
    else EXPECT_EQ(error_of(check, {"forgetful: ", missing[named], "not named", "name_parts()"}), "");
  }
}

// A part made by a maker inside another's watch counts for both.
TEST(Module, WatchesNest) {
  PartWatch outer;
  std::unique_ptr<Param> param;
  {
    PartWatch inner;
    param = std::make_unique<Param>(Tensor::full({2}, 1));
  }
  Pair pair("b");
  EXPECT_EQ(error_of([&] { outer.check_named(pair, "outer"); }, {"its Param [2] f32"}), "");
  param.reset();
  EXPECT_NO_THROW(outer.check_named(pair, "outer"));
}

// What ran in backward, as a profile names it, with the forward in or before the profile.
std::vector<std::string> spans_of_backward(bool has_forward) {
  struct Layer : Module {
    Linear q{4, 3, Rng(1)};
    Layer() { name_parts({{"q", q}}); }
  } layer;
  auto loss_of = [&] {
    Scope outer("model"), scope("layers.0");
    return sum_all(square(layer.q(Tensor(test::random_normal({2, 4}, "x")))));
  };
  Var before = loss_of();
  Profile profile(Device::cpu());
  Var loss = has_forward ? loss_of() : before;
  {
    Scope elsewhere("elsewhere");
    ProfileRange range("backward");
    backward(loss);
  }
  std::vector<std::string> paths;
  for (const ProfileSpan& span : profile.finish()) paths.push_back(span.path);
  return {std::find(paths.begin(), paths.end(), "backward"), paths.end()};
}

TEST(Module, BackwardIsProfiledUnderThePathsOfItsForward) {
  // Products are spans of their own within the ops that take them.
  EXPECT_EQ(spans_of_backward(true),
            (std::vector<std::string>{"backward", "model.layers.0.sum_all", "model.layers.0.square",
                                      "model.layers.0.q.linear", "matmul"}));
  EXPECT_EQ(spans_of_backward(false), (std::vector<std::string>{"backward", "elsewhere.sum_all", "elsewhere.square",
                                                                "elsewhere.linear", "matmul"}));
}

TEST(Module, ASharedParameterIsListedOnce) {
  struct Tied : Module {
    Pair first{"b"};
    Tied() { name_parts({{"first", first}, {"tied", first.a}}); }
  } tied;
  std::vector<std::string> names;
  for (const NamedParam& p : tied.params()) names.push_back(p.name);
  EXPECT_EQ(names, (std::vector<std::string>{"first.a", "first.b"}));
}

}  // namespace
}  // namespace weft
