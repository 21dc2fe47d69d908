// Arithmetic without denormal numbers, those below 1.2e-38.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace weaktr {

// Lets this thread treat denormal numbers as zero: they cost a hundred times as much.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

}  // namespace weaktr
