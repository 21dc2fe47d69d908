// What the driver and the code for the different instruction sets call of each other.
#pragma once

#include "dense_crf/cpu/memory.hpp"
#include "dense_crf/cpu/team.hpp"

namespace weaktr {

// The errors of the hot code; kept out of it.
[[noreturn]] void fail_range(int kernel);
[[noreturn]] void fail_vertices(int kernel);

// The hot code, once for each instruction set.
#define WEAKTR_DECLARE(isa)                                                            \
  namespace isa {                                                                      \
  void solve(const Problem& problem, const Kernel* kernels, int count, int iterations, \
             Workspace& workspace, Team& team);                                        \
  }
WEAKTR_DECLARE(scalar)
#if defined(__x86_64__)
WEAKTR_DECLARE(avx2)
WEAKTR_DECLARE(avx512)
#elif defined(__aarch64__)
WEAKTR_DECLARE(neon)
#endif
#undef WEAKTR_DECLARE

}  // namespace weaktr
