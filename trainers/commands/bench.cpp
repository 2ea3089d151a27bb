// weft bench [NAME|all] [--quick]: speed beside the limit measured in the same run.
#include <CLI/App.hpp>
#include <cstdio>

#include "tools/bench/bench.h"
#include "trainers/commands/command.h"
#include "trainers/console.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  std::string name = "all";
  bool quick = false;
};

int run(const Options& options, Console& console) {
  std::vector<bench::Row> rows;
  bench::BenchOptions how{.quick = options.quick};
  if (options.name != "all") rows = bench::family(options.name).run(how);
  else
    for (const bench::Family& family : bench::families()) {
      console.message(std::string("bench ") + family.name + ": " + family.what);
      for (bench::Row& row : family.run(how)) rows.push_back(std::move(row));
    }
  if (console.is_json()) bench::print_json(rows, stdout);
  else bench::print_table(rows, stdout);
  return kSuccess;
}

}  // namespace

Action define_bench(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("NAME", options->name, "Family of benchmarks: gemm, call, attention, train, or all")->type_name("NAME");
  app.add_flag("--quick", options->quick, "At most 30 s for a family");
  return [options](Console& console, const Extensions&) { return run(*options, console); };
}

}  // namespace weft::cli
