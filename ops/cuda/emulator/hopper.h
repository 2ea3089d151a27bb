// What the emulator has of Hopper: barriers in shared memory that count arrivals and bytes, the copy engine, products of
// warpgroups. Strict as the rest of it: the bytes of a copy arrive when its barrier's phase ends, and are NaN before; a product
// reads its operands and writes its sums when it is waited for, and the sums are NaN before; a wait that nothing can end is an Error.
// Layouts of operands are decoded from their descriptors by the rules of the PTX manual (sections on wgmma's shared memory).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace weft::cuda {

// Memory [batch, tokens, heads, width] of 2-byte elements for the copy engine: a box is `rows` tokens x 64 channels of one head.
// (A CUtensorMap in the build for GPUs.)
struct TileMap {
  const char* data = nullptr;
  int64_t sizes[4] = {}, strides[4] = {};  // width, heads, tokens, batch; strides in bytes
  int rows = 0;
};

namespace emulator {

inline constexpr int kMostWarps = 32;

// Numbers of __syncwarp of every warp: accesses of warp w before its number clock[w] are in the past.
using Clock = std::array<uint32_t, kMostWarps>;

// Where shared memory begins among the addresses of the block: not at a multiple of 1024, as behind static variables.
inline constexpr uint32_t kSharedOffset = 1024 + 128;
uint32_t shared_address(const void* at);

// Who comes to a barrier.
struct Arrival {
  int warp = 0;
  uint32_t sync = 0;
  const Clock* seen = nullptr;
};

class HopperBarriers {
 public:
  void clear() { all_.clear(); }

  void init(const uint64_t* at, int count);
  void arrive(const uint64_t* at, const Arrival& who, int64_t bytes);
  void copy(const uint64_t* at, const Arrival& who, void* to, const TileMap& from, const std::array<int32_t, 4>& first);
  // Whether the phase of that parity has ended; what its arrivals had seen goes to `seen`.
  bool has_ended(const uint64_t* at, unsigned parity, Clock& seen);

 private:
  struct Copy {
    void* to;
    TileMap from;
    std::array<int32_t, 4> first;
  };
  struct Barrier {
    const uint64_t* at = nullptr;
    int count = 0, missing = 0;
    int64_t expected_bytes = 0, copied_bytes = 0;
    unsigned phase = 0;
    Clock gathered{}, published{};
    std::vector<Copy> copies;
  };
  Barrier& find(const uint64_t* at);
  static void end_phase(Barrier& barrier);

  std::vector<Barrier> all_;
};

// One lane's products that are under way, in the order they were asked for.
class Products {
 public:
  void fence() { is_fenced_ = true; }
  // a_rows: the lane's two rows of the first operand, or null for one in shared memory. d: N / 2 sums.
  void start(float* d, int n, bool accumulates, const float (*a_rows)[16], uint64_t a, uint64_t b, bool is_b_by_token);
  void commit() { ++groups_; }
  void wait(int pending);

 private:
  struct Product {
    float* d;
    int n, group;
    bool accumulates, has_rows, is_b_by_token;
    uint64_t a, b;
    float rows[2][16];
    std::vector<float> before;  // of d, for the first product of a chain
  };
  static void run(Product& p);

  std::vector<Product> all_;
  int groups_ = 0;
  bool is_fenced_ = false;
};

// What hopper.cuh calls.
void barrier_init(uint64_t* at, int count);
void barrier_arrive(uint64_t* at, int64_t bytes);
void barrier_wait(uint64_t* at, unsigned parity);
void copy_tile(void* to, const TileMap& from, const std::array<int32_t, 4>& first, uint64_t* barrier);
void wgmma_fence();
void wgmma(float* d, int n, bool accumulates, uint64_t a, uint64_t b);  // both K-major in shared memory
void wgmma_rows(float* d, int n, const uint32_t (&a)[4], uint64_t b);   // a in registers, b MN-major; accumulates
void wgmma_commit();
void wgmma_wait(int pending);

}  // namespace emulator
}  // namespace weft::cuda
