// The few operations that read differently for a number and for a vector of them, so that a formula
// is written once.
#pragma once

#include "common/compiler.hpp"

namespace weaktr {

WEAKTR_INLINE int less_mask(float a, float b) { return -static_cast<int>(a < b); }
WEAKTR_INLINE int equal_mask(int a, int b) { return -static_cast<int>(a == b); }
WEAKTR_INLINE int negative_mask(int a) { return -static_cast<int>(a < 0); }
WEAKTR_INLINE float choose(int mask, float a, float b) { return mask ? a : b; }
WEAKTR_INLINE int choose(int mask, int a, int b) { return mask ? a : b; }
WEAKTR_INLINE void convert(float x, int& out) { out = static_cast<int>(x); }
WEAKTR_INLINE void convert(int x, float& out) { out = static_cast<float>(x); }

#if !defined(__CUDACC__)
template <int Width>
struct Lanes {
  typedef float Float __attribute__((vector_size(4 * Width)));
  typedef int Int __attribute__((vector_size(4 * Width)));
};
#define WEAKTR_LANES(W)                                                                         \
  WEAKTR_INLINE Lanes<W>::Int less_mask(Lanes<W>::Float a, Lanes<W>::Float b) { return a < b; } \
  WEAKTR_INLINE Lanes<W>::Int equal_mask(Lanes<W>::Int a, int b) { return a == b; }             \
  WEAKTR_INLINE Lanes<W>::Int negative_mask(Lanes<W>::Int a) { return a < 0; }                  \
  WEAKTR_INLINE Lanes<W>::Float choose(Lanes<W>::Int m, Lanes<W>::Float a, Lanes<W>::Float b) { \
    return m ? a : b;                                                                           \
  }                                                                                             \
  WEAKTR_INLINE Lanes<W>::Int choose(Lanes<W>::Int m, Lanes<W>::Int a, Lanes<W>::Int b) {       \
    return m ? a : b;                                                                           \
  }                                                                                             \
  WEAKTR_INLINE void convert(Lanes<W>::Float x, Lanes<W>::Int& out) {                           \
    out = __builtin_convertvector(x, Lanes<W>::Int);                                            \
  }                                                                                             \
  WEAKTR_INLINE void convert(Lanes<W>::Int x, Lanes<W>::Float& out) {                           \
    out = __builtin_convertvector(x, Lanes<W>::Float);                                          \
  }
WEAKTR_LANES(4)
#if defined(__AVX2__)
WEAKTR_LANES(8)
#endif
#if defined(__AVX512F__)
WEAKTR_LANES(16)
#endif
#undef WEAKTR_LANES
#endif

}  // namespace weaktr
