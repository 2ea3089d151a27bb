// Files that one writer at a time may fill: the lock is the system's, so it ends with the process however that ends.
#pragma once

#include <string>

namespace weft {

// Opens or makes `path` for writing and takes its lock. Until the descriptor and its copies are closed, no other call, in
// this process or another one, gets the path; what is renamed away or removed in the meantime frees it for a new file.
// Waits up to `patience_s` for the writer before. Returns -1 with errno EWOULDBLOCK if that one stays, or with the
// system's reason. The content is as it was found.
int open_locked(const std::string& path, double patience_s);

}  // namespace weft
