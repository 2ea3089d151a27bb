// System calls as this layer uses them: interrupted calls are repeated, failures become Error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weft::io::internal {

// Throws Error "<operation> <path>: <reason of `code`><detail>" with a fix that suits the code.
[[noreturn]] void fail_errno(std::string_view operation, const std::string& path, int code,
                             std::string_view detail = {});

int open_descriptor(const std::string& path, int flags);  // close-on-exec; Error if it fails
// Whether `path` still names the file or folder that is open: false if somebody removed, moved or replaced it.
bool is_still_at(int descriptor, const std::string& path);
void close_quietly(int descriptor);  // for clean-up; -1 is fine

// Writes all bytes; returns 0 or the errno of the call that failed. `written` grows by what arrived.
int write_all(int descriptor, std::string_view bytes, uint64_t& written);

std::string folder_of(const std::string& path);  // "." for a bare name

}  // namespace weft::io::internal
