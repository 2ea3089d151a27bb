// weft plan CONFIG [path=value]... [--ranks N] [--hardware h100|h200|here]: what a training needs on many ranks, and how to spread it.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/check.h"
#include "trainers/config/config.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/run/mesh_plan.h"
#include "trainers/run/num_ids.h"
#include "trainers/run/session.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

using Json = nlohmann::ordered_json;
using train::PlannedStep;

constexpr double kCalibrationFlops = 3e11;  // a few seconds
constexpr size_t kMostDryRuns = 20;         // each takes up to a second for a large model

struct Options {
  ConfigArguments config;
  std::string hardware = "here", documents;
  int ranks = 0, context = 0, zero = -1;
  int64_t micro_batch = 0, rows = 10;
};

std::string size_text(double bytes) { return fmt::format("{:.2f}", bytes / 1073741824); }

// Of one scheme, over all layers and one micro-batch.
struct Traffic {
  dist::Scheme scheme;
  double forward = 0, backward = 0, memory = 0;
  std::string problem = {};
};
std::vector<Traffic> traffic_of(dist::StepPlanner& planner, dist::MeshChoice choice) {
  std::vector<Traffic> all;
  for (dist::Scheme scheme : dist::all_schemes()) {
    choice.scheme = scheme;
    Traffic traffic{.scheme = scheme, .problem = planner.problem(choice)};
    const std::vector<dist::AttentionLayers>& layers = planner.training().attention;
    for (size_t kind = 0; kind < layers.size() && traffic.problem.empty(); ++kind) {
      const dist::SchemeCost cost = planner.attention(choice, kind);
      traffic.forward += static_cast<double>(layers[kind].layers) * cost.forward_sent;
      traffic.backward += static_cast<double>(layers[kind].layers) * cost.backward_sent;
      traffic.memory = std::max(traffic.memory, planner.attention_memory(choice, kind));
    }
    all.push_back(std::move(traffic));
  }
  return all;
}

// Of one layout, in the layers of the first kind.
struct Balance {
  dist::LayoutKind layout;
  dist::StepPlanner::Balance pairs;
};
std::vector<Balance> balances_of(dist::StepPlanner& planner, dist::MeshChoice choice) {
  using enum dist::LayoutKind;
  std::vector<Balance> all;
  for (dist::LayoutKind layout : {contiguous, striped, zigzag, balanced}) {
    choice.layout = layout;
    if (!planner.training().attention.empty()) all.push_back({layout, planner.balance(choice, 0)});
  }
  return all;
}

struct Report {
  int ranks;
  int64_t rows;
  const train::MeshPlan& plan;
  std::vector<PlannedStep> steps;
  size_t num_fit = 0;
  std::vector<Traffic> traffic;
  std::vector<Balance> balances;
};

double tokens_per_s(const Report& report, const PlannedStep& step) {
  const dist::TrainingShape& t = report.plan.training();
  return static_cast<double>(t.rows_per_step * t.tokens) / step.cost.step_s;
}

