// The records of a run folder, as comparable lists.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "weft/io/events.h"
#include "weft/io/files.h"
#include "weft/io/metrics.h"

namespace weft::test {

// Every line of metrics.jsonl as it stands there, but "rewind" lines: kind and step; the losses too, which do not depend on the machine's
// speed.
inline std::vector<std::string> metrics_lines(const std::string& run) {
  std::vector<std::string> lines;
  for (const auto& record : io::read_metrics(run + "/metrics.jsonl")) {
    if (record.kind == "rewind") continue;
    std::string line = record.kind + " " + std::to_string(record.step);
    for (const char* key : {"train/loss", "train/bpb", "train/grad_norm", "val/loss"})
      if (auto value = record.value(key)) line += std::string(" ") + key + "=" + std::to_string(*value);
    lines.push_back(line);
  }
  return lines;
}

// Tag and step of every value in every event file, sorted.
inline std::vector<std::string> event_points(const std::string& run) {
  std::vector<std::string> points;
  for (const std::string& name : io::list_folder(run)) {
    if (name.find("tfevents") == std::string::npos) continue;
    io::EventFile file = io::read_events(run + "/" + name);
    EXPECT_FALSE(file.has_torn_end) << name;
    for (const io::Event& event : file.events)
      for (const io::EventValue& value : event.values)
        points.push_back(value.tag + " " + std::to_string(event.time.step));
  }
  std::sort(points.begin(), points.end());
  return points;
}

inline void expect_each_once(std::vector<std::string> list, const std::string& what) {
  std::sort(list.begin(), list.end());
  auto twice = std::adjacent_find(list.begin(), list.end());
  EXPECT_EQ(twice, list.end()) << what << " twice: " << (twice == list.end() ? "" : *twice);
}

// The records of `run` are those of `whole`, which nothing interrupted.
inline void expect_same_records(const std::string& whole, const std::string& run) {
  expect_each_once(event_points(run), "event");
  EXPECT_EQ(metrics_lines(run), metrics_lines(whole));
  EXPECT_EQ(event_points(run), event_points(whole));
  EXPECT_EQ(io::read_file(run + "/samples.txt"), io::read_file(whole + "/samples.txt"));
}

// Every file below a folder with its content.
inline std::map<std::string, std::string> content_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const std::string& name : io::list_folder(folder)) {
    const std::string path = folder + "/" + name;
    if (!io::is_folder(path)) files[path] = io::read_file(path);
    else files.merge(content_of(path));
  }
  return files;
}

}  // namespace weft::test
