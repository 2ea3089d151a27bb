// A run put together: config, folder, data, model. Shared by train, eval and sample.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "trainers/config/config.h"
#include "trainers/run/data.h"
#include "weft/comm/communicator.h"
#include "weft/models/language_model.h"

namespace weft::cli {
class Console;
}

namespace weft::train {

// Settings of the process: threads, anomaly mode, device. Error if the device is not in this build.
void apply_process_settings(const config::Experiment& experiment);
void apply_rank_settings(
    const config::Experiment& experiment);  // the part of it that each thread of ranks has for itself

// A finished or stopped run, loaded for use: config.txtpb of the folder and the weights of one checkpoint.
struct LoadedRun {
  config::Loaded config;
  RunData data;
  std::unique_ptr<LanguageModel> model;
  std::string folder, checkpoint;  // paths
  int64_t step = 0;
  // Of damaged checkpoints that were passed over, and of weights that are NaN or infinite. The console has been told.
  std::string warning = {};
};
// `reference` as in trainers/run/address.h. Without a step: the newest good checkpoint, and the console is told which damaged ones were passed
// over; one that is named must be good.
LoadedRun load_run(const std::string& reference, const std::vector<std::string>& overrides, cli::Console& console,
                   const cli::Extensions& own);
// The run's config alone, with the overrides.
config::Loaded config_of_run(const std::string& reference, const std::vector<std::string>& overrides,
                             const cli::Extensions& own);
// The rest, on one rank of several: each of them calls it. The first prepares the data that overrides name, and chooses the checkpoint that all
// of them load. `world`: null: this is the only one.
LoadedRun load_on_ranks(const std::string& reference, const std::vector<std::string>& overrides, cli::Console& console,
                        config::Loaded config, dist::Communicator* world);

// Error if the matrices alone are more than the memory of the device.
void check_size(const LanguageModelOptions& options);
std::unique_ptr<LanguageModel> make_model(const config::Loaded& config, const RunData& data);

// The prompt as ids; without text: end of text, or the first tokens of the validation data.
std::vector<int32_t> prompt_ids(const RunData& data, const std::string& text);

// Best matrix product rate of `dtype` here and now, FLOP/s: what MFU refers to. Takes about half a second. Beside other work it is too low.
double measured_peak_flops(DType dtype);

// Gives cached memory of the device back and starts its peak anew.
void forget_peak(Device device);

}  // namespace weft::train
