// The list of instances: f32 in every instruction set and f64 in the baseline, each with {softmax: plain, softcap, ALiBi,
// softcap then ALiBi; sum: plain, any modifier and activation; signed softmax: any modifier; each of the three with biases};
// one mask functor for all masks (its tests run in partial tiles only). bf16 tensors are widened when rows are packed, so they
// need no instances here; pair_instances.cpp has those for CPUs that multiply bf16.
#include "ops/cpu/attention/functors.h"

namespace weft {

// Made here it would be a function of this file's instruction set that other objects may share; src/core/tensor.cpp has it.
extern template const float* Tensor::data<float>() const;

}  // namespace weft

namespace weft::cpu {

using namespace ops;

namespace {

template <class T>
void delta_rows(const core::Problem& p, const core::Operand& out, const T* dlse, T* delta, int64_t begin, int64_t end) {
  using V = core::Lanes<T>;
  int64_t ld = core::round_up(p.value_width, core::kLanes<T>);
  T* rows = reinterpret_cast<T*>(core::scratch(static_cast<size_t>(2 * ld) * sizeof(T) + 64));
  for (int64_t i = begin; i < end; ++i) {
    int64_t b = i / (p.queries * p.heads), t = i / p.heads % p.queries, head = i % p.heads;
    core::pack_rows<T>(p.dout.at(b, head), t, 1, p.value_width, T(1), rows, ld, 1);
    core::pack_rows<T>(out.at(b, head), t, 1, p.value_width, T(1), rows + ld, ld, 1);
    V sum{};
    for (int64_t c = 0; c < ld; c += core::kLanes<T>) sum += core::load(rows + c) * core::load(rows + ld + c);
    T total = 0;
    for (int c = 0; c < core::kLanes<T>; ++c) total += sum[c];
    delta[i] = dlse ? total - dlse[i] : total;
  }
}

}  // namespace

template <Isa I, class T>
void AttentionKernels<I, T>::forward(const core::Problem& problem, const AttentionOptions& options) {
  StandardMask mask(options.mask);
  with_functors(options, [&](const auto& score, auto normaliser) {
    core::run_pass<T, core::Forward, decltype(normaliser)>(problem, mask, score);
  });
}

template <Isa I, class T>
void AttentionKernels<I, T>::backward(const core::Problem& problem, const AttentionOptions& options) {
  StandardMask mask(options.mask);
  with_functors(options, [&](const auto& score, auto normaliser) {
    core::run_pass<T, core::Backward, decltype(normaliser)>(problem, mask, score);
  });
}

template <Isa I, class T>
void AttentionKernels<I, T>::statistics(const core::Problem& problem, const AttentionOptions& options) {
  StandardMask mask(options.mask);
  with_functors(options, [&](const auto& score, auto normaliser) {
    core::run_pass<T, core::Statistics, decltype(normaliser)>(problem, mask, score);
  });
}

template <Isa I, class T>
void AttentionKernels<I, T>::delta(const core::Problem& p, const core::Operand& out, const T* dlse, T* delta) {
  parallel_for(p.batch * p.queries * p.heads, 256,
               [&](int64_t begin, int64_t end) { delta_rows<T>(p, out, dlse, delta, begin, end); });
}

template struct AttentionKernels<kThisIsa, float>;
#if !defined(__AVX2__)
template struct AttentionKernels<kThisIsa, double>;
#endif

}  // namespace weft::cpu