std::string text_of(const Report& report) {
  const dist::TrainingShape& t = report.plan.training();
  const dist::Hardware& hw = report.plan.hardware();
  std::string out = fmt::format("model      {:.1f} M parameters, {:.1f} MFLOP per token in training\n", t.params / 1e6,
                                report.plan.flops_per_token() / 1e6);
  out += fmt::format("step       {} sequences of {} tokens\n", t.rows_per_step, t.tokens);
  out += fmt::format(
      "hardware   {}: {:.4g} TFLOP/s products, {:.4g} and {:.4g} attention forward and backward, {:.1f} GiB, "
      "{:.4g} GB/s in a node, {:.4g} between nodes\n",
      hw.name, hw.gemm_flops / 1e12, hw.attention_forward_flops / 1e12, hw.attention_backward_flops / 1e12,
      hw.memory_bytes / 1073741824, hw.inside.bytes_per_s / 1e9, hw.between.bytes_per_s / 1e9);
  if (report.plan.num_other_layers() > 0)
    out += fmt::format(
        "note       {} layers have neither softmax attention nor recurrences alone: what they send is in the rows "
        "below, "
        "not in the order of those that are not shown\n",
        report.plan.num_other_layers());
  if (!report.plan.teacher_note().empty()) out += report.plan.teacher_note() + "\n";
  if (!t.documents.empty())
    out += fmt::format(
        "documents  rows packed from the given lengths, {} of them looked at; tokens see their own document\n",
        t.documents.size());
  if (const std::string fixed = to_string(report.plan.fixed()); !fixed.empty()) out += "fixed      " + fixed + "\n";
  for (const std::string& reason : report.plan.reasons()) out += "left out   choices that cannot be: " + reason + "\n";
  out += fmt::format("fits       {} of {} choices for {} ranks\n\n", report.num_fit, report.steps.size(), report.ranks);
  out += fmt::format("{:>4} {:>7}  {:<18} {:<10} {:>5} {:<9} {:>10} {:>12} {:>9} {:>9} {:>9}\n", "data", "context",
                     "scheme", "layout", "micro", "recompute", "step s", "tokens/s", "GiB", "sent GiB", "grads GiB");
  const auto shown = std::min(report.steps.size(), static_cast<size_t>(report.rows));
  for (size_t i = 0; i < shown; ++i) {
    const PlannedStep& s = report.steps[i];
    const bool is_split = s.choice.context > 1;
    out +=
        fmt::format("{:>4} {:>7}  {:<18} {:<10} {:>5} {:<9} {:>10.4g} {:>12.4g} {:>9} {:>9} {:>9}{}\n", s.choice.data,
                    s.choice.context, is_split ? dist::to_string(s.choice.scheme) : "-",
                    is_split ? dist::to_string(s.choice.layout) : "-", s.choice.micro_batch,
                    s.choice.recomputes ? "blocks" : "none", s.cost.step_s, tokens_per_s(report, s),
                    str(s.is_dry_run ? "" : "~", size_text(static_cast<double>(s.bytes))),
                    size_text(s.cost.context_sent), size_text(s.cost.gradients_sent), s.fits ? "" : "  does not fit");
  }
  if (report.traffic.empty()) return out;
  out += fmt::format("\ncontext {}, micro-batch {}: MiB that a rank sends in the attention of a micro-batch\n",
                     report.steps[0].choice.context, report.steps[0].choice.micro_batch);
  out += fmt::format("{:<18} {:>10} {:>10} {:>12}\n", "scheme", "forward", "backward", "memory MiB");
  for (const Traffic& row : report.traffic)
    out += row.problem.empty() ? fmt::format("{:<18} {:>10.1f} {:>10.1f} {:>12.1f}\n", dist::to_string(row.scheme),
                                             row.forward / 1048576, row.backward / 1048576, row.memory / 1048576)
                               : fmt::format("{:<18} cannot: {}\n", dist::to_string(row.scheme), row.problem);
  out += fmt::format("\n{:<18} {:>22} {:>20}   (busiest rank over the mean, in pairs)\n", "layout",
                     "hop by hop, as a ring", "in all, as gathering");
  for (const Balance& row : report.balances)
    out += fmt::format("{:<18} {:>22.3f} {:>20.3f}\n", dist::to_string(row.layout), row.pairs.hops, row.pairs.ranks);
  return out;
}

std::string json_of(const Report& report) {
  const dist::TrainingShape& t = report.plan.training();
  Json out = {{"params", t.params},
              {"flops_per_token", report.plan.flops_per_token()},
              {"sequences_per_step", t.rows_per_step},
              {"tokens_per_sequence", t.tokens},
              {"ranks", report.ranks},
              {"hardware", report.plan.hardware().name},
              {"steps", Json::array()},
              {"traffic", Json::array()},
              {"balance", Json::array()}};
  for (const PlannedStep& s : report.steps)
    out["steps"].push_back({{"data", s.choice.data},
                            {"context", s.choice.context},
                            {"scheme", dist::to_string(s.choice.scheme)},
                            {"layout", dist::to_string(s.choice.layout)},
                            {"micro_batch", s.choice.micro_batch},
                            {"recompute", s.choice.recomputes ? "blocks" : "none"},
                            {"step_s", s.cost.step_s},
                            {"linear_s", s.cost.linear_s},
                            {"attention_s", s.cost.attention_s},
                            {"optimizer_s", s.cost.optimizer_s},
                            {"carry_s", s.cost.carry_s},
                            {"others_s", s.cost.others_s},
                            {"exposed_reduce_s", s.cost.exposed_reduce_s},
                            {"bytes", s.bytes},
                            {"peak_bytes", s.peak_bytes},
                            {"is_dry_run", s.is_dry_run},
                            {"context_sent_bytes", s.cost.context_sent},
                            {"gradients_sent_bytes", s.cost.gradients_sent},
                            {"fits", s.fits}});
  for (const Traffic& row : report.traffic)
    out["traffic"].push_back(row.problem.empty()
                                 ? Json{{"scheme", dist::to_string(row.scheme)},
                                        {"forward_bytes", row.forward},
                                        {"backward_bytes", row.backward},
                                        {"memory_bytes", row.memory}}
                                 : Json{{"scheme", dist::to_string(row.scheme)}, {"problem", row.problem}});
  for (const Balance& row : report.balances)
    out["balance"].push_back(
        {{"layout", dist::to_string(row.layout)}, {"hop_pairs", row.pairs.hops}, {"rank_pairs", row.pairs.ranks}});
  return json_text(out);
}

int64_t vocab_of(const config::Loaded& config) {
  std::string why = "a plan reads no texts";
  try {
    if (const std::optional<int64_t> ids = train::num_ids_of(config)) return *ids;
  } catch (const Error& e) { why = e.problem(); }
  throw config::ConfigError("weft plan: model.vocab is not set, and " + why + ".", "Add model.vocab=N.");
}

