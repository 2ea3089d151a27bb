// What is wrong with a grid is found before its runs are made, not by hours of them.
#include <vector>

#include "tests/study/grid_fixture.h"
#include "tests/support/errors.h"
#include "trainers/study/arm_checks.h"

namespace weft::study {
namespace {

using test::error_of;

// What a config alone does not say.
TEST_F(GridArms, GroupsTextsAndStartsAreLookedAtBeforeTheRuns) {
  const auto check = [&](const std::string& text) {
    const Grid one = grid(kRuns + text);
    check_arms(one, resolve_arms(one, {}), {});
  };
  EXPECT_EQ(error_of([&] { check(axis_of("optim.group[1].match='*.norm.weight'")); },
                     {"grid.txtpb: a=own: optimizer: no group matches ", "end the groups with one that matches"}),
            "");
  EXPECT_EQ(error_of([&] { check(axis_of("start={from:'nix'}")); }, {"grid.txtpb: a=own: ", "nix is not a run"}), "");
  for (const char* set :
       {"data.train[0].path='no*.txt'", "data.val={path:'none.txt'}", "data.tokenizer={bpe{file:'none.json'}}",
        "data.tokenizer={gpt2{vocab:'none.json' merges:'none.txt'}}"})
    EXPECT_EQ(error_of([&] { check(str(kArms, "set: \"", set, "\"")); }, {"grid.txtpb: gate=none: ", "/no"}), "")
        << set;
  EXPECT_EQ(error_of([&] { check(str(kArms, "set: \"data.val={path:'.'}\"")); }, {"gate=none: ", "it is a folder"}),
            "");
  const auto check_text = [&](const std::string& set, int bytes) {
    write("short.txt", std::string(static_cast<size_t>(bytes), 'a'));
    check(str(kArms, "set: \"model.context=16\" set: \"", set, "\""));
  };
  for (int bytes : {0, 1, 15})
    EXPECT_EQ(error_of([&] { check_text("data.train[0].path='short.txt'", bytes); },
                       {"grid.txtpb: gate=none: ", "/short.txt, 1 file of ", str(bytes), "17 tokens", "model.context"}),
              "");
  EXPECT_EQ(
      error_of([&] { check_text("data.val={path:'short.txt'}", 0); }, {"/short.txt, 1 file of 0 bytes; 2 tokens"}), "");
  check_text("data.train[0].path='short.txt'", 16);  // an end of the text is one more
  check_text("data.val={path:'short.txt'}", 1);
  const std::string values = "value: \"1e-4\" value: \"3e-4\" value: \"9e-4\" seeds: 8 ";
  EXPECT_EQ(error_of([&] { check(str(kArms, "tune { path: \"optim.group[1].adamw.rate\" ", values, "}")); },
                     {"grid.txtpb: gate=none: tune: ", "rate"}),
            "");
  EXPECT_EQ(error_of(
                [&] {
                  check(str(kArms, "tune { path: \"optim.group[1].adamw.lr\" ", values,
                            "set: \"optim.group[1].match='embed*'\" }"));
                },
                {"grid.txtpb: gate=none: tune: optimizer: no group matches "}),
            "");
  check(str(kArms, "tune { path: \"optim.group[1].adamw.lr\" ", values, "}"));
}

// A run of these arms would be refused at its start, hours after the study's.
TEST_F(GridArms, RanksThatCannotShareTheModelAreRefusedBeforeTheRuns) {
  const auto check = [&](const std::string& set, const std::string& more = {}) {
    const Grid one =
        grid(kRuns + str("axis { name: \"a\" arm { name: \"plain\" } arm { name: \"own\" ", set, " } } ", more));
    check_arms(one, resolve_arms(one, {}), {});
  };
  EXPECT_EQ(error_of([&] { check("set: \"parallel.context=3\" set: \"parallel.scheme=ulysses\""); },
                     {"grid.txtpb: a=own: ",
                      "parallel.scheme cannot run in model.layers.0.mixer: ulysses: 2 query heads for 3",
                      "Use another parallel.context"}),
            "");
  const std::string gla = "set: \"parallel.context=2\" set: \"model.mixer={gla{heads:2}}\" ";
  for (const char* layout : {"striped", "balanced"}) {
    const std::string stripes = gla + str("set: \"parallel.layout=", layout, "\" ");
    EXPECT_EQ(error_of([&] { check(stripes + "set: \"parallel.block=4\""); },
                       {"grid.txtpb: a=own: ", str("parallel.layout is ", layout, " with blocks of 4 tokens"),
                        "at least 32"}),
              "");
    check(stripes + "set: \"parallel.block=32\"");
  }
  EXPECT_EQ(
      error_of(
          [&] {
            check("set: \"parallel.context=2\"",
                  "tune { path: \"optim.group[1].adamw.lr\" value: \"1e-4\" value: \"3e-4\" value: \"9e-4\" seeds: 8 "
                  "set: \"parallel.context=3\" set: \"parallel.scheme=ulysses\" }");
          },
          {"grid.txtpb: a=plain: tune: ", "2 query heads for 3 ranks"}),
      "");
  check("set: \"parallel.context=2\" set: \"parallel.scheme=ulysses\"");
}

// Hours of runs would end in a refusal.
TEST_F(GridArms, MetricsThatNoRunHasAreRefusedBeforeTheRuns) {
  const auto compare = [&](const std::string& metric, const std::string& more = {}) {
    return grid(str(kRuns, kArms, "compare { metric: \"", metric, "\" } ", more));
  };
  const std::string tune = "tune { path: \"optim.group[1].adamw.lr\" value: \"1\" value: \"2\" value: \"3\" seeds: 8 ";
  for (const char* metric : {"val/lss", "val/los", "train/loss_", "val/ppl@64", "speed/flops", "memory/peak",
                             "vall/loss", "first_token_mas", "layers.0.own", "loss"})
    EXPECT_EQ(error_of([&] { compare(metric); },
                       {str("grid.txtpb: metric ", metric, ": no such metric"), "eval { length: LENGTH }"}),
              "");
  EXPECT_EQ(error_of([&] { compare("val/lss"); }, {"Did you mean 'val/loss'"}), "");
  for (const char* metric : {"val/loss@", "val/loss@0", "val/loss@x", "val/loss@64k", "val/loss@2147483648"})
    EXPECT_EQ(error_of([&] { compare(metric); }, {str(metric, ": is of no length"), "eval { length: LENGTH }"}), "");
  for (const char* metric : {"task/mqar/acuracy", "task/mqar", "task/mqar/accuracy/x", "task/mqar/accuracy@"})
    EXPECT_EQ(error_of([&] { compare(metric); }, {str("metric ", metric), "task/NAME/accuracy@LENGTH"}), "");
  EXPECT_EQ(error_of([&] { compare("task/mqar/accuracy@64"); }, {"is not asked for", "task_length: 64"}), "");
  EXPECT_EQ(error_of([&] { compare("val/loss", tune + "metric: \"val/lss\" }"); },
                     {"grid.txtpb: tune: metric val/lss: no such metric"}),
            "");
  EXPECT_EQ(error_of([&] { compare("val/loss", tune + "metric: \"*.entropy/*\" }"); }, {"is a pattern"}), "");
  for (const char* metric :
       {"train/grad_norm", "train/lr/0", "val/*", "*.sink_rate/*", "model.layers.0.own", "first_token_mass", "val/bpb"})
    EXPECT_EQ(compare(metric).metrics, std::vector<std::string>{metric});
  for (const char* metric : {"first_token_mass", "model.layers.0.mixer.entropy/0", "pruned_loss/50"}) {
    const auto resolve = [&](const std::string& more) { return resolve_arms(compare(metric, more), {}); };
    EXPECT_EQ(error_of([&] { resolve(""); }, {str("grid.txtpb: metric ", metric, ": gate=none takes no diagnostics"),
                                              "log.diagnostics_every"}),
              "");
    resolve("set: \"log.diagnostics_every=5\"");
    resolve("set: \"log.analysis_every=5\"");
  }
  EXPECT_EQ(compare("task/mqar/accuracy@64", "eval { task_length: 32 task_length: 64 }").evals.tasks.size(), 1u);

  EXPECT_EQ(compare("val/loss@64").evals.lengths, std::vector<int64_t>{64});
  EXPECT_EQ(compare("val/loss@64", "eval { length: 16 length: 64 }").evals.lengths, (std::vector<int64_t>{16, 64}));
  EXPECT_EQ(compare("val/loss", tune + "metric: \"val/loss@16\" }").evals.lengths, std::vector<int64_t>{16});
  const std::string by_position = "eval { by_position: true } ";
  EXPECT_EQ(resolve_arms(compare("val/loss@32", by_position), {}).all.size(), 2u) << "rows of the training's length";
  EXPECT_EQ(error_of([&] { resolve_arms(compare("val/loss@64", by_position), {}); },
                     {"metric val/loss@64", "the training's 32 tokens alone", "length: 32 length: 64"}),
            "");
}

// Not by `weft eval` when all runs are trained.
TEST_F(GridArms, TasksNeedRowsThatAreLongEnough) {
  const std::string text = kRuns + std::string(kArms) + "eval { task: \"overwrite\" ";
  for (const auto& [length, rows] : {std::pair("", "32"), {"task_length: 48 task_length: 39 ", "39"}})
    EXPECT_EQ(error_of([&] { arms(text + length + "}"); },
                       {str("grid.txtpb: gate=none: eval: task: overwrite in rows of ", rows, " tokens: "),
                        "Ask for longer rows: task_length: 40"}),
              "");
  EXPECT_EQ(arms(text + "task_length: 40 }").all.size(), 2u);
}

}  // namespace
}  // namespace weft::study
