// Atomic files, mapped files, checksums.
#include "weft/io/files.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <thread>

#include "tests/io/faults.h"
#include "tests/io/temp_folder.h"

namespace weft::io {
namespace {

using test::error_of;
using test::expect_parts;
using test::Fault;
using test::TempFolder;

// Runs `body` in a child process; its return value is the exit code, -1 if a signal ended it.
int in_child(const std::function<int()>& body) {
  pid_t pid = ::fork();
  if (pid == 0) ::_exit(body());
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(AppendFile, AppendsSyncsAndLeavesNothingTorn) {
  TempFolder folder;
  append_file(folder / "f", "one\n");
  append_file(folder / "f", "two\n");
  test::set_fault(Fault::disk_full, 0);
  std::string text = error_of([&] { append_file(folder / "f", "three\n"); });
  test::set_fault(Fault::none, 0);
  expect_parts(text, {"append to", "f: No space left on device"});
  EXPECT_EQ(read_file(folder / "f"), "one\ntwo\n");
  cut_file(folder / "f", 4);
  EXPECT_EQ(read_file(folder / "f"), "one\n");
}

TEST(Checksum, Crc32cMatchesThePublishedVectors) {
  std::string ascending;
  for (char c = 0; c < 32; ++c) ascending.push_back(c);
  struct Row {
    std::string bytes;
    uint32_t crc, masked;
  };
  for (const Row& row :
       {Row{"", 0, 0xa282ead8}, Row{"123456789", 0xe3069283, 0xc78ab0e5},
        Row{std::string(32, '\0'), 0x8a9136aa, 0x0fd7fffa}, Row{std::string(32, '\xff'), 0x62a8ab43, 0xf909b029},
        Row{ascending, 0x46dd794e, 0x951f7892}}) {
    EXPECT_EQ(crc32c(row.bytes), row.crc);
    EXPECT_EQ(masked_crc32c(row.bytes), row.masked);
  }
}

TEST(Checksum, Xxh3MatchesTheReferenceAndIsTheSameInPieces) {
  EXPECT_EQ(xxh3_64(""), 0x2D06800538D394C2u);
  std::string bytes;
  for (int i = 0; i < 5000; ++i) bytes.push_back(static_cast<char>(i * 37));
  Xxh3Stream stream;
  for (size_t at = 0, step = 1; at < bytes.size(); at += step, step = step * 2 + 1)
    stream.update(std::string_view(bytes).substr(at, step));
  EXPECT_EQ(stream.digest(), xxh3_64(bytes));
}

TEST(Files, AtomicWriteReplacesTheOldFileAndLeavesNothingElse) {
  TempFolder folder;
  std::string path = folder / "a.txt";
  write_file_atomically(path, "old");
  FileDigest digest = write_file_atomically(path, "new text");
  EXPECT_EQ(read_file(path), "new text");
  EXPECT_EQ(digest.size, 8u);
  EXPECT_EQ(digest.xxh3, xxh3_64("new text"));
  EXPECT_EQ(list_folder(folder.path()), std::vector<std::string>{"a.txt"});
}

TEST(Files, WriterWithoutCommitKeepsTheOldFile) {
  TempFolder folder;
  std::string path = folder / "a.txt";
  write_file_atomically(path, "old");
  { FileWriter(path).write("half of the n"); }
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(list_folder(folder.path()).size(), 1u);
}

TEST(Files, FullDiskAtAnyWriteIsOneErrorAndKeepsTheOldFile) {
  TempFolder folder;
  std::string path = folder / "a.txt";
  write_file_atomically(path, "old");
  test::set_fault(Fault::disk_full, 0);
  std::string text = error_of([&] { write_file_atomically(path, std::string(1000, 'x')); });
  test::set_fault(Fault::none, 0);
  expect_parts(text, {"write " + path, "No space left on device", "after 500 bytes", "free some disk space"});
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(list_folder(folder.path()).size(), 1u);
}

TEST(Files, InterruptedAndShortWritesAreContinued) {
  TempFolder folder;
  std::string bytes;
  for (int i = 0; i < 3000; ++i) bytes.push_back(static_cast<char>(i));
  test::set_fault(Fault::interrupt, 1);
  FileDigest digest = write_file_atomically(folder / "a", bytes);
  test::set_fault(Fault::none, 0);
  EXPECT_EQ(read_file(folder / "a"), bytes);
  EXPECT_EQ(digest.xxh3, xxh3_64(bytes));
}

TEST(Files, KillAtAnyCallLeavesTheOldOrTheNewFile) {
  TempFolder folder;
  std::string path = folder / "a.txt", old_text(300, 'o'), new_text(500, 'n');
  bool has_finished = false;
  for (int at = 0; !has_finished; ++at) {
    write_file_atomically(path, old_text);
    has_finished = 0 == in_child([&] {
                     test::set_fault(Fault::kill, at);
                     write_file_atomically(path, new_text);
                     return 0;
                   });
    std::string found = read_file(path);
    EXPECT_TRUE(found == old_text || found == new_text) << "killed at call " << at;
    ASSERT_LT(at, 20);
  }
}

TEST(Files, LimitOnTheFileSizeIsAnErrorToo) {
  TempFolder folder;
  std::string path = folder / "a.txt";
  write_file_atomically(path, "old");
  EXPECT_EQ(0, in_child([&] {
              ::signal(SIGXFSZ, SIG_IGN);
              rlimit limit{100, 100};
              if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 2;
              try {
                write_file_atomically(path, std::string(1000, 'x'));
              } catch (const Error& error) {
                std::string text = error.what();
                return text.find("File too large") != std::string::npos &&
                               text.find("after 100 bytes") != std::string::npos
                           ? 0
                           : 3;
              }
              return 4;
            }));
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(list_folder(folder.path()).size(), 1u);
}

// Many processes and threads write one file at once: each content is whole, and nothing is left beside it.
TEST(Files, WritersOfOneFileTakeTurns) {
  TempFolder folder;
  std::string path = folder / "a.txt";
  std::vector<pid_t> children;
  for (char c = 'a'; c < 'e'; ++c) {
    pid_t child = ::fork();
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    int code = 0;
    try {
      for (int i = 0; i < 25; ++i)
        write_file_atomically(path, std::string(static_cast<size_t>(1000 * (c - 'a' + 1)), c));
    } catch (const Error&) { code = 1; }
    ::_exit(code);
  }
  auto write = [&](char c) {
    for (int i = 0; i < 25; ++i) {
      write_file_atomically(path, std::string(500, c));
      std::string found = read_file(path);
      EXPECT_EQ(found, std::string(found.size(), found[0]));
    }
  };
  std::thread one(write, 'x'), two(write, 'y');
  one.join();
  two.join();
  for (pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  EXPECT_EQ(list_folder(folder.path()), std::vector<std::string>{"a.txt"});
}

TEST(Files, APartialFileOfAKilledWriterIsWrittenAnew) {
  TempFolder folder;
  EXPECT_EQ(-1, in_child([&] {
    FileWriter writer(folder / "a.txt");
    writer.write(std::string(1000, 'x'));
    return ::kill(::getpid(), SIGKILL);
  }));
  EXPECT_EQ(list_folder(folder.path()), std::vector<std::string>{"a.txt.partial"});
  write_file_atomically(folder / "a.txt", "new");
  EXPECT_EQ(read_file(folder / "a.txt"), "new");
  EXPECT_EQ(list_folder(folder.path()).size(), 1u);
}

TEST(Files, UnwritableFolderIsAnErrorThatSaysSo) {
  TempFolder folder;
  ::chmod(folder.path().c_str(), 0555);
  EXPECT_EQ(0, in_child([&] {
              if (::geteuid() == 0 && ::seteuid(65534) != 0) return 2;  // permissions do not bind root
              try {
                write_file_atomically(folder / "a.txt", "x");
              } catch (const Error& error) {
                std::string text = error.what();
                return text.find("Permission denied") != std::string::npos &&
                               text.find("make the folder writable") != std::string::npos
                           ? 0
                           : 3;
              }
              return 4;
            }));
  ::chmod(folder.path().c_str(), 0755);
}

TEST(Files, ErrorsNameThePathAndTheFix) {
  TempFolder folder;
  write_file_atomically(folder / "file", "12345");
  expect_parts(error_of([&] { read_file(folder / "none"); }),
               {"open " + (folder / "none"), "No such file", "check the path"});
  expect_parts(error_of([&] { read_file(folder.path()); }), {"Is a directory", "it is a folder"});
  expect_parts(error_of([&] { read_file(folder / "file", 4); }), {"5 bytes, at most 4"});
  expect_parts(error_of([&] { MappedFile::open("/dev/zero"); }), {"not a regular file"});
  expect_parts(error_of([&] { make_folders(folder / "file/sub"); }), {"make folder", "File exists"});
  expect_parts(error_of([&] { write_file_atomically(folder / "none/a", "x"); }),
               {"No such file", "folders on the way must exist"});
}

TEST(Files, MappedFileIsReadableWritableInMemoryAndNeverChangesTheFile) {
  TempFolder folder;
  write_file_atomically(folder / "a", "hello");
  write_file_atomically(folder / "empty", "");
  auto file = MappedFile::open(folder / "a");
  EXPECT_EQ(file->bytes(), "hello");
  file->data()[0] = 'j';
  EXPECT_EQ(file->bytes(), "jello");
  EXPECT_EQ(read_file(folder / "a"), "hello");
  EXPECT_TRUE(MappedFile::open(folder / "empty")->bytes().empty());
}

TEST(Files, FoldersAreMadeListedAndRemovedWithoutFollowingLinks) {
  TempFolder folder;
  make_folders(folder / "x/y/z/");
  make_folders(folder / "x/y/z");
  make_folders(folder / "kept");
  write_file_atomically(folder / "kept/file", "1");
  ASSERT_EQ(::symlink((folder / "kept").c_str(), (folder / "x/y/link").c_str()), 0);
  EXPECT_EQ(list_folder(folder / "x/y"), (std::vector<std::string>{"link", "z"}));
  remove_folder(folder / "x");
  remove_folder(folder / "x");
  EXPECT_FALSE(file_exists(folder / "x"));
  EXPECT_EQ(read_file(folder / "kept/file"), "1");
}

}  // namespace
}  // namespace weft::io