// "" or what is wrong with all choices, by the first of each number of context ranks that are fixed, or that the ranks allow.
std::string problem_of(const train::MeshPlan& plan, dist::StepPlanner& planner, int ranks) {
  if (!plan.reasons().empty()) return plan.reasons()[0];
  const dist::FixedChoices& fixed = plan.fixed();
  for (int context = ranks; context >= 1; --context) {
    if (ranks % context != 0 || fixed.context.value_or(context) != context) continue;
    if (fixed.data.value_or(ranks / context) != ranks / context) continue;
    const std::string problem = planner.problem({.data = ranks / context,
                                                 .context = context,
                                                 .micro_batch = fixed.micro_batch.value_or(1),
                                                 .scheme = fixed.scheme.value_or(dist::Scheme::ring),
                                                 .layout = fixed.layout.value_or(dist::LayoutKind::contiguous)});
    if (!problem.empty()) return problem;
  }
  return "";
}

int run(const Options& options, Console& console) {
  using config::ConfigError;
  std::vector<std::string> names = {"here"};
  for (const dist::Hardware& hw : dist::hardware_profiles()) names.push_back(hw.name);
  config::check_choice("--hardware", options.hardware, names, "hardware");
  const config::Loaded config = config::load(options.config.file(), options.config.overrides());
  config::check_end_of_text(config);
  const int64_t vocab = vocab_of(config);
  train::apply_process_settings(config.experiment);
  train::MeshPlanOptions plan_options{.fixed = train::fixed_choices(config)};
  dist::FixedChoices& fixed = plan_options.fixed;
  if (options.context > 0) fixed.context = options.context;
  if (options.micro_batch > 0) fixed.micro_batch = options.micro_batch;
  if (options.zero >= 0) fixed.zero = options.zero;
  if (!options.documents.empty()) plan_options.documents = data::read_document_lengths(options.documents);
  const int ranks = options.ranks > 0 ? options.ranks : fixed.data.value_or(1) * fixed.context.value_or(1);
  if (options.hardware == "here") plan_options.calibration_flops = kCalibrationFlops, plan_options.ranks_here = ranks;
  dist::Hardware hardware = options.hardware == "here"
                                ? train::hardware_here(train::compute_dtype(config.experiment), ranks)
                                : dist::hardware_profile(options.hardware);
  train::MeshPlan plan(config, vocab, std::move(hardware), std::move(plan_options));
  Report report{.ranks = ranks,
                .rows = options.rows,
                .plan = plan,
                .steps = plan.steps(ranks, std::min(static_cast<size_t>(options.rows), kMostDryRuns)),
                .traffic = {},
                .balances = {}};
  if (report.steps.empty()) {
    const std::string asked = to_string(plan.fixed()), problem = problem_of(plan, plan.planner(), ranks);
    throw ConfigError(str("weft plan: ", ranks, " ranks cannot share ", plan.training().rows_per_step, " sequences of ",
                          plan.training().tokens, " tokens", asked.empty() ? "" : " with " + asked,
                          problem.empty() ? "." : ": " + problem),
                      "Change train.tokens_per_step, --ranks, or what the config says of parallel.");
  }
  report.num_fit = static_cast<size_t>(std::ranges::count_if(report.steps, &PlannedStep::fits));
  if (const dist::MeshChoice& best = report.steps[0].choice; best.context > 1) {
    report.traffic = traffic_of(plan.planner(), best);
    report.balances = balances_of(plan.planner(), best);
  }
  console.result(console.is_json() ? json_of(report) : text_of(report));
  return report.num_fit > 0 ? kSuccess : kCheckFailed;
}

}  // namespace

Action define_plan(Arguments& app) {
  auto options = std::make_shared<Options>();
  options->config.add(app, true);
  app.add_option("--ranks", options->ranks, "Number of ranks; without it those of the config")
      .range(int64_t{1}, int64_t{65536})
      .type_name("N");
  app.add_option("--hardware", options->hardware, "h100, h200, or here: this machine, measured; its ranks are threads")
      .capture_default_str()
      .type_name("NAME");
  app.add_option("--documents", options->documents,
                 "Lengths of packed documents: a file with a line from,to,share per range, or a length per line")
      .type_name("FILE");
  app.add_option("--context", options->context, "Only with so many ranks per sequence")
      .range(int64_t{1}, int64_t{65536})
      .type_name("N");
  app.add_option("--micro-batch", options->micro_batch, "Only with so many sequences at a time")
      .range(int64_t{1}, int64_t{1} << 20)
      .type_name("N");
  app.add_option("--zero", options->zero, "What ranks share: 1 the optimiser's moments, 2 and gradients")
      .range(int64_t{0}, int64_t{2})
      .type_name("N");
  app.add_option("--rows", options->rows, "Choices that are printed")
      .range(int64_t{1}, int64_t{100000})
      .capture_default_str()
      .type_name("N");
  return [options](Console& console, const Extensions&) { return run(*options, console); };
}

}  // namespace weft::cli
