// Descriptors 0, 1 and 2 belong to the standard streams. Where one is closed, the next file that is opened would get its number, and
// console text would go into that file.
#pragma once

namespace weft::cli {

// Opens those of the three that are closed on /dev/null. To be called before any file is opened.
void open_standard_streams();

}  // namespace weft::cli
