// The recurrence token after token, as weft/ops/recurrence.h states it: for calls of a few tokens, such as a step of decoding. And the documents
// of tokens, as marks. And which way a problem is computed.
#include "ops/cuda/recurrence/chunk.cuh"

namespace weft::cuda {

namespace recurrence {

namespace {

constexpr int64_t kFewTokens = 8;
constexpr int kParts = kThreads / 32;  // of the key channels

// A warp has every kParts-th key channel, a lane one value channel. Blocks are [B, H, parts of 32 value columns].
template <class T>
__global__ void __launch_bounds__(kThreads) steps(cpu::RecurrenceProblem p, int64_t group) {
  __shared__ T errors[kParts][32], reads[kParts][32];
  const int64_t K = p.key_width, V = p.value_width, parts = (V + 31) / 32;
  const int64_t head = blockIdx.x / parts, b = head / p.heads, h = head % p.heads;
  const int lane = lane_of(), warp = warp_of();
  const int64_t j = blockIdx.x % parts * 32 + lane;
  const bool is_there = j < V;
  const Operand q = p.q.at(b, h / group), k = p.k.at(b, h / group), v = p.v.at(b, h), out = p.out.at(b, h);
  const Operand g = p.log_decay.at(b, h), beta = p.beta.at(b, h), writes = p.writes.at(b, h);
  T* state = static_cast<T*>(p.last_state) + head * K * V;
  const T* given = p.state ? static_cast<const T*>(p.state) + head * K * V : nullptr;
  auto each = [&](auto&& f) {
    for (int64_t c = warp; is_there && c < K; c += kParts) f(c, state[c * V + j]);
  };
  each([&](int64_t c, T& x) { x = given ? given[c * V + j] : T(0); });
  auto sum = [&](const T(&of)[kParts][32]) {
    T all = 0;
#pragma unroll
    for (int i = 0; i < kParts; ++i) all += of[i][lane];
    return all;
  };
  for (int64_t t = 0; t < p.tokens; ++t) {
    const Mark mark = p.marks ? p.marks[b * p.tokens + t] : Mark::token;
    T read = 0;
    if (mark != Mark::padding) {
      auto decay = [&](int64_t c) {
        if (mark == Mark::first) return T(0);
        if (!g.data) return T(1);
        const int64_t channel = p.decay == Decay::scalar ? 0 : p.decay == Decay::key ? c : j;
        return decay_of(element<T>(g, t * g.token_stride + channel));
      };
      const T of_token = p.decay == Decay::key || !is_there ? T(0) : decay(0);
      T error = 0;
      each([&](int64_t c, T& x) {
        x *= p.decay == Decay::key ? decay(c) : of_token;
        if (beta.data) error += element<T>(k, t * k.token_stride + c) * x;
      });
      T u = is_there ? element<T>(v, t * v.token_stride + j) : T(0);
      if (beta.data) {
        errors[warp][lane] = error;
        __syncthreads();
        u = (u - sum(errors)) * element<T>(beta, t * beta.token_stride);
      }
      if (writes.data && !static_cast<const bool*>(writes.data)[t * writes.token_stride]) u = 0;
      each([&](int64_t c, T& x) {
        x += element<T>(k, t * k.token_stride + c) * u;
        read += element<T>(q, t * q.token_stride + c) * x;
      });
    }
    reads[warp][lane] = read;
    __syncthreads();
    if (warp == 0 && is_there && out.data) store(out, t * out.token_stride + j, static_cast<T>(p.scale) * sum(reads));
    __syncthreads();
  }
}

// A thread per two neighbouring tokens. The document before a token is that of the last one that is no padding.
__global__ void __launch_bounds__(kThreads)
    mark_tokens(uint8_t* marks, const int32_t* documents, int64_t batch_stride, int64_t token_stride,
                const int32_t* before, int64_t before_stride, int64_t B, int64_t tokens) {
  auto mark_of = [&](int64_t b, int64_t t) {
    const int32_t* row = documents + b * batch_stride;
    const int32_t mine = row[t * token_stride];
    if (mine < 0) return Mark::padding;
    int64_t last = t - 1;
    while (last >= 0 && row[last * token_stride] < 0) --last;
    const bool is_first = last >= 0 ? row[last * token_stride] != mine : before && before[b * before_stride] != mine;
    return is_first ? Mark::first : Mark::token;
  };
  for (int64_t i = 2 * thread_index(); i < B * tokens; i += 2 * thread_count())
    for (int64_t j = i; j < smaller(i + 2, B * tokens); ++j)
      marks[j] = static_cast<uint8_t>(mark_of(j / tokens, j % tokens));
}

__global__ void __launch_bounds__(kThreads)
    find_last(int32_t* last, const int32_t* documents, int64_t batch_stride, int64_t token_stride,
              const int32_t* before, int64_t before_stride, int64_t B, int64_t tokens) {
  for (int64_t b = thread_index(); b < B; b += thread_count()) {
    int32_t found = before ? before[b * before_stride] : -1;
    for (int64_t t = tokens - 1; t >= 0; --t) {
      const int32_t document = documents[b * batch_stride + t * token_stride];
      if (document < 0) continue;
      found = document;
      break;
    }
    last[b] = found;
  }
}

template <class T>
void forward_steps(const cpu::RecurrenceProblem& p) {
  const int64_t blocks = p.batch * p.heads * ((p.value_width + 31) / 32);
  launch("recur", steps<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream(p.device), p,
         p.heads_per_group());
}

// Calls f<Chunks>() for the arithmetic of the problem's tensors, if there is anything to compute.
template <class T, class F>
void with_chunks(const cpu::RecurrenceProblem& p, F&& f) {
  if (p.batch * p.heads == 0) return;
  if constexpr (std::is_same_v<T, double>) f.template operator()<Chunks<Plain<double>>>();
  else if (p.v.is_bf16) f.template operator()<Chunks<TensorCores>>();
  else f.template operator()<Chunks<Plain<float>>>();
}

}  // namespace

}  // namespace recurrence

template <class T>
void RecurrenceKernels<T>::forward(const cpu::RecurrenceProblem& p) {
  if (p.tokens <= recurrence::kFewTokens) return recurrence::forward_steps<T>(p);
  recurrence::with_chunks<T>(p, [&]<class C>() { C::forward(p); });
}
template <class T>
void RecurrenceKernels<T>::backward(const cpu::RecurrenceProblem& p, void*) {
  recurrence::with_chunks<T>(p, [&]<class C>() { C::backward(p); });
}
template <class T>
int64_t RecurrenceKernels<T>::block_to_keep(const cpu::RecurrenceProblem& p) {
  return p.chunk > 0 ? recurrence::smaller(p.chunk, recurrence::kRows) : recurrence::kRows;
}
template <class T>
void RecurrenceKernels<T>::keep_states(const cpu::RecurrenceProblem& p) {
  recurrence::with_chunks<T>(p, [&]<class C>() { C::keep_states(p); });
}
template <class T>
void RecurrenceKernels<T>::state_gradient(const cpu::RecurrenceProblem& p) {
  recurrence::with_chunks<T>(p, [&]<class C>() { C::state_gradient(p); });
}
template struct RecurrenceKernels<float>;
template struct RecurrenceKernels<double>;

void mark_documents(Tensor& marks, const Tensor& documents, const Tensor& state_document) {
  const int64_t B = documents.size(0), T = documents.size(1);
  const bool has_before = state_document.defined();
  launch("recur", recurrence::mark_tokens, dim3(grid_of((B * T + 1) / 2)), dim3(kThreads), 0, stream_of(marks),
         marks.mutable_data<uint8_t>(), documents.data<int32_t>(), documents.strides()[0], documents.strides()[1],
         has_before ? state_document.data<int32_t>() : nullptr, has_before ? state_document.strides()[0] : int64_t{0},
         B, T);
}

void last_documents(Tensor& last, const Tensor& documents, const Tensor& before) {
  const int64_t B = documents.size(0), T = documents.size(1);
  const bool has_before = before.defined();
  launch("state_documents", recurrence::find_last, dim3(grid_of(B)), dim3(kThreads), 0, stream_of(last),
         last.mutable_data<int32_t>(), documents.data<int32_t>(), documents.strides()[0], documents.strides()[1],
         has_before ? before.data<int32_t>() : nullptr, has_before ? before.strides()[0] : int64_t{0}, B, T);
}

}  // namespace weft::cuda
