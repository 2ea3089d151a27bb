#include "ops/cuda/emulator/memory.h"

#include <link.h>
#include <sys/mman.h>

#include "src/core/cuda/emulated_types.h"
#include "weft/core/error.h"

namespace weft::cuda::emulator {

namespace {

constexpr size_t kMostShared = 256 * 1024;

// Address space whose pages are zero and take memory when they are first touched.
void* untouched(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  WEFT_CHECK(memory != MAP_FAILED, "emulator: no memory to watch memory with", "free some memory");
  return memory;
}

// __shared__ variables are thread_local ones of the program, which lie right below the thread's pointer.
size_t bytes_of_thread_locals() {
  size_t bytes = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        for (int i = 0; i < info->dlpi_phnum; ++i)
          if (const auto& header = info->dlpi_phdr[i]; header.p_type == PT_TLS)
            *static_cast<size_t*>(to) = (header.p_memsz + header.p_align - 1) / header.p_align * header.p_align;
        return 1;  // the program itself comes first
      },
      &bytes);
  return bytes;
}

}  // namespace

MemoryWatch::MemoryWatch()
    : static_bytes_(bytes_of_thread_locals()),
      shared_records_(static_cast<Record*>(untouched(kMostShared / kUnit * sizeof(Record)))),
      static_records_(static_cast<Record*>(untouched((static_bytes_ / kUnit + 1) * sizeof(Record)))) {}

MemoryWatch::~MemoryWatch() {
  munmap(shared_records_, kMostShared / kUnit * sizeof(Record));
  munmap(static_records_, (static_bytes_ / kUnit + 1) * sizeof(Record));
  if (device_records_) munmap(device_records_, device_memory_capacity() / kUnit * sizeof(Record));
  if (warp_reads_) munmap(warp_reads_, kMostShared / kUnit * kMostWarps * sizeof(WarpRead));
}

void MemoryWatch::use_clocks() {
  if (!warp_reads_)
    warp_reads_ = static_cast<WarpRead*>(untouched(kMostShared / kUnit * kMostWarps * sizeof(WarpRead)));
  has_clocks_ = true;
}

inline MemoryWatch::WarpRead* MemoryWatch::reads_of(uintptr_t at) const {
  return has_clocks_ && at - dynamic_ < dynamic_bytes_ ? warp_reads_ + (at - dynamic_) / kUnit * kMostWarps : nullptr;
}

int MemoryWatch::unordered_reader(const Place& who, const WarpRead* reads) const {
  for (int w = 0; w < kMostWarps; ++w)
    if (w != who.thread / 32 && reads[w].epoch == epoch_ && reads[w].sync >= who.seen[w]) return w;
  return -1;
}

void MemoryWatch::begin_block(const void* shared, size_t shared_bytes) {
  first_of_block_ = ++epoch_;
  has_clocks_ = false;
  dynamic_ = reinterpret_cast<uintptr_t>(shared), dynamic_bytes_ = shared_bytes;
  static_ = reinterpret_cast<uintptr_t>(__builtin_thread_pointer()) - static_bytes_;
  // Blocks run one after the other, and all their memory is there before the first.
  if (!device_records_)
    device_records_ = static_cast<Record*>(untouched(device_memory_capacity() / kUnit * sizeof(Record)));
  device_ = reinterpret_cast<uintptr_t>(device_memory());
  device_bytes_ = device_ ? device_memory_capacity() : 0;
}

inline MemoryWatch::Memory MemoryWatch::find(uintptr_t at, size_t bytes) const {
  if (at - device_ < device_bytes_) {
    if (bytes < kUnit) return {};  // of two threads' neighbours one record cannot tell
    return {"device", device_records_ + (at - device_) / kUnit, first_of_launch_};
  }
  if (at - dynamic_ < dynamic_bytes_) return {"shared", shared_records_ + (at - dynamic_) / kUnit, first_of_block_};
  if (at - static_ < static_bytes_) return {"static", static_records_ + (at - static_) / kUnit, first_of_block_};
  return {};
}

inline bool MemoryWatch::is_unordered(const Place& who, uint32_t first, uint32_t epoch, uint32_t sync,
                                      int thread) const {
  if (epoch < first) return false;           // another launch, or another block's shared memory
  if (epoch < first_of_block_) return true;  // another block of the launch
  if (epoch < epoch_ || thread == who.thread) return false;
  if (thread / 32 == who.thread / 32) return sync == who.sync;
  return thread == kSeveral || !who.seen || sync >= who.seen[thread / 32];
}

[[gnu::noinline]] bool MemoryWatch::refuse(std::string problem) {
  problem_ = std::move(problem);
  return false;
}

[[gnu::noinline]] bool MemoryWatch::refuse_race(const Place& who, const char* does, const Memory& memory, size_t bytes,
                                                const char* did, uint32_t epoch, int thread) {
  return refuse(str("thread ", who.thread, " ", does, " ", bytes, " bytes of ", memory.name, " memory that ",
                    epoch < first_of_block_ ? "another block"
                    : thread == kSeveral    ? "several threads"
                                            : str("thread ", thread),
                    thread == kSeveral ? " have " : " has ", did,
                    epoch < first_of_block_ ? " in the same launch" : " since the last barrier"));
}

