#include "ops/cpu/isa.h"

#include <atomic>
#include <cstdlib>

#include "weft/core/error.h"

namespace weft::cpu {

std::string_view to_string(Isa isa) {
  switch (isa) {
    case Isa::baseline: return "baseline";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  return "?";
}

bool has_isa([[maybe_unused]] Isa isa) {
#if defined(__x86_64__) && !defined(WEFT_BASELINE_ONLY)
  // What -march=haswell and -march=skylake-avx512 let the compiler use.
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
              __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
#endif
  return isa == Isa::baseline;
}

namespace {

constexpr std::string_view kFix = "use baseline, or avx2 or avx512 where the CPU has them";

Isa choose() {
  constexpr Isa all[] = {Isa::avx512, Isa::avx2, Isa::baseline};
  if (const char* forced = std::getenv("WEFT_ISA"); forced && *forced) {
    for (Isa isa : all)
      if (to_string(isa) == forced) {
        WEFT_CHECK(has_isa(isa), str("WEFT_ISA=", forced, ": this CPU does not have it"), std::string(kFix));
        return isa;
      }
    fail(str("WEFT_ISA=", forced, ": no such instruction set"), std::string(kFix));
  }
  for (Isa isa : all)
    if (has_isa(isa)) return isa;
  return Isa::baseline;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{choose()};
  return isa;
}

}  // namespace

Isa isa() { return chosen().load(std::memory_order_relaxed); }

bool multiplies_bf16() {
#if defined(__x86_64__) && !defined(WEFT_BASELINE_ONLY)
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has && isa() == Isa::avx512;
#else
  return false;
#endif
}

void set_isa(Isa isa) {
  WEFT_CHECK(has_isa(isa), str("set_isa: this CPU does not have ", isa), std::string(kFix));
  chosen().store(isa);
}

}  // namespace weft::cpu
