// Vectors of floats in registers: their lanes, exponentials, sums. Included once per instruction
// set.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/lanes.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace weaktr {
namespace WEAKTR_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef Lanes<kLanes>::Float Wide;
typedef Lanes<kLanes>::Int WideInt;

// ---- a * b + c, fused where the instruction set has it

WEAKTR_INLINE float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
WEAKTR_INLINE Lanes<4>::Float fused(Lanes<4>::Float a, Lanes<4>::Float b, Lanes<4>::Float c) {
#if defined(__FMA__)
  return (Lanes<4>::Float)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#elif defined(__aarch64__)
  return (Lanes<4>::Float)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
#if defined(__AVX2__)
WEAKTR_INLINE Lanes<8>::Float fused(Lanes<8>::Float a, Lanes<8>::Float b, Lanes<8>::Float c) {
  return (Lanes<8>::Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#endif
#if defined(__AVX512F__)
WEAKTR_INLINE Lanes<16>::Float fused(Lanes<16>::Float a, Lanes<16>::Float b, Lanes<16>::Float c) {
  return (Lanes<16>::Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#endif

// The same number in every lane.
WEAKTR_INLINE void fill(float x, float& out) { out = x; }
WEAKTR_INLINE void fill(float x, Lanes<4>::Float& out) { out = Lanes<4>::Float{x, x, x, x}; }
#if defined(__AVX2__)
WEAKTR_INLINE void fill(float x, Lanes<8>::Float& out) { out = (Lanes<8>::Float)_mm256_set1_ps(x); }
#endif
#if defined(__AVX512F__)
WEAKTR_INLINE void fill(float x, Lanes<16>::Float& out) {
  out = (Lanes<16>::Float)_mm512_set1_ps(x);
}
#endif
template <class T>
WEAKTR_INLINE T filled(float x) {
  T value;
  fill(x, value);
  return value;
}

template <class T>
WEAKTR_INLINE T load(const float* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class T>
WEAKTR_INLINE void store(float* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

WEAKTR_INLINE Wide larger(Wide a, Wide b) {
#if defined(__AVX512F__)
  return (Wide)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Wide)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return choose(less_mask(a, b), b, a);
#endif
}

WEAKTR_INLINE bool any_above(Wide x, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x, _mm256_set1_ps(bound), _CMP_GT_OQ)) != 0;
#else
  return x[0] > bound || x[1] > bound || x[2] > bound || x[3] > bound;
#endif
}

// `count` < kLanes floats, and `none` in the lanes after them; nothing else is read.
WEAKTR_INLINE Wide load_some(const float* from, int count, float none) {
#if defined(__AVX512F__)
  const __mmask16 some = static_cast<__mmask16>((1u << count) - 1);
  return (Wide)_mm512_mask_loadu_ps((__m512)filled<Wide>(none), some, from);
#else
  Wide loaded = filled<Wide>(none);
  for (int lane = 0; lane < count; ++lane) loaded[lane] = from[lane];
  return loaded;
#endif
}

// Lane i: lane at[i] of x.
WEAKTR_INLINE Wide lanes_at(Wide x, const uint8_t* at) {
#if defined(__AVX512F__)
  const __m128i lanes = _mm_load_si128(reinterpret_cast<const __m128i*>(at));
  return (Wide)_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(lanes), (__m512)x);
#elif defined(__AVX2__)
  const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
  return (Wide)_mm256_permutevar8x32_ps((__m256)x, _mm256_cvtepu8_epi32(lanes));
#else
  Wide gathered;
  for (int lane = 0; lane < kLanes; ++lane) gathered[lane] = x[at[lane]];
  return gathered;
#endif
}

// ---- exponentials

constexpr float kRounder = 12582912.0f;  // x + this - this is x rounded to a whole number

// 2^f for f in [-1/2, 1/2], relative error below 8e-8: near-minimax of degree 6.
WEAKTR_INLINE Wide power_of_fraction(Wide f) {
  Wide p = filled<Wide>(1.535332558e-4f);
  p = fused(p, f, filled<Wide>(1.339887618e-3f));
  p = fused(p, f, filled<Wide>(9.618437849e-3f));
  p = fused(p, f, filled<Wide>(5.550332367e-2f));
  p = fused(p, f, filled<Wide>(2.402264774e-1f));
  p = fused(p, f, filled<Wide>(6.931471825e-1f));
  return fused(p, f, filled<Wide>(1.0f));
}

// p * 2^n, where `shifted` is n + kRounder.
WEAKTR_INLINE Wide times_power(Wide p, Wide shifted) {
  WideInt bits, exponent;
  std::memcpy(&bits, &p, sizeof bits);
  std::memcpy(&exponent, &shifted, sizeof exponent);
  bits = bits + (exponent << 23);
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

// 2^x for x in -126 ... 128, as exact. 2^128 is infinity; NaN stays NaN.
WEAKTR_INLINE Wide power_of_two(Wide x) {
  const Wide shifted = x + kRounder;
  return times_power(power_of_fraction(x - (shifted - kRounder)), shifted);
}

// e^x for x <= 0, to the precision of x * log2(e); below -87 the smallest normal numbers.
WEAKTR_INLINE Wide exponential(Wide x) {
  const Wide log2e = filled<Wide>(1.44269504f);
  x = larger(x, filled<Wide>(-87.0f));
  const Wide shifted = fused(x, log2e, filled<Wide>(kRounder));
  return times_power(power_of_fraction(fused(x, log2e, kRounder - shifted)), shifted);
}

// 1 / x, to a few units in the last place.
WEAKTR_INLINE Wide reciprocal(Wide x) {
#if defined(__AVX512F__)
  const Wide guess = (Wide)_mm512_rcp14_ps((__m512)x);
  return guess * (2.0f - x * guess);
#elif defined(__AVX2__)
  const Wide guess = (Wide)_mm256_rcp_ps((__m256)x);
  return guess * (2.0f - x * guess);
#else
  return 1.0f / x;
#endif
}

WEAKTR_INLINE float sum_of_lanes(Wide x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#elif defined(__AVX2__)
  const __m128 half =
      _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
#else
  return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

// ---- squares of kLanes rows and kLanes lanes

// Lanes of two rows, to be put side by side: those whose number has no bit `Distance`, and the
// others.
template <int Distance>
struct LanesOfPair {
  alignas(64) int without[kLanes] = {}, with[kLanes] = {};
  constexpr LanesOfPair() {
    for (int lane = 0; lane < kLanes; ++lane) {
      without[lane] = lane & Distance ? kLanes + lane - Distance : lane;
      with[lane] = without[lane] + Distance;
    }
  }
};
template <int Distance>
struct Pair {
  Wide without, with;
  WEAKTR_MEMBER Pair(Wide a, Wide b) {
    static constexpr LanesOfPair<Distance> lanes;
#if defined(__AVX512F__)
    without = (Wide)_mm512_permutex2var_ps((__m512)a, _mm512_load_si512(lanes.without), (__m512)b);
    with = (Wide)_mm512_permutex2var_ps((__m512)a, _mm512_load_si512(lanes.with), (__m512)b);
#else
    for (int lane = 0; lane < kLanes; ++lane) {
      const int one = lanes.without[lane], other = lanes.with[lane];
      without[lane] = one < kLanes ? a[one] : b[one - kLanes];
      with[lane] = other < kLanes ? a[other] : b[other - kLanes];
    }
#endif
  }
};

// Swaps rows and lanes.
template <int Distance = kLanes / 2>
WEAKTR_INLINE void transpose(Wide (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & Distance) continue;
    const Pair<Distance> pair(rows[i], rows[i + Distance]);
    rows[i] = pair.without;
    rows[i + Distance] = pair.with;
  }
  if constexpr (Distance > 1) transpose<Distance / 2>(rows);
}

// Lane i: all lanes of row i, joined. Overwrites the rows.
template <int Distance = kLanes / 2, class Join>
WEAKTR_INLINE Wide join_lanes(Wide (&rows)[kLanes], const Join& join) {
#pragma GCC unroll 16
  for (int i = 0; i < Distance; ++i) {
    const Pair<Distance> pair(rows[i], rows[i + Distance]);
    rows[i] = join(pair.without, pair.with);
  }
  if constexpr (Distance > 1) return join_lanes<Distance / 2>(rows, join);
  return rows[0];
}

}  // namespace WEAKTR_ISA
}  // namespace weaktr
