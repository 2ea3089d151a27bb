// The `weft` command as a function, so that a program with parts of its own has every command:
//   int main(int argc, char** argv) { return weft::cli::main(argc, argv); }
#pragma once

namespace weft::cli {

// The place of a program's own mixers and other parts; none can be given in this version.
struct Extensions {};

// Exit codes of every command.
inline constexpr int kSuccess = 0;
inline constexpr int kFailure = 1;      // also a lost rank
inline constexpr int kUsageError = 2;   // wrong command line or config
inline constexpr int kStopped = 3;      // stopped and resumable
inline constexpr int kCheckFailed = 4;  // gradcheck, check, parity, compare, bench against a baseline, data check

// Runs the command line and returns the exit code. Results go to stdout, messages to stderr; nothing is thrown.
int main(int argc, char** argv, const Extensions& extensions = {});

}  // namespace weft::cli
