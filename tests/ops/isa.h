// Runs a test body under each instruction set of this CPU.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "ops/cpu/isa.h"

namespace weft::test {

template <class F>
void for_each_isa(F&& body) {
  const cpu::Isa before = cpu::isa();
  for (cpu::Isa isa : {cpu::Isa::baseline, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (!cpu::has_isa(isa)) continue;
    cpu::set_isa(isa);
    SCOPED_TRACE(std::string(cpu::to_string(isa)));
    body();
  }
  cpu::set_isa(before);
}

}  // namespace weft::test
