#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/conformance/conformance.h"
#include "trainers/conformance/own_parts.h"
#include "trainers/run/address.h"

namespace weft::cli {

std::span<const Command> commands() {
  static constexpr Command kTable[] = {
      {"train", "Train a model from a config into a run folder, or continue one",
       "  weft train trainers/recipes/shakespeare.txtpb data.train.path=input.txt\n"
       "  weft train run.txtpb train.compute=bf16 --run runs/bf16",
       define_train},
      {"ablate", "Run a study: arms x values x seeds from a grid, and one report with intervals",
       "  weft ablate gates.txtpb --dry-run\n"
       "  weft ablate gates.txtpb --jobs 2",
       define_ablate},
      {"claims", "A page of what papers claim and what studies of small models make of it",
       "  weft claims trainers/recipes/studies --runs studies --keep docs/claims > docs/claims.md\n"
       "  weft claims claim_gates.txtpb --runs studies --json",
       define_claims},
      {"eval", "Validation loss of a run's checkpoint: the newest, or RUN@STEP, RUN@best",
       "  weft eval runs/shakespeare\n"
       "  weft eval runs/shakespeare@best --lengths 256,1024 --json",
       define_eval},
      {"analyse", "Importance of heads, rank collapse, sinks, rollout and flow of a run's checkpoint",
       "  weft analyse runs/shakespeare\n"
       "  weft analyse runs/shakespeare@1200 --rows 32 --json",
       define_analyse},
      {"boost", "Replace the layers of a trained model that matter least, and write the config that heals it",
       "  weft boost runs/shakespeare --out boosted.txtpb --heal 1M\n"
       "  weft boost runs/shakespeare@best --out boosted.txtpb --rows 32 --window 128 && weft train boosted.txtpb",
       define_boost},
      {"convert", "Put gates, a mixture of heads, routed residuals or gated slots into a trained softmax model",
       "  weft convert runs/shakespeare --to gates --out runs/gated\n"
       "  weft convert runs/qwen3@best --to moh --out runs/moh model.mixer[0].softmax.head_mixture.active=3",
       define_convert},
      {"sample", "Let a run's checkpoint continue a text: the newest, or RUN@STEP, RUN@best",
       "  weft sample runs/shakespeare@best --n 4 --temperature 0.7 --top-p 0.9\n"
       "  weft sample runs/long --ranks 4 --prompt 'ROMEO:' --tokens 300",
       define_sample},
      {"serve", "Answer completions over HTTP, as lm-evaluation-harness asks for them",
       "  weft serve runs/shakespeare\n"
       "  weft serve runs/qwen3@best --port 8080 --max-batch 32 --device cuda",
       define_serve},
      {"data", "Turn texts into token shards; list, check and join shards",
       "  weft data tokenize corpus.jsonl --out data/corpus --tokenizer gpt2 --vocab vocab.json --merges merges.txt\n"
       "  weft data check 'data/corpus_*.bin' --vocab 50257",
       define_data},
      {"import", "Make a run of a Hugging Face folder: Llama, Qwen-2, Qwen-3, Qwen3-Next, Kimi-Linear or GPT-2",
       "  weft import models/qwen3 --out runs/qwen3\n"
       "  weft import models/gpt2 --out runs/gpt2 --partial --json",
       define_import},
      {"export", "Write a run's checkpoint as a folder that Hugging Face's transformers read",
       "  weft export runs/llama --out models/llama\n"
       "  weft export runs/llama@best --out models/llama --dtype bf16 --max-shard-size 5G",
       define_export},
      {"inspect", "Show what is in a run, checkpoint, safetensors file, token shard or event file",
       "  weft inspect runs/shakespeare\n"
       "  weft inspect runs/shakespeare@best",
       define_inspect},
      {"compare",
       "Compare the weights of two runs, checkpoints or files, tensor by tensor; or report on several runs as a study",
       "  weft compare runs/a runs/b --rtol 1e-5 --atol 1e-8\n"
       "  weft compare runs/plain-1 runs/plain-2 runs/gated-1 runs/gated-2 --out reports/gated",
       define_compare},
      {"replay", "Take the first steps of a run again and say where they differ, bit for bit; exit code 4 if they do",
       "  weft replay runs/shakespeare\n"
       "  weft replay runs/shakespeare --steps 200 --json",
       define_replay},
      {"new", "Begin a project of your own: one mixer, a config and a study, built against the installed package",
       "  weft new loud\n"
       "  weft new loud --out ~/projects/loud",
       define_new},
      {"bench", "Measure speed beside the limit of this machine",
       "  weft bench gemm --quick\n"
       "  weft bench train --json",
       define_bench},
      {"gradcheck", "Check gradients of mixers against differences in float64",
       "  weft gradcheck --mixer all\n"
       "  weft gradcheck --mixer gqa --shapes 5x16,9x8",
       define_gradcheck},
      {"parity",
       "Compare the model of a config on several ranks with one rank, in float64; exit code 4 if they differ, or if "
       "nothing could be compared",
       "  weft parity run.txtpb model.context=64 --ranks 2,4\n"
       "  weft parity run.txtpb --layouts zigzag,striped --schemes ring --json",
       define_parity},
      {"check", "Run the conformance suite on mixers: gradients, causality, decoding, documents, bf16, devices, ...",
       "  weft check --mixer gqa\n"
       "  weft check --json",
       define_check},
      {"task",
       "Train small models on tasks that show attention sinks, regression in context or circuits, and measure them",
       "  weft task backcopy --text input.txt\n"
       "  weft task regression --mixer softmax --mixer gla --json",
       define_task},
      {"plan", "Say what a training needs on many ranks, how to spread it, and how long a step will take",
       "  weft plan run.txtpb --ranks 8\n"
       "  weft plan run.txtpb model.context=128k --ranks 64 --hardware h200 --json",
       define_plan},
      {"config", "Print the resolved config, explain a field, or print the reference of all fields",
       "  weft config run.txtpb train.tokens=2M optim.group[0].adamw.lr=3e-4\n"
       "  weft config --explain model.mixer.softmax.window",
       define_config},
      {"doctor", "Show build, libraries, devices, memory and measured limits of this machine; test its kernels",
       "  weft doctor\n"
       "  weft doctor --kernels --json",
       define_doctor},
  };
  return kTable;
}

std::vector<MixerRow> all_mixers(const Extensions& extensions) {
  std::span<const MixerRow> table = mixer_table();
  std::vector<MixerRow> rows(table.begin(), table.end());
  std::vector<MixerRow> residuals = conformance::residual_rows();
  rows.insert(rows.end(), residuals.begin(), residuals.end());
  rows.insert(rows.end(), extensions.mixers.begin(), extensions.mixers.end());
  for (conformance::OwnPart& part : conformance::own_parts(extensions)) rows.push_back(std::move(part.row));
  return rows;
}

void ConfigArguments::add(Arguments& app, bool is_required) {
  app.add_option("CONFIG", file_, "Config of the run, protobuf text format").type_name("FILE").required(is_required);
  add_overrides(app, "path=value: changes a field of the config; later wins");
}

void ConfigArguments::add_run(Arguments& app) {
  app.add_option("RUN", file_, train::kRunForms).type_name("RUN[@STEP]").required();
  add_overrides(app, "path=value: changes a field of the run's config for this call, such as data.val.path=FILE");
}

void ConfigArguments::add_overrides(Arguments& app, const char* help) {
  app_ = std::make_shared<Arguments>(app);
  app.add_option("OVERRIDES", positional_, help).type_name("path=value");
  app.add_option("--set", set_, "The same as path=value").type_name("path=value").repeated();
}

std::vector<std::string> ConfigArguments::overrides() const {
  std::vector<std::string> out;
  size_t num_positional = 0, num_set = 0;
  for (const std::string& name : app_->order_of({"OVERRIDES", "--set"})) {
    if (name == "OVERRIDES" && num_positional < positional_.size()) out.push_back(positional_[num_positional++]);
    if (name == "--set" && num_set < set_.size()) out.push_back(set_[num_set++]);
  }
  return out;
}

}  // namespace weft::cli
