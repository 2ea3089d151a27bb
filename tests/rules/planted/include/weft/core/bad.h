// Wrong on purpose: a third-party header and a macro of its own in a public header. The check must refuse both.
#pragma once

#include <vector>

#include <nlohmann/json.hpp>

#define WEFT_PI 3.14159
