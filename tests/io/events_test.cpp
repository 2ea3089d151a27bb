// TensorBoard event files: byte vectors, round trip, damage.
#include "weft/io/events.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "tests/io/faults.h"
#include "tests/io/temp_folder.h"
#include "tests/support/random.h"
#include "weft/io/files.h"

namespace weft::io {
namespace {

using test::error_of;
using test::expect_parts;
using test::TempFolder;

std::string from_hex(std::string_view hex) {
  std::string bytes, digits;
  for (char c : hex)
    if (std::isxdigit(static_cast<unsigned char>(c))) digits.push_back(c);
  for (size_t i = 0; i + 1 < digits.size(); i += 2)
    bytes.push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16)));
  return bytes;
}

TEST(Events, BytesAreTheVectorsOfTheFormat) {
  TempFolder folder;
  EventWriter writer(folder.path(), 0);
  writer.scalar("loss", 2.5, {.step = 7, .wall_s = 1});
  writer.flush();
  EXPECT_EQ(
      read_file(writer.path()),
      from_hex("18000000 00000000 a37f4b22 09 0000000000000000 1a0d 627261696e2e4576656e743a32 eedf28a3"
               "1a000000 00000000 129bd82d 09 000000000000f03f 10 07 2a 0d 0a 0b 0a 04 6c6f7373 15 00002040 87ccc43d"));
}

TEST(Events, FileNamesAreUniqueAndContainTheRequiredWord) {
  TempFolder folder;
  EventWriter a(folder.path(), 1790000000.7), b(folder.path(), 1790000000.7);
  EXPECT_NE(a.path(), b.path());
  EXPECT_NE(a.path().find("/events.out.tfevents.1790000000."), std::string::npos);
  expect_parts(error_of([&] { EventWriter(folder / "none", 0); }),
               {"open", "none/events.out.tfevents", "No such file"});
}

TEST(Events, RoundTripsScalarsTextsAndHistograms) {
  TempFolder folder;
  std::string path;
  std::vector<float> values = {-1, 0, 0.5f, 1, 1, std::nanf("")};
  Histogram h = make_histogram(values, 4);
  {
    EventWriter writer(folder.path(), 5);
    path = writer.path();
    writer.scalar("train/loss", 0.1, {1, 10});
    writer.text("sample", "first", {2, 11});
    writer.text("sample", std::string("se\0cond", 7), {3, 12});
    writer.histogram("w", h, {4, 13});
    writer.scalar("nan", std::nan(""), {-1, 14});
  }
  EventFile file = read_events(path);
  EXPECT_FALSE(file.has_torn_end);
  ASSERT_EQ(file.events.size(), 6u);
  EXPECT_EQ(file.events[0].file_version, "brain.Event:2");
  EXPECT_EQ(file.events[0].time.wall_s, 5);
  EXPECT_EQ(file.events[1].values.at(0).tag, "train/loss");
  EXPECT_EQ(file.events[1].values.at(0).scalar, 0.1f);
  EXPECT_EQ(file.events[2].values.at(0).texts, std::vector<std::string>{"first"});
  EXPECT_EQ(file.events[3].values.at(0).texts, (std::vector<std::string>{std::string("se\0cond", 7)}));
  EXPECT_EQ(file.events[3].time.step, 3);
  ASSERT_TRUE(file.events[4].values.at(0).histogram);
  const Histogram& read = *file.events[4].values.at(0).histogram;
  EXPECT_EQ(read.bucket_limits, h.bucket_limits);
  EXPECT_EQ(read.buckets, h.buckets);
  EXPECT_EQ(read.sum_squares, h.sum_squares);
  EXPECT_EQ(file.events[5].time.step, -1);
  EXPECT_TRUE(std::isnan(*file.events[5].values.at(0).scalar));
}

TEST(Events, TextMetadataComesWithTheFirstValueOfATag) {
  TempFolder folder;
  EventWriter writer(folder.path(), 0);
  writer.text("t", "a", {1, 1});
  writer.flush();
  size_t first = read_file(writer.path()).size();
  writer.text("t", "a", {1, 1});
  writer.flush();
  std::string bytes = read_file(writer.path());
  EXPECT_EQ(std::string_view(bytes).substr(40, first - 40).find(from_hex("4a 0a 0a06 0a04 74657874 2002")) !=
                std::string::npos,
            true);
  EXPECT_EQ(bytes.find("text", first), std::string::npos);
}

TEST(Events, HistogramCountsEveryFiniteValueOnce) {
  std::vector<float> values = {3, 3, 3};
  Histogram same = make_histogram(values, 5);
  EXPECT_EQ(std::accumulate(same.buckets.begin(), same.buckets.end(), 0.0), 3);
  std::vector<float> spread;
  for (int i = 0; i < 1000; ++i) spread.push_back(static_cast<float>(i) / 7);
  Histogram h = make_histogram(spread, 10);
  EXPECT_EQ(std::accumulate(h.buckets.begin(), h.buckets.end(), 0.0), 1000);
  EXPECT_EQ(h.bucket_limits.back(), std::numeric_limits<double>::max());
  for (double count : h.buckets) EXPECT_NEAR(count, 100, 1);
  EXPECT_EQ(make_histogram({}, 5).num, 0);
  expect_parts(error_of([] { make_histogram({}, 0); }), {"num_buckets is 0"});
}

