#include "trainers/run/run_mesh.h"

#include <algorithm>

#include "trainers/config/config_error.h"

namespace weft::train {

ParallelOptions run_mesh(const config::Loaded& config, int ranks, const std::string& started_by) {
  ParallelOptions mesh = parallel_options(config.experiment);
  if (ranks % mesh.context != 0)
    throw config::ConfigError(str(started_by, ": the run has parallel.context=", mesh.context,
                                  ", ranks that share each sequence, which do not divide ", ranks, "."),
                              str("Use a multiple of ", mesh.context, ", or parallel.context=", ranks, " or 1."));
  mesh.data = ranks / mesh.context;
  return mesh;
}

ContextChoice run_choice(config::Loaded config, const std::vector<std::string>& overrides, dist::Communicator& world) {
  const ParallelOptions mesh = run_mesh(config, world.size(), str(world.size(), " ranks"));
  auto names = [&](std::string_view field) {
    return std::ranges::any_of(overrides, [&](const std::string& o) { return o.starts_with(field); });
  };
  config::Parallel& parallel = *config.experiment.mutable_parallel();
  if (!names("parallel.scheme")) parallel.set_scheme(config::Scheme::auto_);
  if (!names("parallel.layout")) parallel.set_layout(config::Layout::auto_);
  ContextChoice choice = choose_context(config, rank_machine(world));
  choice.parallel.data = mesh.data;
  return choice;
}

}  // namespace weft::train
