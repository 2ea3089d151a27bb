// Faults at the system calls that write: this test program has its own write, fsync, rename, renameat2, mkdir, unlink
// and rmdir, which count their calls and do as asked at the n-th one. The library under test is unchanged.
#pragma once

namespace weft::test {

enum class Fault {
  none,
  kill,       // SIGKILL; half of a write has been done
  disk_full,  // ENOSPC from there on for every call that needs space; half of the first write has been done
  interrupt,  // EINTR once, then short writes
};

// Starts counting; `at` is the call, from 0, at which the fault happens.
void set_fault(Fault fault, int at);
int num_write_calls();  // since set_fault()

}  // namespace weft::test
