#include "trainers/run/parity.h"

#include <algorithm>
#include <cmath>

#include "trainers/run/session.h"
#include "weft/core/error.h"
#include "weft/data/spread.h"
#include "weft/nn/context_group.h"
#include "weft/ops/elementwise.h"
#include "weft/training/token_loss.h"
#include "weft/training/training.h"

namespace weft::train {

namespace {

constexpr int64_t kVocab = 97;  // where the config leaves it to a tokenizer

struct Subject {
  LanguageModelOptions model;
  std::vector<ParamGroup> groups;
  uint64_t seed;
  ParityOptions how;
};

// Row `sample`: random ids in documents of other lengths in each row.
data::Batch rows_of(const Subject& s, int64_t first, int64_t count) {
  const int64_t T = s.model.context;
  data::Batch batch;
  Tensor* parts[] = {&batch.tokens, &batch.targets, &batch.positions, &batch.documents, &batch.document_positions};
  for (Tensor* x : parts) *x = Tensor::empty({count, T}, kI32, Device::cpu());
  for (int64_t b = 0; b < count; ++b) {
    const Rng rng = Rng(s.seed)["parity"][static_cast<uint64_t>(first + b)];
    auto id = [&](int64_t t) {
      return static_cast<int32_t>(rng.below(static_cast<uint64_t>(s.model.vocab), static_cast<uint64_t>(t)));
    };
    int32_t document = 0, place = 0;
    for (int64_t t = 0; t < T; ++t, ++place) {
      const bool begins =
          t > 0 && rng["ends"].below(static_cast<uint64_t>(std::max<int64_t>(T / 3, 1)), static_cast<uint64_t>(t)) == 0;
      if (begins) ++document, place = 0;
      const int32_t values[] = {id(t), id(t + 1), static_cast<int32_t>(t), document, place};
      for (size_t i = 0; i < std::size(parts); ++i) parts[i]->mutable_data<int32_t>()[b * T + t] = values[i];
      if (begins) batch.targets.mutable_data<int32_t>()[b * T + t - 1] = -1;
    }
  }
  return batch;
}

struct Numbers {
  std::vector<double> losses;
  std::vector<std::pair<std::string, Tensor>> gradients, weights;
};

Numbers run(const Subject& s, const ParityCase* c, dist::Communicator* comm) {
  LanguageModel model(s.model, Rng(s.seed)["model"]);
  model.set_compute(kF64);
  const ContextGroup group{.tokens = comm, .scheme = c ? c->scheme : dist::Scheme::ring};
  auto samples = [&](int64_t first, int64_t count) {
    data::Batch all = rows_of(s, first, count);
    if (!comm) return all;
    return data::spread(all, {.layout = c->layout, .ranks = c->ranks, .block = s.how.block}, comm->rank());
  };
  Numbers numbers;
  {
    const data::Batch batch = samples(0, s.how.rows);
    Upload upload(default_device());
    Tensor num_targets = Tensor::zeros({}, kF64, Device::cpu());
    for (int32_t target : batch.targets.to_vector<int32_t>()) num_targets.mutable_data<double>()[0] += target >= 0;
    if (comm) comm->all_reduce(num_targets);
    Tokens tokens(token_data(batch, true, 0, upload),
                  {.is_training = true, .rng = Rng(s.seed), .context = comm ? &group : nullptr});
    const Var loss = model.loss(upload(batch.tokens), upload(batch.targets), tokens, 1 / num_targets.item()).loss;
    backward(loss);
    for (const NamedParam& p : model.params()) {
      Tensor grad = p.param->grad();
      grad = grad.defined() ? ops::clone(grad) : Tensor::zeros(p.param->value().shape(), kF64, loss.device());
      if (comm) comm->all_reduce(grad);
      numbers.gradients.emplace_back(p.name, grad);
      p.param->clear_grad();
    }
    for (const NamedBuffer& b : model.buffers()) b.buffer->discard();
  }
  TrainingOptions options{
      .groups = s.groups, .schedule = {.kind = ScheduleKind::constant}, .seed = s.seed, .keeps_documents_apart = true};
  if (comm) options.ranks = {.comm = comm, .ranks_per_row = c->ranks}, options.context = &group;
  Training training(model, options);
  for (int64_t step = 0; step < s.how.steps; ++step)
    numbers.losses.push_back(training.step(samples, training.num_samples(), s.how.rows).loss);
  for (const NamedParam& p : model.params()) numbers.weights.emplace_back(p.name, ops::clone(p.param->value()));
  for (const NamedBuffer& b : model.buffers()) numbers.weights.emplace_back(b.name, ops::clone(b.buffer->value()));
  return numbers;
}

// f on each rank: a thread, or one of the first processes, while the others wait.
void run_ranks(const ParityOptions& how, int ranks, const std::function<void(dist::Communicator&)>& f) {
  if (!how.world) return dist::run_thread_ranks(ranks, f);
  const bool takes_part = how.world->rank() < ranks;
  const auto group = how.world->split(takes_part, 0, "parity");
  if (takes_part) f(*group);
}

double difference(const Tensor& got, const Tensor& expected) {
  const std::vector<double> a = ops::cast(got, kF64).to_vector<double>(),
                            b = ops::cast(expected, kF64).to_vector<double>();
  double worst = 0, largest = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = std::abs(a[i] - b[i]);
    worst = std::isnan(d) ? HUGE_VAL : std::max(worst, d);
    largest = std::max(largest, std::abs(b[i]));
  }
  // Numbers that are not finite are equal to none: a model that has them says nothing of ranks.
  return std::isfinite(worst) && std::isfinite(largest) ? worst / (1 + largest) : HUGE_VAL;
}

ParityResult compared(const ParityCase& c, const Numbers& got, const Numbers& expected, double bound) {
  ParityResult result{.of = c};
  for (size_t i = 0; i < expected.losses.size(); ++i) {
    const double d = std::abs(got.losses[i] - expected.losses[i]) / (1 + std::abs(expected.losses[i]));
    result.loss = std::isnan(d) ? HUGE_VAL : std::max(result.loss, d);
  }
  for (size_t i = 0; i < expected.gradients.size(); ++i) {
    const double d = difference(got.gradients[i].second, expected.gradients[i].second);
    if (d > bound && result.first.empty()) result.first = expected.gradients[i].first;
    result.gradient = std::max(result.gradient, d);
    result.parameters.push_back({.name = expected.gradients[i].first, .gradient = d});
  }
  for (size_t i = 0; i < expected.weights.size(); ++i) {  // the parameters, then the buffers
    const double d = difference(got.weights[i].second, expected.weights[i].second);
    if (i == result.parameters.size()) result.parameters.push_back({.name = expected.weights[i].first});
    if (d > bound && result.first.empty()) result.first = expected.weights[i].first;
    result.parameters[i].weight = d;
    result.weight = std::max(result.weight, d);
  }
  result.passed = result.loss <= bound && result.gradient <= bound && result.weight <= bound;
  return result;
}

}  // namespace

std::vector<ParityResult> check_parity(const config::Loaded& config, std::span<const ParityCase> cases,
                                       const ParityOptions& options,
                                       const std::function<void(const ParityResult&)>& on_result) {
  Subject s{model_options(config, kVocab), param_groups(config.experiment),
            static_cast<uint64_t>(config.experiment.seed()), options};
  s.model.fixed_text.resize(static_cast<size_t>(s.model.context));  // for mixers that read one
  const bool compares = !options.world || options.world->rank() == 0;
  const Numbers expected = compares ? run(s, nullptr, nullptr) : Numbers();
  std::vector<ParityResult> results;
  for (const ParityCase& c : cases) {
    try {
      Numbers got;
      run_ranks(options, c.ranks, [&](dist::Communicator& comm) {
        Numbers mine = run(s, &c, &comm);
        if (comm.rank() == 0) got = std::move(mine);
      });
      if (compares) results.push_back(compared(c, got, expected, options.bound));
    } catch (const Error& error) {
      if (!error.problem().starts_with(str(to_string(c.scheme), ": "))) throw;
      if (compares) results.push_back({.of = c, .refused = error.problem()});
    }
    if (on_result && compares) on_result(results.back());
  }
  return results;
}

}  // namespace weft::train
