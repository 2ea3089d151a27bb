// Checks of data, optimisation, lengths and ranks of a run against each other.
#include <algorithm>
#include <cctype>

#include "trainers/config/check.h"
#include "trainers/config/text_place.h"
#include "trainers/config/translate.h"

namespace weft::config {

namespace {

constexpr int64_t kBytes = 256;  // ids of that tokenizer

void check_name(const Loaded& config) {
  const std::string& name = config.experiment.name();
  bool is_plain = !name.empty() && name[0] != '.' && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '-' || c == '_' || c == '.' || c == '+' || c == '=' || c >= 0x80;
  });
  if (!is_plain)
    refuse(config, "name", str("is \"", name, "\"; it names the run folder."),
           "Use letters, digits and - _ . + =, not starting with a dot.");
}

// The first of these fields that the command line set, or else the last: the one to blame for what they are together.
std::string changed_last(const Loaded& config, const std::vector<std::string>& paths) {
  for (const std::string& path : paths)
    if (config.origins.has(path) && is_overridden(config, path)) return path;
  return paths.back();
}

void check_tokens(const Loaded& config) {
  const Data& data = config.experiment.data();
  const Model& model = config.experiment.model();
  const bool has_bytes = data.tokenizer().has_bytes();
  if (has_bytes && model.has_vocab() && model.vocab() < kBytes)
    refuse(config, "model.vocab", str("is ", model.vocab(), ", but the bytes tokenizer has ", kBytes, " ids."),
           str("Use at least ", kBytes, ", or leave it out."));
  if (model.has_vocab() && data.has_end_of_text() && data.end_of_text() >= model.vocab())
    refuse(config, "data.end_of_text", str("is ", data.end_of_text(), ", but model.vocab is ", model.vocab(), "."),
           str("Use an id in [0, ", (has_bytes ? kBytes : model.vocab()) - 1, "]."));
}

// A task makes its own ids: what texts need has no meaning beside it.
void check_task(const Loaded& config) {
  const Data& data = config.experiment.data();
  const std::pair<bool, const char*> of_texts[] = {
      {data.train_size() > 0, "data.train"},
      {data.val().source_case() != Validation::SOURCE_NOT_SET, "data.val"},
      {data.val().has_tokens(), "data.val.tokens"},
      {data.val().has_half(), "data.val.half"},
      {!data.document_mask(), "data.document_mask"},
      {data.end_of_text_at() != EndOfTextPlace::automatic, "data.end_of_text_at"},
      {!data.tokenizer().has_bytes(), "data.tokenizer"},
      {data.has_end_of_text(), "data.end_of_text"},
      {data.first_token(), "data.first_token"},
      {data.keep_files(), "data.keep_files"}};
  for (const auto& [is_set, path] : of_texts)
    if (is_set)
      refuse(config, path, "stands beside data.task, which needs no text.",
             "Leave one of the two out: data={task{..}} puts a task in place of all other data.");
  try {
    data::RecallTask(train::recall_options(data.task()), config.experiment.model().context(), 1);
  } catch (const Error& error) { refuse(config, "data.task", "is impossible: " + error.problem(), error.fix()); }
}

void check_data(const Loaded& config) {
  const Data& data = config.experiment.data();
  if (data.has_task()) return check_task(config);
  if (data.tokenizer().has_ids() && !config.experiment.model().has_vocab())
    refuse(config, "data.tokenizer.ids", "says nothing of how many ids there are.", "Set model.vocab.");
  if (data.weights_only()) return check_tokens(config);
  if (data.train_size() == 0)
    refuse(config, "data.train", "is missing: there is nothing to train on.",
           "Add for example data.train+={path:\"text.txt\"}.");
  if (data.val().source_case() == Validation::SOURCE_NOT_SET || (data.val().has_path() && data.val().path().empty()))
    refuse(config, "data.val", "names no source of validation tokens.",
           "Set data.val.path=... or keep a part of the training data: data.val.fraction=0.1.");
  check_tokens(config);
}

void check_groups(const Loaded& config) {
  const Optim& optim = config.experiment.optim();
  int all = -1;  // the group that takes every parameter
  for (int i = 0; i < optim.group_size(); ++i) {
    const Group& group = optim.group(i);
    const std::string path = element_path("optim.group", i);
    if (all >= 0)
      refuse(config, path, str("is never reached: group[", all, "] matches every parameter."),
             "Put the narrower group first.");
    if (group.has_adamw() && group.adamw().betas_size() != 2)
      refuse(config, path + ".adamw.betas", str("has ", group.adamw().betas_size(), " values, AdamW takes 2."),
             str("Write betas: [0.9, 0.95], or ", path, ".adamw.betas=[0.9,0.95]."));
    if (group.has_lion() && group.lion().betas_size() != 2)
      refuse(config, path + ".lion.betas", str("has ", group.lion().betas_size(), " values, Lion takes 2."),
             str("Write betas: [0.9, 0.99], or ", path, ".lion.betas=[0.9,0.99]."));
    if (group.has_schedule_free() && (group.schedule_free().betas_size() != 2 || group.schedule_free().betas(0) == 0))
      refuse(config, path + ".schedule_free.betas", "needs 2 values, and the first is not 0.",
             str("Write betas: [0.9, 0.999], or ", path, ".schedule_free.betas=[0.9,0.999]."));
    if (group.has_sgd() && group.sgd().nesterov() && group.sgd().momentum() == 0)
      refuse(config, path + ".sgd.nesterov", "looks ahead along the momentum, which is 0.",
             str("Set ", path, ".sgd.momentum, or leave nesterov out."));
    if (group.has_muon() && group.rank() != 2)
      refuse(config, path + (group.has_rank() ? ".rank" : ".muon"),
             "must go with matrices: muon works on parameters with 2 dimensions.",
             str("Set ", path, ".rank=2 and let a later group take the other parameters."));
    if (group.match() == "*" && !group.has_rank()) all = i;
  }
}

