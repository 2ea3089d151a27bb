// Fibers, barriers and warp functions of the emulator. A block's fibers run one after the other, each until it waits or ends.
#include "ops/cuda/emulator/emulator.h"

#include <sys/mman.h>

#include <vector>

#include "ops/cuda/emulator/hopper.h"
#include "ops/cuda/emulator/memory.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

#if !defined(__x86_64__)
#error "the emulator of CUDA kernels switches stacks by hand: x86-64 only"
#endif

// Saves the callee-saved registers and the stack pointer to *save and goes on where `to` was saved.
extern "C" void weft_emulator_switch(void** save, void* to);
asm(R"(
.text
.globl weft_emulator_switch
.hidden weft_emulator_switch
.type weft_emulator_switch,@function
weft_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size weft_emulator_switch,.-weft_emulator_switch
)");

namespace weft::cuda::emulator {

thread_local const Self* self = nullptr;

namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr int kMostThreads = 1024;

struct Fiber {
  Self seen;
  void* stack_pointer = nullptr;
  bool is_done = false, is_waiting = false;
  const uint64_t* waits_at = nullptr;  // a barrier in shared memory
  Copies copies;
  Products products;
  Clock clock{};  // what it knows of the other warps
};

struct Warp {
  const char* function = nullptr;  // that the waiting lanes have come to
  int arrived = 0, lanes = 0;
  uint32_t syncs = 0;
  unsigned turn = 0;  // two buffers in turn: nobody writes one before all have read it
  alignas(16) unsigned char exchange[2][kWarp * kExchangeBytes];
};

// The block that an OS thread is running, the stacks that it keeps, and what it knows of memory.
class Block {
 public:
  ~Block() {
    if (stacks_) munmap(stacks_, kStackBytes * kMostThreads);
  }

  void begin_launch() { memory_.begin_launch(); }

  void run(std::string_view op, const Self& common, size_t shared_bytes, void* context, void (*body)(void*)) {
    context_ = context, body_ = body;
    memory_.begin_block(common.shared, shared_bytes);
    count_ = static_cast<int>(common.block_size.x * common.block_size.y * common.block_size.z);
    WEFT_CHECK(count_ >= 1 && count_ <= kMostThreads, str("emulator: a block of ", count_, " threads"),
               "use 1 to 1024 threads");
    fibers_.assign(static_cast<size_t>(count_), Fiber{});
    warps_.assign(static_cast<size_t>((count_ + kWarp - 1) / kWarp), Warp{});
    barriers_.clear();
    at_barrier_ = 0, done_ = 0, problem_.clear();
    for (int i = 0; i < count_; ++i) start(i, common);
    while (done_ < count_) {
      bool has_moved = false;
      for (int i = 0; i < count_; ++i) {
        Fiber& fiber = fibers_[static_cast<size_t>(i)];
        if (fiber.is_done || fiber.is_waiting) continue;
        has_moved = true;
        current_ = i;
        place_ = {i, warps_[static_cast<size_t>(warp())].syncs, fiber.clock.data()};
        self = &fiber.seen;
        weft_emulator_switch(&scheduler_, fiber.stack_pointer);
        self = nullptr;
        if (!problem_.empty())
          fail(str("emulator: ", op, ": ", problem_), "the kernel is wrong");  // abandons the others
      }
      WEFT_CHECK(has_moved,
                 str("emulator: ", op, ": ", at_barrier_, " of ", count_, " threads wait at a barrier, ", done_,
                     " have ended, and ", count_ - at_barrier_ - done_,
                     " wait for lanes of their warp or at barriers in shared memory"),
                 "the kernel is wrong: every thread must reach every barrier and warp function");
    }
  }

  void barrier() {
    if (done_ > 0) problem_ = "a thread ended while others wait at a barrier";
    if (++at_barrier_ == count_) {
      at_barrier_ = 0;
      memory_.barrier();
      for (Fiber& fiber : fibers_) fiber.is_waiting = false;
    } else {
      fibers_[static_cast<size_t>(current_)].is_waiting = true;
    }
    leave();
  }

  const unsigned char* exchange(const char* function, const void* mine, int bytes) {
    Warp& warp = warps_[static_cast<size_t>(current_ / kWarp)];
    int first = current_ / kWarp * kWarp, lanes = std::min(kWarp, count_ - first);
    if (lanes != kWarp) problem_ = str(function, " in a warp of ", lanes, " lanes");
    else if (warp.arrived > 0 && warp.function != function)
      problem_ = str("lanes of one warp are at ", warp.function, " and at ", function);
    if (!problem_.empty()) leave();
    warp.function = function;
    unsigned char* buffer = warp.exchange[warp.turn % 2];
    if (bytes > 0) std::memcpy(buffer + lane() * kExchangeBytes, mine, static_cast<size_t>(bytes));
    if (++warp.arrived == kWarp) {
      warp.arrived = 0;
      ++warp.turn;
      if (bytes == 0) place_.sync = ++warp.syncs;  // __syncwarp: the others give values and order nothing
      for (int i = first; i < first + kWarp; ++i) fibers_[static_cast<size_t>(i)].is_waiting = false;
    } else {
      fibers_[static_cast<size_t>(current_)].is_waiting = true;
      leave();
    }
    return buffer;
  }

