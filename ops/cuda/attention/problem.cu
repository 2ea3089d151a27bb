// The ranges of positions and documents of every tile, [B, tiles] of either side, and whether rows can be read in wide accesses.
#include "ops/cuda/attention/problem.cuh"

namespace weft::cuda::attention {

namespace {

struct LowerOf {
  __device__ int32_t operator()(int32_t a, int32_t b) const { return a < b ? a : b; }
};
struct HigherOf {
  __device__ int32_t operator()(int32_t a, int32_t b) const { return a > b ? a : b; }
};

// One warp per tile: those of the queries, then those of the keys.
__global__ void token_ranges(Side queries, Side keys, int64_t batch, TokenRange* ranges) {
  int64_t i = thread_index() / 32, query_tiles = batch * queries.tiles;
  if (i >= query_tiles + batch * keys.tiles) return;  // the whole warp
  Side side = i < query_tiles ? queries : keys;
  int64_t at = i < query_tiles ? i : i - query_tiles, b = at / side.tiles, first = at % side.tiles * side.step;
  TokenRange r = {INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN};
  for (int64_t j = first + threadIdx.x % 32; j < first + side.step && j < side.count; j += 32) {
    Token<int32_t> t = side.tokens.at(b, j);
    r.position_min = LowerOf{}(r.position_min, t.position), r.position_max = HigherOf{}(r.position_max, t.position);
    r.document_min = LowerOf{}(r.document_min, t.document), r.document_max = HigherOf{}(r.document_max, t.document);
  }
  r.position_min = warp_reduce(r.position_min, LowerOf{}), r.position_max = warp_reduce(r.position_max, HigherOf{});
  r.document_min = warp_reduce(r.document_min, LowerOf{}), r.document_max = warp_reduce(r.document_max, HigherOf{});
  if (threadIdx.x % 32 == 0) ranges[i] = r;
}

Side side_of(const TokenView& tokens, int64_t count, int step) {
  return {tokens, count, step, static_cast<int>((count + step - 1) / step), nullptr};
}

}  // namespace

bool are_rows_wide(const Operand& x, int64_t width) {
  int64_t each = 16 / x.element_bytes;
  return !x.data || (is_aligned(x.data) && width % each == 0 && x.batch_stride % each == 0 &&
                     x.token_stride % each == 0 && x.head_stride % each == 0);
}

Prepared::Prepared(const Problem& p, int query_step, int key_step) {
  work.p = p;
  work.queries = side_of(p.query_tokens, p.queries, query_step), work.keys = side_of(p.key_tokens, p.keys, key_step);
  work.is_wide = are_rows_wide(p.q, p.key_width) && are_rows_wide(p.k, p.key_width) &&
                 are_rows_wide(p.v, p.value_width) && are_rows_wide(p.dout, p.value_width);
  int64_t query_tiles = p.batch * work.queries.tiles, tiles = query_tiles + p.batch * work.keys.tiles;
  memory = Tensor::empty({tiles, 4}, kI32, p.device);
  auto* ranges = static_cast<TokenRange*>(memory.mutable_raw());
  work.queries.ranges = ranges, work.keys.ranges = ranges + query_tiles;
  constexpr int kWarps = kThreads / 32;
  launch("attention", token_ranges, dim3(static_cast<unsigned>((tiles + kWarps - 1) / kWarps)), dim3(kThreads), 0,
         stream_of(p), work.queries, work.keys, p.batch, ranges);
}

}  // namespace weft::cuda::attention
