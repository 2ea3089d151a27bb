// A folder of checkpoints: which there are, which one to resume from, which ones to remove.
#include <algorithm>
#include <charconv>
#include <utility>

#include "weft/core/error.h"
#include "weft/io/checkpoint.h"

namespace weft::io {

namespace {

constexpr std::string_view kPrefix = "step-", kPartial = ".partial";

// The step of a folder name "step-00001000"; nullopt for every other name.
std::optional<int64_t> step_of(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  std::string_view digits = name.substr(kPrefix.size());
  int64_t step = 0;
  auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  bool is_whole = code == std::errc() && end == digits.data() + digits.size() && digits.size() >= 8 && digits[0] != '-';
  return is_whole ? std::optional(step) : std::nullopt;
}

// The step that `latest` names; nullopt, with a message, if it is absent or names none.
std::optional<int64_t> latest_step(const std::string& folder, std::vector<std::string>& messages) {
  std::string path = folder + "/latest";
  if (!file_exists(path)) return std::nullopt;
  std::string text;
  try {
    text = read_file(path, 4096);
  } catch (const Error& error) {
    messages.push_back(error.problem());
    return std::nullopt;
  }
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  auto step = step_of(text);
  if (!step) messages.push_back(str(path, " names no checkpoint: '", text.substr(0, 40), "'"));
  return step;
}

// Steps in the order in which they are tried: `latest`, older ones downwards, younger ones downwards.
std::vector<int64_t> order_of_trial(std::vector<int64_t> steps, std::optional<int64_t> latest) {
  std::reverse(steps.begin(), steps.end());
  if (latest) std::stable_partition(steps.begin(), steps.end(), [&](int64_t step) { return step <= *latest; });
  return steps;
}

}  // namespace

std::vector<int64_t> list_checkpoints(const std::string& folder) {
  std::vector<int64_t> steps;
  if (!is_folder(folder)) return steps;
  for (const std::string& name : list_folder(folder)) {
    auto step = step_of(name);
    if (step && checkpoint_path(folder, *step) == folder + "/" + name && is_folder(folder + "/" + name))
      steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::optional<Checkpoint> load_latest_checkpoint(const std::string& folder, std::vector<std::string>& messages) {
  std::vector<int64_t> steps = list_checkpoints(folder);
  std::vector<std::string> reasons;
  std::optional<int64_t> latest = latest_step(folder, reasons);
  if (latest && !std::binary_search(steps.begin(), steps.end(), *latest))
    reasons.push_back(str(folder, "/latest names ", checkpoint_path(folder, *latest), ", which is not there"));
  for (int64_t step : order_of_trial(steps, latest)) {
    try {
      Checkpoint checkpoint = load_checkpoint(checkpoint_path(folder, step));
      if (!reasons.empty())
        reasons.push_back(str("falling back to ", checkpoint.info.path, " (step ", checkpoint.info.step, ")"));
      messages.insert(messages.end(), reasons.begin(), reasons.end());
      return checkpoint;
    } catch (const Error& error) { reasons.push_back(error.problem()); }
  }
  std::string all;
  for (const std::string& reason : reasons) all += "\n  " + reason;
  WEFT_CHECK(reasons.empty(), str("checkpoints ", folder, ": none of ", steps.size(), " is good:", all),
             "restore one from a backup, or start anew in another run folder");
  return std::nullopt;
}

std::optional<int64_t> last_finite_checkpoint(const std::string& folder) {
  std::vector<int64_t> steps = list_checkpoints(folder);
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    try {
      if (read_checkpoint_info(checkpoint_path(folder, *step)).is_finite()) return *step;
    } catch (const Error&) {
      // Damaged: no checkpoint to go back to.
    }
  }
  return std::nullopt;
}

namespace {

// A free name in <folder>/set-aside/.
std::string place_aside(const std::string& folder, int64_t step) {
  const std::string path = checkpoint_path(folder + "/set-aside", step);
  std::string place = path;
  for (int n = 2; file_exists(place); ++n) place = str(path, ".", n);
  return place;
}

template <class Chosen>
std::vector<std::string> set_aside(const std::string& folder, int64_t step, Chosen&& is_chosen) {
  std::vector<std::string> places, ignored;
  const std::vector<int64_t> steps = list_checkpoints(folder);
  const std::string name = checkpoint_path("", step).substr(1);
  // First of all, and durable: a process killed from here on continues from `step`.
  if (std::binary_search(steps.begin(), steps.end(), step) && latest_step(folder, ignored) != step)
    write_file_atomically(folder + "/latest", name + "\n");
  for (int64_t other : steps) {
    if (!is_chosen(other)) continue;
    make_folders(folder + "/set-aside");
    places.push_back(place_aside(folder, other));
    rename_path(checkpoint_path(folder, other), places.back());
  }
  if (!places.empty()) sync_folder(folder);
  return places;
}

}  // namespace

std::vector<std::string> set_aside_checkpoints(const std::string& folder, int64_t step) {
  return set_aside(folder, step, [&](int64_t other) { return other > step; });
}

std::vector<std::string> set_aside_other_checkpoints(const std::string& folder, int64_t step) {
  return set_aside(folder, step, [&](int64_t other) { return other != step; });
}

std::optional<std::string> find_latest_checkpoint(const std::string& folder, std::vector<std::string>& messages) {
  auto checkpoint = load_latest_checkpoint(folder, messages);
  return checkpoint ? std::optional(checkpoint->info.path) : std::nullopt;
}

void remove_partial_checkpoints(const std::string& folder) {
  if (!is_folder(folder)) return;
  for (const std::string& name : list_folder(folder))
    if ((name.starts_with(kPrefix) || name.starts_with("latest")) && name.ends_with(kPartial))
      remove_folder(folder + "/" + name);
}

std::vector<int64_t> prune_checkpoints(const std::string& folder, const Retention& retention) {
  WEFT_CHECK(retention.keep_last >= 1, str("prune_checkpoints: keep_last is ", retention.keep_last),
             "keep at least one");
  WEFT_CHECK(retention.keep_every >= 0, str("prune_checkpoints: keep_every is ", retention.keep_every),
             "use 0 for none");
  if (!is_folder(folder)) return {};
  remove_partial_checkpoints(folder);

  std::vector<int64_t> steps = list_checkpoints(folder), removed;
  std::vector<std::string> messages;
  std::optional<int64_t> latest = latest_step(folder, messages);
  if (latest) std::erase_if(steps, [&](int64_t step) { return step > *latest; });
  if (steps.size() <= static_cast<size_t>(retention.keep_last)) return removed;
  steps.resize(steps.size() - static_cast<size_t>(retention.keep_last));
  const std::optional<int64_t> finite = last_finite_checkpoint(folder);
  for (int64_t step : steps) {
    bool is_kept = (retention.keeps_best && step == retention.best_step) || step == latest || step == finite ||
                   (retention.keep_every > 0 && step % retention.keep_every == 0);
    if (is_kept) continue;
    // Renamed first: a folder that is half removed must not look like a damaged checkpoint.
    std::string path = checkpoint_path(folder, step);
    rename_path(path, path + ".removed.partial");
    remove_folder(path + ".removed.partial");
    removed.push_back(step);
  }
  return removed;
}

}  // namespace weft::io
