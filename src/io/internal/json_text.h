// Pieces of JSON that are written by hand, because key order and the text of numbers are part of a format.
#pragma once

#include <string>
#include <string_view>

namespace weft::io::internal {

std::string json_string(std::string_view text);  // quoted and escaped; bytes that are no UTF-8 become U+FFFD
std::string json_number(double value);  // shortest text that reads back equal; "nan", "inf", "-inf" with the quotes

}  // namespace weft::io::internal
