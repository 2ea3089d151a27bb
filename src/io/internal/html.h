// Text made safe for HTML and XML.
#pragma once

#include <string>
#include <string_view>

namespace weft::io::internal {

// Valid UTF-8 without characters that XML forbids: they and bytes that are no UTF-8 become U+FFFD. Keeps tabs and line
// ends.
std::string clean_utf8(std::string_view bytes);

// clean_utf8() with & < > " ' as entities.
std::string html_escape(std::string_view bytes);

}  // namespace weft::io::internal
