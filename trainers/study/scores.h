// What a study asks of a finished run beside its last validation: losses of other lengths and by position, and tasks of recall. `weft eval`
// answers; its JSON is kept with the result of the run.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace weft::study {

constexpr int64_t kMostLength = 2147483647;  // tokens of a row

struct Evals {
  std::vector<int64_t> lengths = {};  // of validation rows; without any that of the training
  bool by_position = false;
  std::vector<std::string> tasks = {};
  std::vector<int64_t> task_lengths = {};  // likewise
  int64_t rows = 256;                      // of each task, length and size
};
// The calls of `weft eval`, without the run; none if nothing is asked.
std::vector<std::vector<std::string>> eval_calls(const Evals& evals);

struct Scores {
  struct Position {
    int64_t from = 0, to = 0;  // tokens that the model had seen
    double loss = 0;
  };
  struct Length {
    int64_t length = 0;
    double loss = 0;
    std::vector<Position> positions = {};
  };
  struct Task {
    std::string name = {}, size = {};  // size: "8 pairs"; empty where a task has one size
    int64_t length = 0, rows = 0;
    double accuracy = 0, loss = 0;
    std::vector<std::pair<std::string, double>> groups = {};  // accuracy by difficulty
    std::vector<int64_t> hits = {}, targets = {};             // of every row
  };
  std::vector<Length> lengths = {};
  std::vector<Task> tasks = {};
};
// Of what the calls printed. Error that names the run if it is not that, or if it cannot be true.
Scores scores_of(const std::vector<std::string>& answers, const std::string& run);

// "val/loss@512", "task/mqar/accuracy" (mean over lengths and sizes), "task/mqar/accuracy/16" (with 16 pairs), and
// "task/mqar/accuracy@64" where there are several lengths.
void add_metrics(const Scores& scores, std::map<std::string, double>& metrics);
// What each of these metrics of a task is the mean over: "64 tokens, 8 pairs, 256 rows".
std::map<std::string, std::vector<std::string>> questions_of(const Scores& scores);

}  // namespace weft::study