  int lane() const { return current_ % kWarp; }
  int warp() const { return current_ / kWarp; }
  Copies& copies() { return fiber().copies; }
  Products& products() { return fiber().products; }

  void init_barrier(const uint64_t* at, int count) {
    memory_.use_clocks();
    barriers_.init(at, count);
  }
  void arrive(const uint64_t* at, int64_t bytes) {
    barriers_.arrive(at, {warp(), place_.sync, &fiber().clock}, bytes);
    wake(at);
  }
  void copy_tile(const uint64_t* at, void* to, const TileMap& from, const std::array<int32_t, 4>& first) {
    barriers_.copy(at, {warp(), place_.sync, &fiber().clock}, to, from, first);
    wake(at);
  }
  void wait_at(const uint64_t* at, unsigned parity) {
    while (!barriers_.has_ended(at, parity, fiber().clock)) {
      fiber().is_waiting = true, fiber().waits_at = at;
      leave();
    }
    fiber().waits_at = nullptr;
  }

  void stop_for(std::string problem) {
    if (problem.empty()) return;
    problem_ = std::move(problem);
    leave();
  }

  void on_read(uintptr_t at, size_t bytes) {
    if (!memory_.read(place_, at, bytes)) stop_for(memory_.take_problem());
  }
  void on_write(uintptr_t at, size_t bytes, bool is_atomic) {
    if (!memory_.write(place_, at, bytes, is_atomic)) stop_for(memory_.take_problem());
  }

 private:
  Fiber& fiber() { return fibers_[static_cast<size_t>(current_)]; }
  void wake(const uint64_t* at) {
    for (Fiber& f : fibers_)
      if (f.waits_at == at) f.is_waiting = false, f.waits_at = nullptr;
  }

  void start(int i, const Self& common) {
    if (!stacks_)
      stacks_ = static_cast<char*>(mmap(nullptr, kStackBytes * kMostThreads, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    WEFT_CHECK(stacks_ != MAP_FAILED, "emulator: no memory for stacks", "free some memory");
    Fiber& fiber = fibers_[static_cast<size_t>(i)];
    fiber.seen = common;
    auto n = static_cast<unsigned>(i);
    fiber.seen.thread = dim3(n % common.block_size.x, n / common.block_size.x % common.block_size.y,
                             n / common.block_size.x / common.block_size.y);
    // A stack as if enter() had been called and had switched away at its first instruction.
    auto top = reinterpret_cast<uintptr_t>(stacks_ + static_cast<size_t>(i + 1) * kStackBytes) & ~uintptr_t{15};
    auto* words = reinterpret_cast<void**>(top) - 8;
    for (int w = 0; w < 6; ++w) words[w] = nullptr;
    words[6] = reinterpret_cast<void*>(&Block::enter);
    words[7] = nullptr;
    fiber.stack_pointer = words;
  }

  static void enter();

  void leave() {  // back to the scheduler
    weft_emulator_switch(&fibers_[static_cast<size_t>(current_)].stack_pointer, scheduler_);
  }

  void* context_ = nullptr;
  void (*body_)(void*) = nullptr;
  int count_ = 0, current_ = 0, at_barrier_ = 0, done_ = 0;
  Place place_;  // of the fiber that runs
  void* scheduler_ = nullptr;
  char* stacks_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::string problem_;
  MemoryWatch memory_;
  HopperBarriers barriers_;
};

thread_local Block block_of_thread;
constinit thread_local Block* running = nullptr;  // block_of_thread while `self` is set; asks for no construction

void Block::enter() {
  Block& block = block_of_thread;
  block.body_(block.context_);
  block.fibers_[static_cast<size_t>(block.current_)].is_done = true;
  ++block.done_;
  if (block.at_barrier_ > 0) block.problem_ = "a thread ended while others wait at a barrier";
  block.leave();
}

}  // namespace

void run(std::string_view op, dim3 grid, dim3 block, size_t shared_bytes, void* context, void (*body)(void*)) {
  WEFT_CHECK(shared_bytes <= 227 * 1024, str("emulator: ", op, ": ", shared_bytes, " bytes of shared memory"),
             "a block has at most 227 KiB");
  DeviceAccess access;
  running = &block_of_thread;
  running->begin_launch();
  std::vector<unsigned char> memory;
  int64_t blocks = int64_t{grid.x} * grid.y * grid.z;
  for (int64_t i = 0; i < blocks; ++i) {  // one after the other: the watch sees what one block leaves to another
    memory.assign(shared_bytes + 128, 0xFF);
    Self common;
    common.block_size = block, common.grid = grid;
    common.block = dim3(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                        static_cast<unsigned>(i / grid.x / grid.y));
    common.shared = memory.data() + (128 - reinterpret_cast<uintptr_t>(memory.data()) % 128) % 128;
    common.shared_bytes = shared_bytes;
    running->run(op, common, shared_bytes, context, body);
  }
}

void block_barrier() { running->barrier(); }
const unsigned char* warp_exchange(const char* function, const void* mine, int bytes) {
  return running->exchange(function, mine, bytes);
}
int lane() { return running->lane(); }
int warp() { return running->warp(); }
void stop(std::string problem) {
  block_of_thread.stop_for(std::move(problem));
  __builtin_trap();  // the launch has been abandoned
}

void on_read(const volatile void* at, size_t bytes) {
  if (self) running->on_read(reinterpret_cast<uintptr_t>(at), bytes);
}
void on_write(const volatile void* at, size_t bytes, bool is_atomic) {
  if (self) running->on_write(reinterpret_cast<uintptr_t>(at), bytes, is_atomic);
}
void on_atomic(void* at, size_t bytes) { on_write(at, bytes, true); }

void copy_async(void* shared, const void* global, int bytes, bool is_valid) {
  auto size = static_cast<size_t>(bytes);
  if (is_valid) on_read(global, size);
  on_write(shared, size);
  std::memset(shared, 0xFF, size);
  running->copies().start(shared, global, bytes, is_valid);
}
void copy_commit() { running->copies().commit(); }
void copy_wait(int pending) {
  running->copies().wait(pending, [](void* to, const void* from, int bytes) {
    auto size = static_cast<size_t>(bytes);
    on_write(to, size);
    if (from) std::memcpy(to, from, size);
    else std::memset(to, 0, size);
  });
}

void barrier_init(uint64_t* at, int count) { running->init_barrier(at, count); }
void barrier_arrive(uint64_t* at, int64_t bytes) { running->arrive(at, bytes); }
void barrier_wait(uint64_t* at, unsigned parity) { running->wait_at(at, parity); }
void copy_tile(void* to, const TileMap& from, const std::array<int32_t, 4>& first, uint64_t* barrier) {
  const auto bytes = static_cast<size_t>(from.rows) * 128;
  on_write(to, bytes);
  std::memset(to, 0xFF, bytes);
  running->copy_tile(barrier, to, from, first);
}

namespace {

struct Fragments {
  uint32_t a[4], b[2];
};
float part(uint32_t pair, int which) { return std::bit_cast<float>(which ? pair & 0xffff0000u : pair << 16); }

}  // namespace

void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments mine;
  std::memcpy(mine.a, a, sizeof a), std::memcpy(mine.b, b, sizeof b);
  const unsigned char* all = warp_exchange("mma_bf16_16x8x16", &mine, sizeof mine);
  auto of = [&](int lane) { return reinterpret_cast<const Fragments*>(all + lane * kExchangeBytes); };
  int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    int row = g + (i / 2) * 8, col = 2 * t + i % 2;
    float sum = d[i];
    for (int k = 0; k < 16; ++k) {
      // a[row, k] is in lane (row % 8, k / 2 % 4), register (k / 8) * 2 + row / 8; b[k, col] in lane (col, k / 2 % 4).
      float x = part(of(row % 8 * 4 + k / 2 % 4)->a[k / 8 * 2 + row / 8], k % 2);
      float y = part(of(col * 4 + k / 2 % 4)->b[k / 8], k % 2);
      sum = std::fma(x, y, sum);
    }
    d[i] = sum;
  }
}

