// Patterns of names: groups of an optimiser and frozen parameters are chosen by them.
#pragma once

#include <string_view>

namespace weft {

// Whether `pattern` matches the whole `text`: * is any text, ? one character.
bool matches_pattern(std::string_view pattern, std::string_view text);

}  // namespace weft
