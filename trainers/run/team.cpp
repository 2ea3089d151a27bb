#include "trainers/run/team.h"

#include <algorithm>

#include "trainers/config/check.h"
#include "trainers/run/checkpoint.h"
#include "trainers/run/data.h"
#include "trainers/run/session.h"
#include "trainers/run/trainer.h"
#include "weft/core/error.h"
#include "weft/io/checkpoint.h"

namespace weft::train {

Team::Team(dist::Communicator& world, const ParallelOptions& parallel)
    : world_(world),
      parallel_(parallel),
      context_(world.split(world.rank() / parallel.context, world.rank(), "context")),
      group_{.tokens = context_.get(), .batch = &world, .scheme = parallel.scheme} {
  WEFT_CHECK(world.size() == parallel.ranks(),
             str("training: ", world.size(), " ranks for parallel.data ", parallel.data, " x parallel.context ",
                 parallel.context),
             str("start ", parallel.ranks(), " ranks"));
}

// The bytes of the first rank's text, one per number.
std::string Team::exchanged(const std::string& text, int64_t length) {
  std::vector<int32_t> bytes(text.begin(), text.end());
  bytes.resize(static_cast<size_t>(length));
  Tensor sent = Tensor::from(std::span<const int32_t>(bytes), {length});
  world_.broadcast(sent, 0);
  std::string out;
  for (int32_t byte : sent.to_vector<int32_t>()) out.push_back(static_cast<char>(byte));
  return out;
}

void Team::tell(Duty duty, const std::string& text) {
  const int32_t header[] = {static_cast<int32_t>(duty), static_cast<int32_t>(text.size())};
  Tensor sent = Tensor::from(std::span<const int32_t>(header), {2});
  world_.broadcast(sent, 0);
  if (!text.empty()) exchanged(text, static_cast<int64_t>(text.size()));
}

Team::Told Team::hear() {
  Tensor header = Tensor::zeros({2}, kI32, Device::cpu());
  world_.broadcast(header, 0);
  const std::vector<int32_t> numbers = header.to_vector<int32_t>();
  return {static_cast<Duty>(numbers[0]), numbers[1] > 0 ? exchanged({}, numbers[1]) : std::string()};
}

namespace {

struct Follower {
  Follower(Team& team, const config::Loaded& config, const std::string& run_folder)
      : data(prepare_data(config, run_folder, {.keeps_shards = true})),
        model(make_model(config, data)),
        trainer(*model, *data.loader, trainer_options(config.experiment, data), &team) {}
  RunData data;
  std::unique_ptr<LanguageModel> model;
  Trainer trainer;
};

}  // namespace

void follow(Team& team, const config::Loaded& config, const std::string& run_folder) {
  std::unique_ptr<Follower> follower;
  for (;;) {
    const Team::Told told = team.hear();
    switch (told.duty) {
      case Duty::start: follower = std::make_unique<Follower>(team, config, run_folder); break;
      case Duty::restore: restore_trainer(follower->trainer, io::load_checkpoint(told.text)); break;
      case Duty::step: follower->trainer.step(); break;
      case Duty::save: follower->trainer.save({}, {}, {}); break;
      case Duty::end: return;
    }
  }
}

void check_ranks(const config::Loaded& config, int ranks, const std::string& started_by) {
  const ParallelOptions parallel = parallel_options(config.experiment);
  if (ranks == parallel.ranks()) return;
  const std::string mesh = str("parallel.data ", parallel.data, " x parallel.context ", parallel.context, " = ",
                               parallel.ranks(), parallel.ranks() == 1 ? " rank" : " ranks");
  if (ranks == 1)
    throw config::ConfigError(str("the config has ", mesh, ", and this is one."),
                              str("Add --ranks ", parallel.ranks(),
                                  ", which starts them as threads, or use mpirun -np ", parallel.ranks(), "."));
  throw config::ConfigError(
      str(started_by, ": the config has ", mesh, "."),
      str("Start ", parallel.ranks(), ", or use parallel.context=", ranks, ", or parallel.data=", ranks, "."));
}

}  // namespace weft::train