void wgmma_fence() { running->products().fence(); }
void wgmma_commit() { running->products().commit(); }
void wgmma_wait(int pending) { running->products().wait(pending); }
void wgmma(float* d, int n, bool accumulates, uint64_t a, uint64_t b) {
  const uint64_t operands[2] = {a, b};
  const unsigned char* all = warp_exchange("wgmma", operands, sizeof operands);
  if (std::memcmp(all, all + (lane() ^ 1) * kExchangeBytes, sizeof operands) != 0)
    stop("lanes of one warp multiply different operands");
  running->products().start(d, n, accumulates, nullptr, a, b, false);
}
void wgmma_rows(float* d, int n, const uint32_t (&a)[4], uint64_t b) {
  const unsigned char* all = warp_exchange("wgmma_rows", a, sizeof a);
  float rows[2][16];
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 16; ++k) {
      uint32_t pair;
      std::memcpy(&pair, all + (lane() / 4 * 4 + k / 2 % 4) * kExchangeBytes + (k / 8 * 2 + h) * 4, sizeof pair);
      rows[h][k] = part(pair, k % 2);
    }
  running->products().start(d, n, true, rows, 0, b, true);
}

void load_matrices(uint32_t (&r)[4], const void* row, bool is_transposed) {
  on_read(row, 16);
  const unsigned char* all = warp_exchange("load_matrices", &row, sizeof row);
  auto element = [&](int matrix, int i, int j) {
    const void* from;
    std::memcpy(&from, all + (matrix * 8 + i) * kExchangeBytes, sizeof from);
    uint16_t x;
    std::memcpy(&x, static_cast<const char*>(from) + 2 * j, 2);
    return uint32_t{x};
  };
  int i = lane() / 4, j = lane() % 4 * 2;
  for (int m = 0; m < 4; ++m)
    r[m] =
        is_transposed ? element(m, j, i) | element(m, j + 1, i) << 16 : element(m, i, j) | element(m, i, j + 1) << 16;
}

}  // namespace weft::cuda::emulator
