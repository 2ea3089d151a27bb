#include "ops/cpu/onednn_gemm.h"

#include <omp.h>
#include <sys/mman.h>

#include <bit>
#include <mutex>
#include <new>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <source_location>
#include <unordered_map>

#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/core/tensor.h"

namespace weft::cpu {

namespace {

[[noreturn]] void fail_onednn(dnnl_status_t status, const Gemm& g,
                              std::source_location location = std::source_location::current()) {
  const char* text = status == dnnl_out_of_memory       ? "out of memory"
                     : status == dnnl_invalid_arguments ? "invalid arguments"
                     : status == dnnl_unimplemented     ? "not implemented"
                                                        : "runtime error";
  fail(str("matmul: oneDNN says ", text, " (", static_cast<int>(status), ") for ", g.num_products(), " x [", g.m, ", ",
           g.k, "] times [", g.k, ", ", g.n, "] ", g.in, " to ", g.out),
       status == dnnl_out_of_memory ? "free some memory or raise its limit (ulimit -v), or use a smaller batch"
                                    : "please report this",
       location);
}

// oneDNN writes the code of a product into memory without looking whether it got any, and the process ends. So it is asked for
// before: 6 MiB for the first dnnl_sgemm of a process, 1.5 MiB for a primitive (2.6.3).
void require_room(const Gemm& g) {
  constexpr size_t kRoom = size_t{8} << 20;
  void* room = mmap(nullptr, kRoom, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) fail_onednn(dnnl_out_of_memory, g);
  munmap(room, kRoom);
}

// Calls f, which may run out of memory in C++ too.
template <class F>
decltype(auto) with_room(const Gemm& g, F&& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) { fail_onednn(dnnl_out_of_memory, g); }
}

// oneDNN called inside a parallel region must not start threads of its own. A region of one thread does not count as
// active for OpenMP, so the limit is set explicitly. Nor may it where starting them costs more than they save (3 us).
// Of threads that OpenMP does not start, for its limit or as it is dynamic, oneDNN leaves out the work: so it asks for none.
class ThreadLimit {
 public:
  static constexpr int64_t kSerialWork = 1 << 17;

  explicit ThreadLimit(const Gemm& g) : outer_(omp_get_max_threads()), is_dynamic_(omp_get_dynamic() != 0) {
    const bool is_serial = omp_get_level() > 0 || g.m * g.n * g.k * g.num_products() <= kSerialWork;
    const int wanted = is_serial ? 1 : num_threads();
    has_changed_ = wanted != outer_;
    if (has_changed_) omp_set_num_threads(wanted);
    if (is_dynamic_) omp_set_dynamic(0);
  }
  ~ThreadLimit() {
    if (has_changed_) omp_set_num_threads(outer_);
    if (is_dynamic_) omp_set_dynamic(1);
  }
  ThreadLimit(const ThreadLimit&) = delete;
  ThreadLimit& operator=(const ThreadLimit&) = delete;

 private:
  int outer_;
  bool is_dynamic_, has_changed_ = false;
};

// What a primitive depends on, as numbers. The thread count is one of them: some kernels plan their split when created.
struct Key {
  std::array<int64_t, 9 + 4 * kMaxBatchDims> numbers;
  size_t count = 0;

