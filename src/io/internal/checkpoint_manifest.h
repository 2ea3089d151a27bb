// The manifest as bytes.
#pragma once

#include <string>
#include <string_view>

#include "weft/io/checkpoint.h"

namespace weft::io::internal {

inline constexpr std::string_view kManifestName = "manifest", kModelName = "model.safetensors",
                                  kOptimizerName = "optimizer-0000-of-0001.safetensors", kStateName = "state",
                                  kConfigName = "config.txtpb";

std::string encode_manifest(const CheckpointInfo& info);

// Error if the bytes are damaged, of another format version, or name files outside of the checkpoint. `path` is its
// folder.
CheckpointInfo decode_manifest(std::string_view bytes, const std::string& path);

}  // namespace weft::io::internal