TEST(Events, TornEndIsReportedAndWhatIsWholeIsRead) {
  TempFolder folder;
  std::string path;
  {
    EventWriter writer(folder.path(), 0);
    path = writer.path();
    writer.scalar("loss", 1, {1, 1});
  }
  std::string bytes = read_file(path);
  for (size_t size = 41; size < bytes.size(); ++size) {
    write_file_atomically(folder / "torn", std::string_view(bytes).substr(0, size));
    EventFile file = read_events(folder / "torn");
    EXPECT_TRUE(file.has_torn_end);
    EXPECT_EQ(file.events.size(), 1u);
  }
}

TEST(Events, EveryFlippedBitIsAnErrorOrATornEnd) {
  TempFolder folder;
  std::string path;
  {
    EventWriter writer(folder.path(), 0);
    path = writer.path();
    writer.text("loss", "abc", {1, 1});
  }
  std::string good = read_file(path);
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bytes = good;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << (at % 8)));
    write_file_atomically(folder / "bad", bytes);
    expect_parts(error_of([&] { read_events(folder / "bad"); }), {"bad: byte ", "checksum"});
  }
}

// Good checksums around messages of any bytes: an Error or an event, never a crash.
TEST(Events, HostileMessagesNeverCrash) {
  TempFolder folder;
  Rng rng = Rng(test::seed())["messages"];
  auto number = [](auto value) { return std::string(reinterpret_cast<const char*>(&value), sizeof value); };
  std::string good = from_hex("09 000000000000f03f 10 07 2a 0d 0a 0b 0a 04 6c6f7373 15 00002040");
  int num_refused = 0;
  for (uint64_t i = 0; i < 500; ++i) {
    std::string message = good;
    for (uint64_t k = 0; k < 3; ++k)
      message[rng[i].below(message.size(), 2 * k)] = static_cast<char>(rng[i].below(256, 2 * k + 1));
    std::string length = number(static_cast<uint64_t>(message.size()));
    FileWriter writer(folder / "h", FileWriter::Placement::in_place);
    writer.write(length + number(masked_crc32c(length)) + message + number(masked_crc32c(message)));
    try {
      read_events(folder / "h");
    } catch (const Error& error) {
      expect_parts(error.what(), {"byte 0: the record is no Event message"});
      ++num_refused;
    }
  }
  EXPECT_GT(num_refused, 0);
}

TEST(Events, StartOfASessionIsTheMessageThatReadersKnow) {
  TempFolder folder;
  EventWriter writer(folder.path(), 0);
  writer.start_session({.step = 7, .wall_s = 1});
  writer.sync();
  std::string bytes = read_file(writer.path());
  EXPECT_EQ(bytes.substr(40 + 12, 15), from_hex("09 000000000000f03f 10 07 3a 02 08 01"));
  EventFile file = read_events(writer.path());
  ASSERT_EQ(file.events.size(), 2u);
  EXPECT_FALSE(file.events[0].starts_session);
  EXPECT_TRUE(file.events[1].starts_session);
  EXPECT_EQ(file.events[1].time.step, 7);
}

TEST(Events, RewindCutsEveryFileBeforeItsFirstRecordThatIsTakenBack) {
  TempFolder folder;
  std::string older, newer;
  {
    EventWriter a(folder.path(), 1), b(folder.path(), 2);
    older = a.path(), newer = b.path();
    for (int64_t step : {10, 20, 30}) a.scalar("loss", 1, {step, 1});
    b.start_session({.step = 21, .wall_s = 2});
    b.scalar("loss", 1, {25, 2});
    b.scalar("val", 1, {25, 2});
    b.scalar("loss", 1, {30, 2});
  }
  write_file_atomically(folder / "other.txt", "no event file");
  std::vector<std::string> problems;
  auto keeps = [](const EventValue& value) { return value.tag != "val"; };
  auto steps = [](const std::string& path) {
    std::vector<int64_t> out;
    for (const Event& event : read_events(path).events) out.push_back(event.time.step);
    return out;
  };
  EXPECT_EQ(rewind_events(folder.path(), 30, keeps, problems), 0);
  EXPECT_EQ(rewind_events(folder.path(), 25, keeps, problems), 3) << "30 in the older file; val of 25 and what follows";
  EXPECT_EQ(steps(older), (std::vector<int64_t>{0, 10, 20}));
  EXPECT_EQ(steps(newer), (std::vector<int64_t>{0, 21, 25}));
  cut_file(newer, read_file(newer).size() - 1);
  EXPECT_EQ(rewind_events(folder.path(), 25, keeps, problems), 1) << "the torn record";
  EXPECT_FALSE(read_events(newer).has_torn_end);
  EXPECT_EQ(rewind_events(folder.path(), 0, keeps, problems), 3);
  EXPECT_EQ(steps(older), std::vector<int64_t>{0});
  EXPECT_TRUE(problems.empty());
  write_file_atomically(older, "rubbish that is longer than a head");
  rewind_events(folder.path(), 0, keeps, problems);
  ASSERT_EQ(problems.size(), 1u);
  expect_parts(problems[0], {older, "checksum"});
  EXPECT_EQ(read_file(older).size(), 34u) << "left as it is";
}

TEST(Events, FlushGoesOnWhereAFullDiskStoppedIt) {
  TempFolder folder;
  EventWriter writer(folder.path(), 0);
  writer.scalar("loss", 1, {1, 1});
  test::set_fault(test::Fault::disk_full, 0);
  std::string text = error_of([&] { writer.flush(); });
  test::set_fault(test::Fault::none, 0);
  expect_parts(text, {"append to", "No space left on device"});
  writer.flush();
  EXPECT_EQ(read_events(writer.path()).events.size(), 2u);
}

}  // namespace
}  // namespace weft::io
