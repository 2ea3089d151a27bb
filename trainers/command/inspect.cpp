// weft inspect PATH: a run, a checkpoint, a safetensors file, a token shard, an event file.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/console/json_text.h"
#include "trainers/run/address.h"
#include "weft/data/shards.h"
#include "weft/io/checkpoint.h"
#include "weft/io/events.h"
#include "weft/io/files.h"
#include "weft/io/metrics.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

using Json = nlohmann::ordered_json;

Json tensor_rows(const io::SafetensorsFile& file) {
  Json rows = Json::array();
  for (const io::TensorEntry& entry : file.tensors())
    rows.push_back({{"name", entry.name}, {"dtype", entry.dtype}, {"shape", entry.shape}, {"bytes", entry.size}});
  return rows;
}

Json inspect_safetensors(const std::string& path) {
  io::SafetensorsFile file = io::SafetensorsFile::open(path);
  return {{"kind", "safetensors"}, {"path", path}, {"metadata", file.metadata()}, {"tensors", tensor_rows(file)}};
}

Json inspect_checkpoint(const std::string& path) {
  io::Checkpoint checkpoint = io::load_checkpoint(path);  // verifies every checksum
  Json files = Json::array();
  for (const auto& f : checkpoint.info.files)
    files.push_back({{"name", f.name}, {"bytes", f.digest.size}, {"xxh3", fmt::format("{:016x}", f.digest.xxh3)}});
  return {{"kind", "checkpoint"},
          {"path", path},
          {"step", checkpoint.info.step},
          {"tokens", checkpoint.info.tokens},
          {"files", files},
          {"tensors", tensor_rows(checkpoint.model)}};
}

Json inspect_run(const std::string& path) {
  Json out{{"kind", "run"}, {"path", path}, {"checkpoints", io::list_checkpoints(path + "/checkpoints")}};
  if (io::file_exists(path + "/environment.txtpb")) out["environment"] = io::read_file(path + "/environment.txtpb");
  if (io::file_exists(path + "/overrides.txt")) out["overrides"] = io::read_file(path + "/overrides.txt");
  Json last = Json::object();
  if (io::file_exists(path + "/metrics.jsonl"))
    for (const io::MetricsRecord& record : io::apply_rewinds(io::read_metrics(path + "/metrics.jsonl")))
      for (const auto& [key, value] : record.values) last[key] = {{"step", record.step}, {"value", value}};
  out["last"] = last;
  if (auto best = train::best_validation(path)) out["best"] = {{"step", best->step}, {"val/loss", best->loss}};
  out["config"] = io::read_file(path + "/config.txtpb");
  return out;
}

std::string latest_checkpoint(const std::string& run) {
  std::vector<std::string> passed_over;
  return io::find_latest_checkpoint(run + "/checkpoints", passed_over).value();  // find_run has seen that there is one
}

Json inspect_events(const std::string& path) {
  io::EventFile file = io::read_events(path);
  Json tags = Json::object();
  for (const io::Event& event : file.events)
    for (const io::EventValue& value : event.values) {
      Json& tag = tags.emplace(value.tag, Json::object()).first.value();
      tag["count"] = tag.value("count", 0) + 1;
      if (value.scalar) tag["last"] = *value.scalar;
      tag["last_step"] = event.time.step;
    }
  return {{"kind", "events"},
          {"path", path},
          {"events", file.events.size()},
          {"torn_end", file.has_torn_end},
          {"tags", tags}};
}

Json inspect_shard(const std::string& path) {
  data::Shard shard = data::Shard::open(path);
  return {{"kind", "shard"},
          {"path", path},
          {"format", std::string(data::to_string(shard.kind()))},
          {"ids", std::string(shard.type())},
          {"tokens", shard.num_tokens()},
          {"documents", shard.num_documents()},
          {"largest_id", data::check_ids(shard, int64_t{1} << 31)}};
}

Json inspect(const std::string& path) {
  if (!io::file_exists(path) && path.find('@') != std::string::npos) {
    const train::RunAddress found = train::find_run(path);
    return inspect(found.checkpoint.empty() ? latest_checkpoint(found.folder) : found.checkpoint);
  }
  if (!io::file_exists(path))
    throw config::ConfigError(
        path + ": no such file or folder.",
        "Name a run, RUN@STEP, RUN@best, RUN@latest, a checkpoint, *.safetensors, *.bin, *.idx or an event file.");
  if (io::is_folder(path)) {
    if (io::file_exists(path + "/manifest")) return inspect_checkpoint(path);
    if (io::file_exists(path + "/config.txtpb")) return inspect_run(path);
    throw config::ConfigError(path + ": neither a run nor a checkpoint.",
                              "A run has config.txtpb, a checkpoint has manifest.");
  }
  if (path.ends_with(".safetensors")) return inspect_safetensors(path);
  if (path.find("tfevents") != std::string::npos) return inspect_events(path);
  if (path.ends_with(".bin") || path.ends_with(".idx")) return inspect_shard(path);
  throw config::ConfigError(path + ": an unknown kind of file.",
                            "Known are *.safetensors, *.bin, *.idx and event files (tfevents in the name).");
}

// Texts of other programs' files may have any bytes.
std::string text_of_value(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// "key  value" lines; tensors and tags one per line; texts indented.
std::string text_of(const Json& json) {
  std::string out;
  for (const auto& [key, value] : json.items()) {
    if (value.is_array() && !value.empty() && value[0].is_object()) {
      out += fmt::format("{}\n", key);
      for (const Json& row : value) {
        out += " ";
        for (const auto& [name, field] : row.items()) out += fmt::format(" {}", text_of_value(field));
        out += "\n";
      }
    } else if (value.is_object()) {
      out += fmt::format("{}\n", key);
      for (const auto& [name, field] : value.items())
        out += fmt::format("  {:<40} {}\n", name, field.dump(-1, ' ', false, Json::error_handler_t::replace));
    } else if (value.is_string() && value.get<std::string>().find('\n') != std::string::npos) {
      out += fmt::format("{}\n{}\n", key, value.get<std::string>());
    } else {
      out += fmt::format("{:<12} {}\n", key, text_of_value(value));
    }
  }
  return out;
}

}  // namespace

Action define_inspect(Arguments& app) {
  auto path = std::make_shared<std::string>();
  app.add_option("PATH", *path,
                 "Run, RUN@STEP, RUN@best, RUN@latest, checkpoint, safetensors file, shard or event file")
      .required();
  return [path](Console& console, const Extensions&) {
    Json result = inspect(*path);
    console.result(console.is_json() ? json_text(result) : text_of(result));
    return kSuccess;
  };
}

}  // namespace weft::cli
