// Kimi-Linear: layers of Kimi Delta Attention, and of latent attention that sees no positions (2510.26692).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "trainers/huggingface/names.h"

namespace weft::huggingface {

class JsonFields;
struct ModelConfig;

void read_kimi(JsonFields& fields, ModelConfig& out);
// Of a completed model.
nlohmann::ordered_json kimi_config(const config::Model& model, int64_t vocab);
std::optional<Place> kimi_place(const config::Model& model, const config::Mixer& mixer, std::string_view in_layer,
                                const std::string& prefix);

}  // namespace weft::huggingface
