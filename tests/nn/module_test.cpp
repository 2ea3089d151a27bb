// Modules name their parts; parameters keep their shapes.
#include "weft/nn/module.h"

#include <gtest/gtest.h>

#include "tests/support/errors.h"

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