int64_t warmup_of(const Schedule& schedule) {
  switch (schedule.kind_case()) {
    case Schedule::kConstant: return schedule.constant().warmup();
    case Schedule::kLinear: return schedule.linear().warmup();
    case Schedule::kCosine: return schedule.cosine().warmup();
    case Schedule::kWsd: return schedule.wsd().warmup();
    case Schedule::kInverseSqrt: return schedule.inverse_sqrt().warmup();
    case Schedule::KIND_NOT_SET: break;
  }
  return 0;
}

// Of a resolved config, which has one.
std::string kind_of(const Schedule& schedule) {
  return schedule.GetReflection()->GetOneofFieldDescriptor(schedule, schedule.GetDescriptor()->oneof_decl(0))->name();
}

void check_schedule(const Loaded& config) {
  const Experiment& e = config.experiment;
  const Schedule& schedule = e.optim().schedule();
  const std::string path = "optim.schedule." + kind_of(schedule);
  int64_t steps = e.train().tokens() / e.train().tokens_per_step(), warmup = warmup_of(schedule);
  if (warmup > steps)
    refuse(config, path + ".warmup",
           str("is ", warmup, " steps, but the training has only ", steps, " (train.tokens / train.tokens_per_step)."),
           str("Use at most ", steps, "."));
  double decay = schedule.has_wsd() ? schedule.wsd().decay_fraction() * static_cast<double>(steps) : 0;
  if (static_cast<double>(warmup) + decay > static_cast<double>(steps))
    refuse(config, path + ".warmup",
           str("is ", warmup, " steps and the decay ", decay, ": together more than the ", steps, " of the training."),
           "Shorten warmup or decay_fraction.");
}

// "1, 2 or 4": the divisors of n.
std::string divisors_of(int64_t n) {
  std::vector<int64_t> all;
  for (int64_t d = 1; d <= n / d; ++d)
    if (n % d == 0) all.push_back(d);
  for (size_t i = all.size(); i-- > 0;)
    if (const int64_t other = n / all[i]; other > all[i]) all.push_back(other);
  std::string text = str(all[0]);
  for (size_t i = 1; i < all.size(); ++i) text += str(i + 1 < all.size() ? ", " : " or ", all[i]);
  return text;
}

// Data ranks that do not divide the sequences of a step, or whose micro-batches do not. The number of sequences stays: a run that goes on
// must not change it.
[[noreturn]] void refuse_data_ranks(const Loaded& config, int64_t sequences) {
  const Experiment& e = config.experiment;
  const int64_t data = e.parallel().data(), micro_batch = e.train().micro_batch();
  const std::string step = str(
      "a step has ", sequences, sequences == 1 ? " sequence" : " sequences", " (train.tokens_per_step / model.context",
      config.step_of_run.empty() ? "" : ", as the run in " + config.step_of_run + " began", ")");
  if (sequences % data != 0)
    refuse(config, "parallel.data", str("is ", data, ", and ", step, ", which ", data, " ranks cannot share evenly."),
           str("Use parallel.data = ", divisors_of(sequences),
               sequences == 1 ? "" : str("; times train.micro_batch it must divide ", sequences), "."));
  refuse(config, "train.micro_batch",
         str("is ", micro_batch, " sequences on each of ", data, data == 1 ? " data rank" : " data ranks",
             " (parallel.data), and ", step, "."),
         str("Use train.micro_batch = ", divisors_of(sequences / data), " with parallel.data=", data, "."));
}

