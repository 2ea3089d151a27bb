// The JSON header of a safetensors file, checked against every rule of the format.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "weft/io/safetensors.h"

namespace weft::io::internal {

// What the format allows the JSON text with its padding.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // by offset
  std::map<std::string, std::string> metadata;
};

// `file` is the whole file. Throws Error that names `path` and the byte offset of the fault.
SafetensorsHeader parse_safetensors_header(std::string_view file, const std::string& path);

// Bits of one element of a dtype of the format; 0 if the format has no such dtype.
int bits_of(std::string_view dtype);

// The JSON text without padding; `tensors` in the order of their data, offsets relative to the data.
std::string make_safetensors_header(const std::vector<TensorEntry>& tensors,
                                    const std::map<std::string, std::string>& metadata);

}  // namespace weft::io::internal
