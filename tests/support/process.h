// A program as a child process, without a shell.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

namespace weft::test {

// Starts words[0], a path, with the given descriptors as its streams; stdin is empty.
inline pid_t start_program(std::vector<std::string> words, int out = -1, int err = -1) {
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t child = fork();
  if (child != 0) return child;
  int nothing = open("/dev/null", O_RDWR);
  dup2(nothing, 0);
  dup2(out >= 0 ? out : nothing, 1);
  dup2(err >= 0 ? err : nothing, 2);
  execv(arguments[0], arguments.data());
  _exit(127);
}

struct ProcessResult {
  int exit_code = -1;  // -1: ended by a signal
  std::string out, err;
};

inline ProcessResult run_program(const std::vector<std::string>& words) {
  auto content = [](std::FILE* file) {
    std::string text;
    std::rewind(file);
    for (int c; (c = std::fgetc(file)) != EOF;) text.push_back(static_cast<char>(c));
    std::fclose(file);
    return text;
  };
  std::FILE *out = std::tmpfile(), *err = std::tmpfile();
  pid_t child = start_program(words, fileno(out), fileno(err));
  int status = 0;
  waitpid(child, &status, 0);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, content(out), content(err)};
}

}  // namespace weft::test