  explicit Key(const Gemm& g) {
    add(g.m), add(g.n), add(g.k), add(g.a.ld), add(g.b.ld), add(g.ldc), add(omp_get_max_threads());
    add(std::bit_cast<int64_t>(g.beta));
    add(static_cast<int64_t>(g.in) | static_cast<int64_t>(g.out) << 8 | int64_t{g.a.is_transposed} << 16 |
        int64_t{g.b.is_transposed} << 17 | int64_t{g.bias != nullptr} << 18);
    for (size_t i = 0; i < static_cast<size_t>(g.num_batch_dims); ++i)
      add(g.batch[i]), add(g.a_step[i]), add(g.b_step[i]), add(g.c_step[i]);
  }
  void add(int64_t number) { numbers[count++] = number; }
  friend bool operator==(const Key& x, const Key& y) {
    return x.count == y.count &&
           std::equal(x.numbers.begin(), x.numbers.begin() + static_cast<int64_t>(x.count), y.numbers.begin());
  }
};

struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = key.count;
    for (size_t i = 0; i < key.count; ++i) {
      hash = (hash ^ static_cast<uint64_t>(key.numbers[i])) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

dnnl::memory::data_type type_of(DType dtype) {
  return dtype == kBF16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

// Descriptor of one matrix operand with its batch dimensions; a step of 0 is a size of 1, which oneDNN broadcasts.
dnnl::memory::desc descriptor(const Gemm& g, DType dtype, int64_t rows, int64_t cols, bool is_transposed, int64_t ld,
                              const std::array<int64_t, kMaxBatchDims>& step, bool any_layout = false) {
  dnnl::memory::dims sizes, strides;
  for (size_t i = 0; i < static_cast<size_t>(g.num_batch_dims); ++i) {
    sizes.push_back(step[i] ? g.batch[i] : 1);
    strides.push_back(step[i] ? step[i] : 1);
  }
  // A size of 1 hides its stride; the outer strides of broadcast dimensions must still not be smaller than the matrix.
  int64_t matrix = is_transposed ? ld * cols : ld * rows;
  for (size_t i = 0; i < strides.size(); ++i)
    if (sizes[i] == 1) strides[i] = matrix;
  sizes.insert(sizes.end(), {rows, cols});
  strides.insert(strides.end(), {is_transposed ? 1 : ld, is_transposed ? ld : 1});
  if (any_layout) return {sizes, type_of(dtype), dnnl::memory::format_tag::any};
  return {sizes, type_of(dtype), strides};
}

// A primitive with its memory objects and argument list; only data pointers change from call to call. If it packs b, the library chooses
// b's layout, and every call first brings b into it: `packing` from `plain_b`.
struct Primitive {
  dnnl::matmul::primitive_desc desc;
  dnnl::primitive primitive, packing;
  dnnl::memory a, b, c, bias, scratch, plain_b;
  std::vector<dnnl_exec_arg_t> args;
  size_t scratch_bytes = 0;
  bool exists = false;

  Primitive(const Gemm& g, const dnnl::engine& engine, bool packs_b) {
    require_room(g);
    try {
      create(g, engine, packs_b);
    } catch (const dnnl::error& e) { fail_onednn(e.status, g); }
  }

  bool packs() const { return static_cast<bool>(packing); }

  void execute(const Gemm& g, const dnnl::stream& stream) {
    if (!packs()) return execute_packed(g, g.b.data, stream);
    Tensor b_here = packed(g, stream);
    execute_packed(g, b_here.raw(), stream);
  }

  Tensor packed(const Gemm& g, const dnnl::stream& stream) {
    Tensor to = Tensor::empty({static_cast<int64_t>(desc.weights_desc().get_size())}, kU8, Device::cpu());
    plain_b.set_data_handle(const_cast<void*>(g.b.data));
    b.set_data_handle(to.mutable_raw());
    if (!is_dry_run()) run(g, packing, {{DNNL_ARG_FROM, plain_b.get()}, {DNNL_ARG_TO, b.get()}}, stream);
    return to;
  }

  // With b as it is in the primitive's layout.
  void execute_packed(const Gemm& g, const void* b_data, const dnnl::stream& stream) {
    a.set_data_handle(const_cast<void*>(g.a.data));
    b.set_data_handle(const_cast<void*>(b_data));
    c.set_data_handle(g.c);
    if (bias) bias.set_data_handle(const_cast<void*>(g.bias));
    Tensor scratch_memory;
    if (scratch_bytes) {
      scratch_memory = Tensor::empty({static_cast<int64_t>(scratch_bytes)}, kU8, Device::cpu());
      scratch.set_data_handle(scratch_memory.mutable_raw());
    }
    if (!is_dry_run()) run(g, primitive, args, stream);
  }

 private:
  static void run(const Gemm& g, const dnnl::primitive& what, const std::vector<dnnl_exec_arg_t>& with,
                  const dnnl::stream& stream) {
    auto status = dnnl_primitive_execute(what.get(), stream.get(), static_cast<int>(with.size()), with.data());
    if (status == dnnl_success) status = dnnl_stream_wait(stream.get());
    if (status != dnnl_success) fail_onednn(status, g);
  }

  void create(const Gemm& g, const dnnl::engine& engine, bool packs_b) {
    static std::mutex of_all_threads;  // who share oneDNN's cache: ThreadSanitizer does not see the locks inside it
    const std::lock_guard lock(of_all_threads);
    for (size_t i = 0; i < static_cast<size_t>(g.num_batch_dims); ++i)
      if (g.a_step[i] == 0 && g.b_step[i] == 0) return;  // the same product several times: oneDNN cannot say it
    auto a_desc = descriptor(g, g.in, g.m, g.k, g.a.is_transposed, g.a.ld, g.a_step);
    auto b_desc = descriptor(g, g.in, g.k, g.n, g.b.is_transposed, g.b.ld, g.b_step, packs_b);
    auto c_desc = descriptor(g, g.out, g.m, g.n, false, g.ldc, g.c_step);
    dnnl::memory::desc bias_desc;
    if (g.bias) {
      dnnl::memory::dims sizes(static_cast<size_t>(g.num_batch_dims) + 1, 1), strides(sizes.size(), g.n);
      sizes.push_back(g.n), strides.push_back(1);
      bias_desc = {sizes, type_of(g.in), strides};
    }
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (g.beta != 0) {
      dnnl::post_ops ops;
      ops.append_sum(static_cast<float>(g.beta));
      attr.set_post_ops(ops);
    }
#if DNNL_VERSION_MAJOR >= 3
    desc = g.bias ? dnnl::matmul::primitive_desc(engine, a_desc, b_desc, bias_desc, c_desc, attr, true)
                  : dnnl::matmul::primitive_desc(engine, a_desc, b_desc, c_desc, attr, true);
#else
    desc = dnnl::matmul::primitive_desc(
        g.bias ? dnnl::matmul::desc(a_desc, b_desc, bias_desc, c_desc) : dnnl::matmul::desc(a_desc, b_desc, c_desc),
        attr, engine, true);
#endif
    // The reference loop of oneDNN is a hundred times slower than any of our own ways round it.
    if (!desc || std::string_view(desc.impl_info_str()).find("ref") != std::string_view::npos) return;
    primitive = dnnl::matmul(desc);
    a = {desc.src_desc(), engine, DNNL_MEMORY_NONE};
    b = {desc.weights_desc(), engine, DNNL_MEMORY_NONE};
    c = {desc.dst_desc(), engine, DNNL_MEMORY_NONE};
    args = {{DNNL_ARG_SRC, a.get()}, {DNNL_ARG_WEIGHTS, b.get()}, {DNNL_ARG_DST, c.get()}};
    if (g.bias) {
      bias = {desc.bias_desc(), engine, DNNL_MEMORY_NONE};
      args.push_back({DNNL_ARG_BIAS, bias.get()});
    }
    scratch_bytes = desc.scratchpad_desc().get_size();
    if (scratch_bytes) {
      scratch = {desc.scratchpad_desc(), engine, DNNL_MEMORY_NONE};
      args.push_back({DNNL_ARG_SCRATCHPAD, scratch.get()});
    }
    if (packs_b) {
      plain_b = {descriptor(g, g.in, g.k, g.n, g.b.is_transposed, g.b.ld, g.b_step), engine, DNNL_MEMORY_NONE};
      if (plain_b.get_desc() != desc.weights_desc())
        packing = dnnl::reorder(dnnl::reorder::primitive_desc(engine, plain_b.get_desc(), engine, desc.weights_desc()));
    }
    exists = true;
  }
};

// Of bf16 the library brings pairs of rows of a plain b together again for each block of rows of a. To do it once costs little beside a
// product of many rows (two Zen 4 cores, 4096 tokens: a weight of 128x128 375 against 442 GFLOP/s, of 512x512 407 against 440). A plain f32
// b it reads as it is, and a batch has its own kernels.
bool gains_by_packing(const Gemm& g) {
  return g.in == kBF16 && g.num_batch_dims == 0 && !g.a.is_transposed && g.m >= 1024 && g.k * g.n >= 1 << 13;
}

// One per thread: oneDNN streams and memory objects may not be used by two threads at once.
struct Cache {
  static constexpr size_t kMaxPrimitives = 2048;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::unordered_map<Key, Primitive, KeyHash> primitives;

  Primitive& find(const Gemm& g) {
    Key key(g);
    if (auto found = primitives.find(key); found != primitives.end()) return found->second;
    if (primitives.size() >= kMaxPrimitives) primitives.clear();  // a program whose shapes never repeat
    return primitives.try_emplace(key, g, engine, gains_by_packing(g)).first->second;
  }
};

Cache& cache(const Gemm& g) {
  thread_local std::optional<Cache> of_thread;
  if (of_thread) [[likely]]
    return *of_thread;
  require_room(g);
  try {
    return of_thread.emplace();
  } catch (const dnnl::error& e) { fail_onednn(e.status, g); }
}

}  // namespace

void onednn_sgemm(const Gemm& g) {
  if (is_dry_run()) return;
  ThreadLimit limit(g);
  thread_local bool has_code = false;
  if (!has_code) require_room(g);
  auto status = with_room(g, [&] {
    return dnnl_sgemm(g.a.is_transposed ? 'T' : 'N', g.b.is_transposed ? 'T' : 'N', g.m, g.n, g.k, 1.0f,
                      static_cast<const float*>(g.a.data), g.a.ld, static_cast<const float*>(g.b.data), g.b.ld,
                      static_cast<float>(g.beta), static_cast<float*>(g.c), g.ldc);
  });
  if (status != dnnl_success) fail_onednn(status, g);
  has_code = true;
}

bool onednn_matmul(const Gemm& g) {
  ThreadLimit limit(g);
  Cache& mine = cache(g);
  Primitive& primitive = with_room(g, [&]() -> Primitive& { return mine.find(g); });
  if (!primitive.exists) return false;
  primitive.execute(g, mine.stream);
  return true;
}

bool onednn_has_matmul(const Gemm& g) {
  ThreadLimit limit(g);
  return with_room(g, [&] { return cache(g).find(g).exists; });
}

bool onednn_has_avx512() {
  auto isa = static_cast<unsigned>(dnnl_get_effective_cpu_isa());
  return (isa & dnnl_cpu_isa_avx512_core) == static_cast<unsigned>(dnnl_cpu_isa_avx512_core);
}

std::string onednn_version() {
  const dnnl_version_t* version = dnnl_version();
  const char* isa = onednn_has_avx512()                                 ? "avx512"
                    : dnnl_get_effective_cpu_isa() >= dnnl_cpu_isa_avx2 ? "avx2"
                                                                        : "baseline";
  return str(version->major, ".", version->minor, ".", version->patch, ", ", isa);
}

struct RouteRunner::State {
  Gemm g;
  Route route;
  std::unique_ptr<Primitive> primitive;
  Tensor packed_b;
};

RouteRunner::RouteRunner(const Gemm& g, Route route) : state_(std::make_unique<State>(State{g, route, nullptr, {}})) {
  if (route == Route::sgemm) return;
  Cache& mine = cache(g);
  state_->primitive = std::make_unique<Primitive>(g, mine.engine, route == Route::packed);
  Primitive& primitive = *state_->primitive;
  if (route == Route::plain || !primitive.exists) return;
  state_->packed_b = primitive.packs() ? primitive.packed(g, mine.stream) : Tensor();
}

RouteRunner::~RouteRunner() = default;

bool RouteRunner::exists() const {
  if (state_->route == Route::sgemm) return state_->g.in == kF32 && state_->g.num_batch_dims == 0 && !state_->g.bias;
  return state_->primitive->exists;
}

void RouteRunner::run() {
  if (state_->route == Route::sgemm) onednn_sgemm(state_->g);
  else
    state_->primitive->execute_packed(state_->g, state_->packed_b.defined() ? state_->packed_b.raw() : state_->g.b.data,
                                      cache(state_->g).stream);
}

}  // namespace weft::cpu