// A step that is no whole number of passes. The user may have meant to change any of its factors.
[[noreturn]] void refuse_step(const Loaded& config, int64_t per_pass) {
  const Experiment& e = config.experiment;
  const int64_t sequences = e.train().tokens_per_step() / e.model().context();
  if ((e.parallel().data() > 1 || !config.step_of_run.empty()) && sequences > 0 &&
      e.train().tokens_per_step() % e.model().context() == 0)
    refuse_data_ranks(config, sequences);
  const int64_t step = e.train().tokens_per_step(), context = e.model().context() * e.parallel().data();
  const int64_t below = step / per_pass * per_pass;
  std::string pass = str("micro_batch ", e.train().micro_batch(), " x model.context ", e.model().context(),
                         " x parallel.data ", e.parallel().data(), " = ", per_pass);
  if (below > 0)
    refuse(config, "train.tokens_per_step", str("is ", step, ", not a multiple of ", pass, "."),
           str("Use ", below, " or ", below + per_pass, "."));
  std::string fix = step % context == 0 ? str("Use train.micro_batch=", step / context, ", or ")
                    : step > context    ? "Lower train.micro_batch, or "
                                        : "Lower model.context, or ";
  const bool fits_training = per_pass <= e.train().tokens();
  refuse(config, changed_last(config, {"model.context", "train.micro_batch", "train.tokens_per_step"}),
         str("makes train.tokens_per_step, ", step, ", less than one pass: not a multiple of ", pass, "."),
         fix + (fits_training ? str("use train.tokens_per_step=", per_pass, ".")
                              : str("raise train.tokens_per_step and train.tokens (", e.train().tokens(), ") to ",
                                    per_pass, " or more.")));
}

void check_train(const Loaded& config) {
  const Experiment& e = config.experiment;
  int64_t per_pass = e.train().micro_batch() * e.model().context() * e.parallel().data();
  if (e.train().tokens_per_step() % per_pass != 0) refuse_step(config, per_pass);
  if (e.train().tokens() < e.train().tokens_per_step())
    refuse(config, "train.tokens",
           str("is ", e.train().tokens(), ", less than one step of ", e.train().tokens_per_step(), " tokens."),
           str("Use at least ", e.train().tokens_per_step(), "."));
  const auto attention = e.train().attention();
  if (attention != AttentionKernels::cudnn && attention != AttentionKernels::wgmma) return;
  if (e.train().device() == DeviceChoice::cpu || e.train().compute() != Compute::bf16)
    refuse(config, "train.attention",
           str("is ", AttentionKernels::Value_Name(attention), ", whose kernels are for GPUs and bf16."),
           "Set train.compute=bf16 and train.device=cuda, or train.attention=weft.");
}

// What a mixer does with a sequence of which a rank has only some tokens.
std::string refusal_over_ranks(const Mixer& mixer) {
  return mixer.has_multi_token() ? "convolves the scores of neighbouring queries and keys, which stand on several ranks"
                                 : "";
}

void check_parallel(const Loaded& config) {
  const Parallel& parallel = config.experiment.parallel();
  const Model& model = config.experiment.model();
  const int64_t ranks = parallel.data() * parallel.context();
  if (const std::string why = refusal_over_ranks(config); parallel.context() > 1 && !why.empty())
    refuse(config, "parallel.context", str("is ", parallel.context(), ", and ", why, "."),
           "Use parallel.context=1 with this mixer.");
  if (parallel.context() > model.context())
    refuse(config, "parallel.context",
           str("is ", parallel.context(), " ranks for a sequence of ", model.context(), " tokens (model.context)."),
           "Use at most one rank per token.");
  if (parallel.zero() != 0 && ranks == 1)
    refuse(config, "parallel.zero", str("is ", parallel.zero(), ", but with one rank there is nothing to share."),
           "Use parallel.zero=0.");
  for (int i = 0; parallel.zero() != 0 && i < config.experiment.optim().group_size(); ++i)
    if (config.experiment.optim().group(i).has_schedule_free())
      refuse(config, "parallel.zero",
             str("is ", parallel.zero(), ", and optim.group[", i,
                 "] is schedule_free, whose averages the first rank shows alone."),
             "Use parallel.zero=0, or another optimiser.");
}

}  // namespace

bool is_overridden(const Loaded& config, const std::string& path) {
  const std::string origin = config.origins.of(path), &file = config.origins.file();
  return origin != file && !origin.starts_with(file + ":");
}

std::string refusal_over_ranks(const Loaded& config) {
  const Model& model = config.experiment.model();
  for (int i = 0; i < model.mixer_size(); ++i)
    if (const std::string why = refusal_over_ranks(model.mixer(i)); !why.empty())
      return str(element_path("model.mixer", i), " ", why);
  return "";
}

// No text and no shard has such an id: documents would run into each other, and a sample would not end.
void check_end_of_text(const Loaded& config, const std::string& tokenizer, int64_t ids) {
  const Data& data = config.experiment.data();
  if (!data.has_end_of_text() || data.end_of_text() < ids) return;
  refuse(config, "data.end_of_text",
         str("is ", data.end_of_text(), ", but the ", tokenizer, " tokenizer has ", ids, " ids."),
         str("Use an id in [0, ", ids - 1, "], or leave it out: data.end_of_text="));
}

void check_end_of_text(const Loaded& config) {
  if (config.experiment.data().tokenizer().has_bytes()) check_end_of_text(config, "bytes", kBytes);
}

void check_run(const Loaded& config) {
  check_name(config);
  check_parallel(config);
  check_data(config);
  check_train(config);
  check_groups(config);
  check_schedule(config);
}

}  // namespace weft::config
