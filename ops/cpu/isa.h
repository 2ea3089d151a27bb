// The instruction set of the CPU kernels: each kernel file is compiled once per set, one set is chosen at start.
// WEFT_ISA=baseline|avx2|avx512 in the environment forces one by name (an Error if this CPU does not have it).
//
// A kernel family declares `template <Isa I> struct NormKernels { static void rms_norm(...); };`, its kernel file (listed in
// weft_kernels()) defines the members and ends with `template struct NormKernels<kThisIsa>;`, and callers write
//   with_isa([&]<Isa I>() { NormKernels<I>::rms_norm(...); });
#pragma once

#include <string_view>

namespace weft::cpu {

enum class Isa { baseline, avx2, avx512 };

#ifdef WEFT_ISA
inline constexpr Isa kThisIsa = Isa::WEFT_ISA;  // of the file being compiled
#endif

Isa isa();
void set_isa(Isa isa);  // for tests; Error if this CPU or build does not have it
bool has_isa(Isa isa);
std::string_view to_string(Isa isa);
bool multiplies_bf16();  // avx512 is chosen and this CPU has AVX-512 BF16

template <class F>
decltype(auto) with_isa(F&& f) {
#if defined(__x86_64__) && !defined(WEFT_BASELINE_ONLY)
  switch (isa()) {
    case Isa::avx512: return f.template operator()<Isa::avx512>();
    case Isa::avx2: return f.template operator()<Isa::avx2>();
    case Isa::baseline: break;
  }
#endif
  return f.template operator()<Isa::baseline>();
}

}  // namespace weft::cpu
