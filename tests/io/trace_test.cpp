// Chrome traces: valid JSON with the promised fields.
#include "weft/io/trace.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/io/temp_folder.h"
#include "weft/io/files.h"

namespace weft::io {
namespace {

TEST(Trace, WritesSpansCountersNamesAndMessagesAsJson) {
  test::TempFolder folder;
  TraceWriter trace(3);
  trace.name_process("rank 3");
  trace.name_thread(1, "main \"thread\"");
  trace.span({.name = "matmul",
              .category = "op",
              .begin_us = 1790000000000000.5,
              .duration_us = 2.25,
              .thread = 1,
              .numbers = {{"flops", 1e9}}});
  trace.counter("memory", 5, {{"activations", 1024}, {"parameters", 2048}});
  trace.message_sent("kv", 77, 6, 1);
  trace.message_received("kv", 77, 7, 1);
  trace.write(folder / "trace.json");

  auto document = nlohmann::json::parse(read_file(folder / "trace.json"));
  EXPECT_EQ(document["displayTimeUnit"], "ms");
  const auto& events = document["traceEvents"];
  ASSERT_EQ(events.size(), 6u);
  EXPECT_EQ(events[0],
            nlohmann::json::parse(R"({"ph":"M","name":"process_name","pid":3,"tid":0,"args":{"name":"rank 3"}})"));
  EXPECT_EQ(events[1]["args"]["name"], "main \"thread\"");
  EXPECT_EQ(
      events[2],
      nlohmann::json::parse(
          R"({"ph":"X","name":"matmul","cat":"op","ts":1790000000000000.5,"dur":2.25,"pid":3,"tid":1,"args":{"flops":1e9}})"));
  EXPECT_EQ(events[3]["ph"], "C");
  EXPECT_EQ(events[3]["args"]["parameters"], 2048);
  EXPECT_EQ(events[4]["ph"], "s");
  EXPECT_EQ(events[5]["ph"], "f");
  EXPECT_EQ(events[4]["id"], events[5]["id"]);
}

TEST(Trace, EmptyTraceIsValid) { EXPECT_TRUE(nlohmann::json::parse(TraceWriter(0).text())["traceEvents"].empty()); }

}  // namespace
}  // namespace weft::io
