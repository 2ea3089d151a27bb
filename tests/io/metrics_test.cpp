// metrics.jsonl: exact lines, resume after a kill, tolerant reading.
#include "weft/io/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/io/faults.h"
#include "tests/io/temp_folder.h"
#include "weft/io/files.h"

namespace weft::io {
namespace {

using test::error_of;
using test::expect_parts;
using test::TempFolder;

MetricsRecord train_line(int64_t step) {
  return {
      .step = step, .tokens = step * 10, .time_s = 1.5, .wall_s = 2, .kind = "train", .values = {{"train/loss", 3.25}}};
}

TEST(Metrics, LineIsExactlyAsPromised) {
  MetricsRecord record{.step = 1240,
                       .tokens = 650117120,
                       .time_s = 339.2,
                       .wall_s = 1790000000.1,
                       .kind = "train",
                       .values = {{"train/loss", 3.2184},
                                  {"train/grad_norm", std::nan("")},
                                  {"a", HUGE_VAL},
                                  {"b", -HUGE_VAL},
                                  {"train/skipped", 2},
                                  {"tiny", 1e-30}}};
  EXPECT_EQ(to_json(record),
            R"({"step":1240,"tokens":650117120,"time":339.2,"wall":1790000000.1,"kind":"train","train/loss":3.2184,)"
            R"("train/grad_norm":"nan","a":"inf","b":"-inf","train/skipped":2,"tiny":1e-30})");
}

TEST(Metrics, NumbersReadBackEqualBitForBit) {
  TempFolder folder;
  std::vector<double> numbers = {0.1,
                                 1.0 / 3,
                                 1e300,
                                 5e-324,
                                 -0.0,
                                 3.4028234663852886e38,
                                 9007199254740993.0,
                                 std::numeric_limits<double>::infinity()};
  MetricsRecord record = train_line(1);
  for (size_t i = 0; i < numbers.size(); ++i)
    record.values.emplace_back(std::string(1, static_cast<char>('a' + i)), numbers[i]);
  MetricsWriter(folder / "m").write(record);
  auto read = read_metrics(folder / "m");
  ASSERT_EQ(read.size(), 1u);
  EXPECT_EQ(read[0].values, record.values);
  EXPECT_EQ(read[0].tokens, 10);
  EXPECT_EQ(read[0].value("train/loss"), 3.25);
  EXPECT_FALSE(read[0].value("none"));
}

TEST(Metrics, EveryLineIsInTheFileAtOnce) {
  TempFolder folder;
  MetricsWriter writer(folder / "m");
  writer.write(train_line(1));
  EXPECT_EQ(read_metrics(folder / "m").size(), 1u);
  writer.write(train_line(2));
  EXPECT_EQ(read_metrics(folder / "m").size(), 2u);
}

TEST(Metrics, ResumeCutsWhatIsTakenBackAndMarksThePlace) {
  TempFolder folder;
  {
    MetricsWriter writer(folder / "m");
    for (int64_t step : {10, 20, 30, 40}) writer.write(train_line(step));
  }
  MetricsWriter writer(folder / "m");
  EXPECT_EQ(writer.rewind(20, folder / "aside"), 2);
  EXPECT_EQ(writer.rewind(20, folder / "aside"), 0) << "nothing is beyond 20 any more";
  writer.write(train_line(25));
  std::string text = read_file(folder / "m");
  EXPECT_NE(text.find("\n{\"kind\":\"rewind\",\"step\":20}\n{\"step\":25,"), std::string::npos) << text;
  EXPECT_EQ(read_metrics(folder / "m").size(), 4u) << "10, 20, rewind, 25";
  EXPECT_EQ(apply_rewinds(read_metrics(folder / "m")).back().step, 25);
  EXPECT_EQ(read_file(folder / "aside"), to_json(train_line(30)) + "\n" + to_json(train_line(40)) + "\n");
  MetricsWriter(folder / "m").rewind(25);
  EXPECT_EQ(read_metrics(folder / "m").size(), 4u);
  EXPECT_EQ(MetricsWriter(folder / "m").rewind(0), 4) << "all lines, the rewind among them";
  EXPECT_EQ(read_file(folder / "m"), "{\"kind\":\"rewind\",\"step\":0}\n");
}

TEST(Metrics, RewindReadsFilesWhoseLinesWereOnlyMarked) {
  TempFolder folder;
  std::string text;
  for (int64_t step : {10, 20, 30}) text += to_json(train_line(step)) + "\n";
  text += "{\"kind\":\"rewind\",\"step\":15}\n" + to_json(train_line(20)) + "\n" + to_json(train_line(25)) + "\n";
  write_file_atomically(folder / "m", text);
  MetricsWriter(folder / "m").rewind(20);
  auto valid = apply_rewinds(read_metrics(folder / "m"));
  ASSERT_EQ(valid.size(), 2u);
  EXPECT_EQ(valid[0].step, 10);
  EXPECT_EQ(valid[1].step, 20);
}

TEST(Metrics, WritingToAFileThatWasRemovedOrReplacedIsAnError) {
  for (bool is_replaced : {false, true}) {
    TempFolder folder;
    MetricsWriter writer(folder / "m");
    writer.write(train_line(1));
    remove_folder(folder / "m");
    if (is_replaced) write_file_atomically(folder / "m", "");
    expect_parts(error_of([&] { writer.write(train_line(2)); }), {"append to", "removed or replaced", "same command"});
  }
}

TEST(Metrics, TornLastLineIsIgnoredByReadersAndRemovedByTheNextWriter) {
  TempFolder folder;
  std::string whole = to_json(train_line(1)) + "\n";
  for (const std::string& torn : {std::string("{\"step\":2,\"tok"), std::string("{"), std::string(1, '\xff')}) {
    write_file_atomically(folder / "m", whole + torn);
    EXPECT_EQ(read_metrics(folder / "m").size(), 1u);
    MetricsWriter(folder / "m").write(train_line(3));
    EXPECT_EQ(read_file(folder / "m"), whole + to_json(train_line(3)) + "\n");
  }
  write_file_atomically(folder / "m", "{\"ste");
  MetricsWriter(folder / "m").write(train_line(3));
  EXPECT_EQ(read_metrics(folder / "m").size(), 1u);
}

TEST(Metrics, CompleteLastLineWithoutLineEndIsKept) {
  TempFolder folder;
  write_file_atomically(folder / "m", to_json(train_line(1)));
  EXPECT_EQ(read_metrics(folder / "m").size(), 1u);
  MetricsWriter(folder / "m").write(train_line(2));
  EXPECT_EQ(read_metrics(folder / "m").size(), 2u);
}

TEST(Metrics, ReaderIgnoresWhatItDoesNotKnow) {
  TempFolder folder;
  write_file_atomically(
      folder / "m",
      R"({"step":1,"kind":"train","future":{"a":[1,2]},"note":"text","flag":true,"x":null,"train/loss":2})"
      "\r\n\n"
      R"({"step":1e3,"tokens":18446744073709551615,"wall":"soon","kind":7,"y":"inf"})"
      "\n");
  auto records = read_metrics(folder / "m");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].values, (std::vector<std::pair<std::string, double>>{{"train/loss", 2}}));
  EXPECT_EQ(records[1].tokens, 0);
  EXPECT_EQ(records[1].value("y"), std::numeric_limits<double>::infinity());
}

TEST(Metrics, DamageInTheMiddleIsNamedByLine) {
  TempFolder folder;
  write_file_atomically(folder / "m", "{\"step\":1}\nrubbish\n{\"step\":2}\n");
  expect_parts(error_of([&] { read_metrics(folder / "m"); }),
               {"m:2: the line is no JSON object: rubbish", "remove that line"});
}

TEST(Metrics, FullDiskIsAnErrorAndLeavesNoTornLine) {
  TempFolder folder;
  MetricsWriter writer(folder / "m");
  writer.write(train_line(1));
  test::set_fault(test::Fault::disk_full, 0);
  std::string text = error_of([&] { writer.write(train_line(2)); });
  test::set_fault(test::Fault::none, 0);
  expect_parts(text, {"append to", "No space left on device", "free some disk space"});
  writer.write(train_line(3));
  EXPECT_EQ(read_file(folder / "m"), to_json(train_line(1)) + "\n" + to_json(train_line(3)) + "\n");
  expect_parts(error_of([&] { MetricsWriter(folder / "none/m"); }), {"none/m", "No such file"});
}

}  // namespace
}  // namespace weft::io
