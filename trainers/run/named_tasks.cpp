#include "trainers/run/named_tasks.h"

#include <algorithm>

#include "trainers/config/config_error.h"
#include "trainers/config/translate.h"
#include "weft/core/error.h"

namespace weft::train {

namespace {

struct NamedTask {
  std::string name;
  data::RecallOptions options;
  bool (*is_form)(const data::RecallOptions&) = nullptr;  // whether options of the kind are of this form; null: all are
};

template <data::CopyKind kind>
bool is_copy(const data::RecallOptions& options) {
  return std::get<data::CopyOptions>(options).kind == kind;
}
template <data::StateKind kind>
bool is_state(const data::RecallOptions& options) {
  return std::get<data::StateOptions>(options).kind == kind;
}
bool has_updates(const data::RecallOptions& options) { return std::get<data::MqarOptions>(options).updates > 0; }
bool is_repeated(const data::RecallOptions& options) { return std::get<data::InductionOptions>(options).repeats; }
bool has_hops(const data::RecallOptions& options) { return std::get<data::NeedleOptions>(options).hops > 0; }
bool is_passkey(const data::RecallOptions& options) {
  const auto& needle = std::get<data::NeedleOptions>(options);
  return needle.needles == 1 && needle.hops == 0;
}
bool is_parity(const data::RecallOptions& options) {
  return is_state<data::StateKind::sum>(options) && std::get<data::StateOptions>(options).size == 2;
}

std::vector<NamedTask> make_tasks() {
  using data::CopyKind, data::CopyOptions, data::StateKind;
  std::vector<NamedTask> all;
  for (const data::RecallOptions& kind : data::recall_tasks()) all.push_back({data::recall_name(kind), kind});
  const std::vector<NamedTask> forms{
      {"overwrite", data::MqarOptions{.updates = 4}, has_updates},
      {"selective_copy", CopyOptions{.kind = CopyKind::selective}, is_copy<CopyKind::selective>},
      {"delayed_copy", CopyOptions{.kind = CopyKind::delayed}, is_copy<CopyKind::delayed>},
      {"string_copy", CopyOptions{.kind = CopyKind::string}, is_copy<CopyKind::string>},
      {"reversed_copy", CopyOptions{.kind = CopyKind::reversed}, is_copy<CopyKind::reversed>},
      {"repeated_half", data::InductionOptions{.symbols = 128, .repeats = true}, is_repeated},
      {"passkey", data::NeedleOptions{.digits = 5}, is_passkey},
      {"linked_needles", data::NeedleOptions{.hops = 2}, has_hops},
      {"parity", data::StateOptions{.kind = StateKind::sum, .size = 2}, is_parity},
      {"permutation", data::StateOptions{.kind = StateKind::permutation, .size = 5}, is_state<StateKind::permutation>}};
  all.insert(all.end(), forms.begin(), forms.end());
  return all;
}

const std::vector<NamedTask>& tasks() {
  static const std::vector<NamedTask> all = make_tasks();
  return all;
}

}  // namespace

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const NamedTask& task : tasks()) names.push_back(task.name);
  return names;
}

data::RecallOptions named_task(const std::string& name, const config::Data& of_run, int64_t vocab) {
  const auto task = std::ranges::find(tasks(), name, &NamedTask::name);
  WEFT_ASSERT(task != tasks().end());
  if (of_run.has_task()) {
    data::RecallOptions own = recall_options(of_run.task());
    if (own.index() == task->options.index() && (!task->is_form || task->is_form(own))) return own;
  }
  data::RecallOptions options = task->options;
  if (auto* mqar = std::get_if<data::MqarOptions>(&options)) mqar->vocab = std::min(mqar->vocab, vocab);
  if (auto* needle = std::get_if<data::NeedleOptions>(&options)) needle->vocab = std::min(needle->vocab, vocab);
  if (auto* induction = std::get_if<data::InductionOptions>(&options))
    induction->symbols = std::clamp<int64_t>(vocab - 1, 2, induction->symbols);
  return options;
}

data::RecallTask rows_of(const std::string& name, const data::RecallOptions& options, int64_t length,
                         const TaskWords& words) {
  auto fits = [&](int64_t tokens) {
    try {
      data::RecallTask(options, tokens, 0);
      return true;
    } catch (const Error&) { return false; }
  };
  try {
    return data::RecallTask(options, length, 0);
  } catch (const Error& error) {
    constexpr int64_t kLong = int64_t{1} << 30;
    if (!fits(kLong)) throw config::ConfigError(str(words.task, name, ": ", error.problem(), "."), error.fix() + ".");
    int64_t lower = length, enough = kLong;  // the shortest row that fits is between the two
    while (enough - lower > 1) {
      const int64_t middle = lower + (enough - lower) / 2;
      (fits(middle) ? enough : lower) = middle;
    }
    throw config::ConfigError(str(words.task, name, " in rows of ", length, " tokens: ", error.problem(), "."),
                              str("Ask for longer rows: ", words.length, enough, "."));
  }
}

}  // namespace weft::train
