// How states of recurrences reach other ranks: which way is chosen, and what it says.
#include <gtest/gtest.h>

#include "weft/distributed/context_recurrence.h"

namespace weft::dist {
namespace {

TEST(CarryChoice, IsByBytesAndByWhoWouldWait) {
  auto choose = [](CarryShape shape, const char* says) {
    const CarryChoice choice = choose_carry(shape);
    EXPECT_NE(choice.reason.find(says), std::string::npos) << choice.reason;
    return choice.carry;
  };
  CarryShape shape{
      .ranks = 4, .segments = {8, 8, 2}, .key_heads = 16, .heads = 16, .key_width = 128, .value_width = 128};
  EXPECT_EQ(choose(shape, "gather: a rank sends 12632064 bytes of states and decays a call"), Carry::gather);
  CarryShape two{.ranks = 2, .segments = {2, 2, 1}, .key_heads = 8, .heads = 8, .key_width = 64, .value_width = 64};
  EXPECT_EQ(choose(two, "scan: a rank sends 262144 bytes of states a call, and in 8 turns"), Carry::scan);
  two.threads = 2;
  EXPECT_EQ(choose(two, "gather"), Carry::gather);
  two.segments = {4, 2, 2};
  EXPECT_EQ(choose(two, "in 8 turns"), Carry::scan);
  two.segments = {12, 6, 6};  // a row comes back to a rank more than once: stripes
  EXPECT_EQ(choose(two, "gather"), Carry::gather);
  two.segments = {4, 2, 2};
  two.key_width = two.value_width = 16;
  EXPECT_EQ(choose(two, "gather"), Carry::gather);
  shape.is_delta = true;
  EXPECT_EQ(choose(shape, "scan: a rank sends 4194304 bytes of states a call, where gathering sends 18874368"),
            Carry::scan);
  shape.is_on_gpu = true;
  EXPECT_EQ(choose(shape, "a GPU has all heads at once"), Carry::gather);
  shape.is_on_gpu = false;
  shape.key_heads = shape.heads = 4;
  EXPECT_EQ(choose(shape, "gather: 4 heads of rows would leave ranks of 4 waiting for each other"), Carry::gather);
  shape.key_heads = shape.heads = 16, shape.key_width = shape.value_width = 8;
  EXPECT_EQ(
      choose(shape, "gather: a rank sends 73728 bytes of states and matrices a call, a scan 16384 and waits 14 times"),
      Carry::gather);
  shape.ranks = 1;
  EXPECT_EQ(choose(shape, "one rank"), Carry::gather);
}

}  // namespace
}  // namespace weft::dist
