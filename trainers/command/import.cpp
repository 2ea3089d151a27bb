// weft import FOLDER --out RUN and weft export RUN --out FOLDER: models of Hugging Face's transformers.
#include "trainers/huggingface/import.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/run/address.h"

namespace weft::cli {

namespace {

using Json = nlohmann::ordered_json;

void add_lines(std::string& text, const char* what, const std::vector<std::string>& names) {
  if (names.empty()) return;
  text += fmt::format("{} {}:\n", names.size(), what);
  for (const std::string& name : names) text += fmt::format("  {}\n", name);
}

int import_model(const huggingface::ImportOptions& options, Console& console) {
  const huggingface::Imported done = huggingface::import_folder(options);
  const io::LoadReport& r = done.report;
  for (const std::string& note : done.notes) console.message(note);
  if (console.is_json()) {
    console.result(json_text(Json{{"run", options.run},
                                  {"family", done.family},
                                  {"tokenizer", done.tokenizer},
                                  {"checkpoint", done.checkpoint},
                                  {"parameters", done.num_params},
                                  {"taken", r.loaded},
                                  {"missing", r.missing},
                                  {"left_over", r.unexpected},
                                  {"wrong_shape", r.mismatched}}));
    return kSuccess;
  }
  std::string text = fmt::format("{} of {} parameters in {}, tokenizer {}\n{} tensors taken\n", done.family,
                                 done.num_params, done.checkpoint, done.tokenizer, r.loaded.size());
  add_lines(text, "missing, which begin as they are drawn", r.missing);
  add_lines(text, "of another shape, which begin as they are drawn", r.mismatched);
  add_lines(text, "left over, which the model does not have", r.unexpected);
  console.result(text);
  return kSuccess;
}

int export_model(const huggingface::ExportOptions& options, Console& console) {
  const huggingface::Exported done = huggingface::export_run(options);
  for (const std::string& note : done.notes) console.message(note);
  const std::string merged = done.num_merged > 0 ? fmt::format(", {} adapters merged", done.num_merged) : "";
  console.result(console.is_json() ? json_text(Json{{"folder", options.folder},
                                                    {"family", done.family},
                                                    {"tensors", done.num_tensors},
                                                    {"merged_adapters", done.num_merged},
                                                    {"bytes", done.bytes}})
                                   : fmt::format("{} of {} tensors ({} bytes{}) in {}\n", done.family, done.num_tensors,
                                                 done.bytes, merged, options.folder));
  return kSuccess;
}

}  // namespace

Action define_import(Arguments& app) {
  auto options = std::make_shared<huggingface::ImportOptions>();
  app.add_option("FOLDER", options->folder,
                 "Folder with config.json and safetensors files, of Llama, Qwen-2, Qwen-3, Qwen3-Next, Kimi-Linear or "
                 "GPT-2")
      .required();
  app.add_option("OVERRIDES", options->overrides, "path=value: changes a field of the run's config")
      .type_name("path=value");
  app.add_option("--out", options->run, "Run folder to make").type_name("RUN").required();
  app.add_flag("--partial", options->is_partial, "Take the tensors that fit, and draw the others");
  return [options](Console& console, const Extensions& extensions) {
    options->own = extensions;
    return import_model(*options, console);
  };
}

Action define_export(Arguments& app) {
  auto options = std::make_shared<huggingface::ExportOptions>();
  auto dtype = std::make_shared<std::string>("f32");
  auto shard = std::make_shared<int64_t>(0);
  app.add_option("RUN", options->run, train::kRunForms).type_name("RUN[@STEP]").required();
  app.add_option("--out", options->folder, "Folder to make").type_name("FOLDER").required();
  app.add_option("--dtype", *dtype, "f32 or bf16").type_name("DTYPE");
  app.add_flag("--merge-adapters", options->merges_adapters, "Add low-rank adapters to the matrices beside them");
  app.add_option("--max-shard-size", *shard, "Most bytes of tensors in one file; without it there is one file")
      .range(int64_t{1}, int64_t{1} << 60)
      .type_name("BYTES")
      .takes_size();
  return [options, dtype, shard](Console& console, const Extensions&) {
    const std::string names[] = {"f32", "bf16"};
    config::check_choice("--dtype", *dtype, names, "dtype");
    options->is_bf16 = *dtype == "bf16";
    options->max_shard_bytes = static_cast<uint64_t>(*shard);
    return export_model(*options, console);
  };
}

}  // namespace weft::cli
