// Names of recall tasks that `weft eval --tasks` and grids take.
#include "trainers/run/named_tasks.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/errors.h"
#include "tests/trainers/config_text.h"
#include "trainers/config/config.pb.h"

namespace weft::train {
namespace {

config::Data data_of(const std::string& task) {
  return config::test::load_string(config::test::kTiny, {"model.context=64", "data={task{" + task + "}}"})
      .experiment.data();
}

// Whole kinds, and one form of a kind each: different rows under different names.
TEST(NamedTasks, AreTheKindsAndTheirForms) {
  const config::Data text = config::test::load_string(config::test::kTiny).experiment.data();
  const std::set<std::string> kinds_alone{"copy", "state"};  // their defaults are selective_copy and parity
  std::set<std::vector<int32_t>> rows;
  std::set<std::string> kinds;
  for (const std::string& name : task_names()) {
    SCOPED_TRACE(name);
    const data::RecallTask task = rows_of(name, named_task(name, text, 256), 64);
    kinds.insert(task.name());
    EXPECT_LE(task.vocab(), 256);
    const std::vector<int32_t> ids = task.rows(data::Split::test, 0, 4).batch.tokens.to_vector<int32_t>();
    EXPECT_EQ(kinds_alone.contains(name) || rows.insert(ids).second, true);
  }
  EXPECT_EQ(kinds.size(), data::recall_tasks().size());
  EXPECT_EQ(rows.size() + kinds_alone.size(), task_names().size());
  EXPECT_EQ(std::get<data::MqarOptions>(named_task("overwrite", text, 256)).updates, 4);
  EXPECT_EQ(std::get<data::MqarOptions>(named_task("overwrite", text, 100)).vocab, 100);
  EXPECT_EQ(std::get<data::InductionOptions>(named_task("repeated_half", text, 256)).symbols, 128);
  EXPECT_EQ(rows_of("repeated_half", named_task("repeated_half", text, 100), 64).vocab(), 100);
}

TEST(NamedTasks, OfARunOfSuchATaskHaveItsNumbers) {
  auto pairs = [](const std::string& name, const std::string& of_run) {
    return std::get<data::MqarOptions>(named_task(name, data_of(of_run), 256)).pairs;
  };
  EXPECT_EQ(pairs("mqar", "mqar{pairs:3}"), 3);
  EXPECT_EQ(pairs("mqar", "mqar{pairs:3,updates:2}"), 3);
  EXPECT_EQ(pairs("overwrite", "mqar{pairs:3,updates:2}"), 3);
  EXPECT_EQ(pairs("overwrite", "mqar{pairs:3}"), data::MqarOptions().pairs) << "nothing is overwritten there";
  EXPECT_EQ(pairs("overwrite", "copy{}"), data::MqarOptions().pairs);
  auto items = [](const std::string& name) {
    return std::get<data::CopyOptions>(named_task(name, data_of("copy{kind:delayed,items:5}"), 256)).items;
  };
  EXPECT_EQ(items("copy"), 5);
  EXPECT_EQ(items("delayed_copy"), 5);
  EXPECT_EQ(items("selective_copy"), data::CopyOptions().items);
}

TEST(NamedTasks, SayHowLongRowsMustBe) {
  const config::Data text = config::test::load_string(config::test::kTiny).experiment.data();
  auto ask = [&](const std::string& name, int64_t vocab, int64_t length) {
    return rows_of(name, named_task(name, text, vocab), length);
  };
  for (const auto& [name, needed] : {std::pair("overwrite", 40), {"delayed_copy", 32}, {"passkey", 15}}) {
    EXPECT_EQ(ask(name, 256, needed).context(), needed);
    EXPECT_EQ(test::error_of([&] { ask(name, 256, needed - 1); },
                             {str("--tasks ", name, " in rows of ", needed - 1, " tokens: "),
                              str("Ask for longer rows: --lengths ", needed)}),
              "");
  }
  EXPECT_EQ(test::error_of([&] { ask("needle", 64, 7); }, {"--tasks needle: ", "vocab is 64", "use 86 to"}), "");
}

}  // namespace
}  // namespace weft::train
