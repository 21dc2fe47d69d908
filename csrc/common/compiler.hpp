// How functions of headers are compiled, on the CPU and for CUDA.
#pragma once

// Internal linkage and always inlined: headers are compiled for several instruction sets that
// end up in one library, and none may use another's code.
#if defined(__CUDACC__)
#define WEAKTR_MEMBER __host__ __device__ __forceinline__
#else
#define WEAKTR_MEMBER inline __attribute__((always_inline))
#endif
#define WEAKTR_INLINE static WEAKTR_MEMBER