bool MemoryWatch::read(const Place& who, uintptr_t at, size_t bytes) {
  Memory memory = find(at, bytes);
  if (!memory.records) return true;
  const auto warp = static_cast<uint8_t>(who.thread / 32);
  const uint32_t lane = 1u << (who.thread % 32);
  WarpRead* reads = reads_of(at);
  for (size_t i = 0; i < (bytes + kUnit - 1) / kUnit; ++i) {
    Record& r = memory.records[i];
    if (is_unordered(who, memory.first_epoch, r.write_epoch, r.write_sync, r.writer))
      return refuse_race(who, "reads", memory, bytes, r.is_write_atomic ? "changed atomically" : "written",
                         r.write_epoch, r.writer);
    if (reads) reads[i * kMostWarps + warp] = {epoch_, who.sync};
    if (r.read_epoch != epoch_) {
      if (r.read_epoch >= memory.first_epoch && r.read_epoch < first_of_block_) r.far_read_epoch = r.read_epoch;
      r.read_epoch = epoch_, r.read_warp = warp, r.read_sync = who.sync, r.read_lanes = lane, r.is_read_by_warps = 0;
    } else if (r.read_warp != warp) {
      r.is_read_by_warps = 1;
    } else if (r.read_sync != who.sync) {
      r.read_sync = who.sync, r.read_lanes = lane;
    } else {
      r.read_lanes |= lane;
    }
  }
  return true;
}

bool MemoryWatch::write(const Place& who, uintptr_t at, size_t bytes, bool is_atomic) {
  Memory memory = find(at, bytes);
  if (!memory.records) return true;
  const char* does = is_atomic ? "changes atomically" : "writes";
  const uint32_t first = memory.first_epoch;
  const WarpRead* reads = reads_of(at);
  for (size_t i = 0; i < (bytes + kUnit - 1) / kUnit; ++i) {
    Record& r = memory.records[i];
    if (!(is_atomic && r.is_write_atomic) && is_unordered(who, first, r.write_epoch, r.write_sync, r.writer))
      return refuse_race(who, does, memory, bytes, r.is_write_atomic ? "changed atomically" : "written", r.write_epoch,
                         r.writer);
    for (uint32_t epoch : {r.far_read_epoch, r.read_epoch})
      if (epoch >= first && epoch < first_of_block_) return refuse_race(who, does, memory, bytes, "read", epoch, -1);
    if (reads) {
      if (int warp = unordered_reader(who, reads + i * kMostWarps); warp >= 0)
        return refuse(str("thread ", who.thread, " ", does, " ", bytes, " bytes of ", memory.name, " memory that warp ",
                          warp, " has read, and no barrier orders them"));
    } else if (r.read_epoch == epoch_) {
      const uint32_t others = r.read_lanes & ~(1u << (who.thread % 32));
      if (r.read_warp != who.thread / 32 || (r.read_sync == who.sync && others != 0))
        return refuse_race(who, does, memory, bytes, "read", epoch_,
                           r.read_warp * 32 + __builtin_ctz(r.read_warp != who.thread / 32 ? r.read_lanes : others));
      if (r.is_read_by_warps)
        return refuse(str("thread ", who.thread, " ", does, " ", bytes, " bytes of ", memory.name,
                          " memory that other warps have read since the last barrier"));
    }
    const bool is_one_of_many =
        is_atomic && r.is_write_atomic && is_unordered(who, first, r.write_epoch, r.write_sync, r.writer);
    r.writer = is_one_of_many ? kSeveral : static_cast<uint16_t>(who.thread);
    r.write_epoch = epoch_, r.write_sync = who.sync, r.is_write_atomic = is_atomic;
  }
  return true;
}

}  // namespace weft::cuda::emulator

// The calls that the compiler puts before loads and stores.
using weft::cuda::emulator::on_read;
using weft::cuda::emulator::on_write;

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void* at, size_t bytes) { on_read(at, bytes); }
void __tsan_write_range(void* at, size_t bytes) { on_write(at, bytes); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read1(void* at) { on_read(at, 1); }
void __tsan_read2(void* at) { on_read(at, 2); }
void __tsan_read4(void* at) { on_read(at, 4); }
void __tsan_read8(void* at) { on_read(at, 8); }
void __tsan_read16(void* at) { on_read(at, 16); }
void __tsan_write1(void* at) { on_write(at, 1); }
void __tsan_write2(void* at) { on_write(at, 2); }
void __tsan_write4(void* at) { on_write(at, 4); }
void __tsan_write8(void* at) { on_write(at, 8); }
void __tsan_write16(void* at) { on_write(at, 16); }
void __tsan_unaligned_read2(void* at) { on_read(at, 2); }
void __tsan_unaligned_read4(void* at) { on_read(at, 4); }
void __tsan_unaligned_read8(void* at) { on_read(at, 8); }
void __tsan_unaligned_read16(void* at) { on_read(at, 16); }
void __tsan_unaligned_write2(void* at) { on_write(at, 2); }
void __tsan_unaligned_write4(void* at) { on_write(at, 4); }
void __tsan_unaligned_write8(void* at) { on_write(at, 8); }
void __tsan_unaligned_write16(void* at) { on_write(at, 16); }
// Reference counts of the host's code in kernel files.
int __tsan_atomic32_fetch_add(volatile int* at, int x, int) { return __atomic_fetch_add(at, x, __ATOMIC_SEQ_CST); }
int __tsan_atomic32_load(const volatile int* at, int) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
char __tsan_atomic8_load(const volatile char* at, int) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
long __tsan_atomic64_load(const volatile long* at, int) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
}
