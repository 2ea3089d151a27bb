#include "trainers/run/team.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "src/training/repeating.h"
#include "trainers/config/check.h"
#include "trainers/console/stop_signal.h"
#include "trainers/run/checkpoint.h"
#include "trainers/run/data.h"
#include "trainers/run/evaluate.h"
#include "trainers/run/prediction.h"
#include "trainers/run/rank_places.h"
#include "trainers/run/start_model.h"
#include "trainers/run/trainer.h"
#include "weft/core/error.h"
#include "weft/core/memory.h"
#include "weft/io/checkpoint.h"
#include "weft/ops/elementwise.h"
#include "weft/training/rank_sums.h"

namespace weft::train {

// Processes of a host share its memory, and threads of a process its GPU too.
static int count_ranks_here(dist::Communicator& world) {
  std::string place = host_name();
  if (default_device().is_cuda()) place += str(" ", getpid(), " ", default_device());
  return count_ranks_at(world, place);
}

Team::Team(dist::Communicator& world, const ContextChoice& choice)
    : Team(world, world.split(world.rank() / choice.parallel.context, world.rank(), "context"), choice) {}

Team::Team(dist::Communicator& world, std::unique_ptr<dist::Communicator> context, const ContextChoice& choice)
    : world_(world),
      choice_(choice),
      context_(std::move(context)),
      group_{.tokens = context_.get(),
             .batch = &world,
             .scheme = *choice.parallel.scheme,
             .options = choice.options,
             .ranks_per_node = choice.ranks_per_node},
      rows_(group_) {
  rows_.batch = nullptr;
  const ParallelOptions& parallel = choice.parallel;
  WEFT_CHECK(world.size() == parallel.ranks(),
             str("training: ", world.size(), " ranks for parallel.data ", parallel.data, " x parallel.context ",
                 parallel.context),
             str("start ", parallel.ranks(), " ranks"));
  ranks_here_ = count_ranks_here(world);
}

dist::Communicator& Team::others() {
  if (!others_) others_ = world_.split(context_->rank(), world_.rank(), "data");
  return *others_;
}

std::optional<data::SpreadOptions> Team::spread(bool keeps_documents_apart) const {
  if (choice_.parallel.context == 1) return std::nullopt;
  return choice_.spread_options(keeps_documents_apart);
}

bool Team::on_any_rank(bool is_so) { return weft::on_any_rank(&world_, is_so); }

// Where the communicator takes them.
static std::vector<int32_t> first_numbers(dist::Communicator& world, std::span<const int32_t> numbers) {
  Tensor sent = ops::to(Tensor::from(numbers, {static_cast<int64_t>(numbers.size())}), default_device());
  world.broadcast(sent, 0);
  return sent.to_vector<int32_t>();
}

// The bytes of the first rank's text, one per number.
std::string Team::exchanged(const std::string& text, int64_t length) {
  std::vector<int32_t> bytes(text.begin(), text.end());
  bytes.resize(static_cast<size_t>(length));
  std::string out;
  for (int32_t byte : first_numbers(world_, bytes)) out.push_back(static_cast<char>(byte));
  return out;
}

void Team::tell(Duty duty, const std::string& text) {
  const int32_t header[] = {static_cast<int32_t>(duty), static_cast<int32_t>(text.size())};
  first_numbers(world_, header);
  if (!text.empty()) exchanged(text, static_cast<int64_t>(text.size()));
}

Team::Told Team::hear() {
  for (;;) {
    const int32_t header[] = {0, 0};
    const std::vector<int32_t> told = first_numbers(world_, header);
    if (static_cast<Duty>(told[0]) == Duty::wait) continue;
    return {static_cast<Duty>(told[0]), told[1] > 0 ? exchanged({}, told[1]) : std::string()};
  }
}

// What this thread meets with, the next call of the first rank meets with too.
Team::Errand::Errand(Team* team) {
  if (!team || team->world().size() == 1) return;
  const std::chrono::duration<double> every(std::min(team->parallel().timeout_s / 4, 60.0));
  signs_ = std::make_unique<Repeating>(every, [team] { team->tell(Duty::wait); });
}

Team::Errand::~Errand() = default;

namespace {

struct Follower {
  Follower(Team& team, const config::Loaded& config, const std::string& run_folder, const std::string& source)
      : data(prepare_data(config, run_folder, {.keeps_shards = true})),
        // Beside that of the rank that leads: ranks share the machine then as in the training.
        prediction(predict(config, data.num_ids(), {.num_params = count_params(model_options(config, data.num_ids()))},
                           &team, &data)),
        start(make_start(config, data, source)),
        trainer(
            *start.model, data.samples(),
            trainer_options(config.experiment, data, start_loss(config.experiment, *start.model, start.teacher.get())),
            &team) {
    if (config.experiment.train().has_memory_gib()) limit.emplace(default_device(), memory_limit(config.experiment));
  }
  RunData data;
  Prediction prediction;
  StartModel start;
  Trainer trainer;
  std::optional<MemoryLimit> limit = {};
};

}  // namespace

void follow(Team& team, const config::Loaded& config, const std::string& run_folder) {
  std::unique_ptr<Follower> follower;
  for (;;) {
    const Team::Told told = team.hear();
    switch (told.duty) {
      case Duty::start: follower = std::make_unique<Follower>(team, config, run_folder, told.text); break;
      case Duty::restore: restore_trainer(follower->trainer, io::load_checkpoint(told.text)); break;
      case Duty::step: follower->trainer.step(); break;
      case Duty::validate: try { follower->trainer.validate(follower->data, std::stoll(told.text));
        } catch (const Stopped&) {}  // the first rank says what comes next
        break;
      case Duty::analyse: follower->trainer.analyse(follower->data); break;
      case Duty::save: follower->trainer.save({}, {}, {}); break;
      case Duty::wait: break;
      case Duty::end: return;
    }
  }
}

// "parallel.data=1 parallel.context=4, or ...": meshes of so many ranks, first those that keep a number of the config.
static std::string meshes_of(int ranks, const ParallelOptions& config) {
  std::vector<int> numbers;  // of data ranks
  auto add = [&](int data) {
    if (std::ranges::find(numbers, data) == numbers.end()) numbers.push_back(data);
  };
  if (ranks % config.data == 0) add(config.data);
  if (ranks % config.context == 0) add(ranks / config.context);
  add(1), add(ranks);
  std::string text;
  for (int data : numbers)
    text += str(text.empty() ? "" : ", or ", "parallel.data=", data, " parallel.context=", ranks / data);
  return text;
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
  throw config::ConfigError(str(started_by, ": the config has ", mesh, "."),
                            str("Start ", parallel.ranks(), ", or use ", meshes_of(ranks, parallel), "."));
}

}  // namespace weft::train
