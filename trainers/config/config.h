// The config of a run: reading, overriding, defaults, checks, printing. Internal to trainers: the messages are protobuf's.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainers/config/config.pb.h"
#include "trainers/config/config_error.h"
#include "trainers/config/origins.h"
#include "weft/trainers/cli.h"

namespace weft::config {

struct Loaded {
  Experiment experiment;
  Origins origins;           // for errors of later checks: which line or argument a value came from
  cli::Extensions own = {};  // the program's parts, that `custom` can name
  struct Preset {
    std::string path, name;
  };
  std::vector<Preset> presets = {};  // that resolve() found; in the resolved config their fields stand in their place
  std::string step_of_run =
      {};  // the folder whose run gave train.tokens_per_step; empty: what was read, or the default
};

// Reads a file and applies the overrides in order; no defaults yet. Relative paths in the file are relative to it, in
// overrides to the working directory; all come out absolute.
Loaded read(const std::string& file, const std::vector<std::string>& overrides);
Loaded read_string(std::string_view text, const std::string& name, const std::string& folder,
                   const std::vector<std::string>& overrides);

// Fills in every default, derived ones too, and refuses impossible configs. What comes out is the resolved config.
void resolve(Loaded& config);

// read() and resolve().
Loaded load(const std::string& file, const std::vector<std::string>& overrides);

// `name`, or its default: that of the file.
std::string name_of(const Loaded& config);

// Between read() and resolve(), of a run that goes on in its folder: where train.tokens_per_step is left out and parallel.data is another one
// than the run began with, the step stays what it was. The default would grow with the ranks.
void keep_step(Loaded& config, const std::string& run_folder);

// The steps of resolve(). Presets come first; what is derived needs numbers that are in range.
void fill_presets(google::protobuf::Message& message);
void check_fields(const Loaded& config);  // ranges and required fields, from the schema
void fill_derived(Loaded& config);
void check_model(const Loaded& config);
void check_run(const Loaded& config);

// Canonical: fields in the order of the schema, no comments.
std::string to_text(const google::protobuf::Message& message);
std::string to_json(const google::protobuf::Message& message);

struct Difference {
  std::string path, a, b;  // values as text; empty: not set there
};
std::vector<Difference> differences(const google::protobuf::Message& a, const google::protobuf::Message& b);

// What the run in a folder was started with (its config.txtpb), or nothing where there is none.
std::optional<Experiment> stored_experiment(const std::string& run_folder);
// ConfigError that lists the differing fields if `now` is not the config that the run in `run_folder` was started with
// (its config.txtpb). Paths that start with one of `ignored` may differ.
void require_same(const Experiment& now, const std::string& run_folder, const std::vector<std::string>& ignored);

// Text for people: one field or message of the schema (with its value and origin if a config is given), or all of them as
// a Markdown table.
std::string explain(const std::string& path, const Loaded* config);
std::string reference();

}  // namespace weft::config
