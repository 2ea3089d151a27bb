// weft_bench_program [--quick] [--json] NAME...: the rows of `weft bench` without the rest of the command.
#include <cstdio>
#include <exception>
#include <string_view>

#include "tools/bench/bench.h"

int main(int argc, char** argv) try {
  weft::bench::BenchOptions options;
  bool is_json = false;
  std::vector<weft::bench::Row> rows;
  std::vector<std::string_view> names;
  for (int i = 1; i < argc; ++i) {
    std::string_view word = argv[i];
    if (word == "--quick") options.quick = true;
    else if (word == "--json") is_json = true;
    else names.push_back(word);
  }
  for (std::string_view name : names)
    for (const weft::bench::Row& row : weft::bench::family(name).run(options)) rows.push_back(row);
  if (is_json) weft::bench::print_json(rows, stdout);
  else weft::bench::print_table(rows, stdout);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
