// Tiles of attention scores in registers: some keys times some queries, one query a lane. Included
// once per instruction set.
#pragma once

#include "common/query_sizes.hpp"
#include "common/vectors.hpp"

namespace weaktr {
namespace WEAKTR_ISA {

// A tile is kKeys keys times kVectors vectors of queries: as many as there are registers for.
// Queries are packed as [group][step][query of the group].
#if defined(__AVX512F__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
constexpr int kGroup = kVectors * kLanes;  // queries of a tile
static_assert(kQueries % kGroup == 0, "a block of queries is a whole number of tiles");

constexpr float kLog2E = 1.44269504088896341f;

// A step of a scalar product takes four bytes of each side: one float32, or two bfloat16.
#if defined(__AVX512BF16__)
typedef Bfloat16 Number;
constexpr int64_t kPair = 2;  // numbers that a step takes together
WEAKTR_INLINE Wide step(Wide a, Wide b, Wide sum) {
  return (Wide)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#else
typedef float Number;
constexpr int64_t kPair = 1;
WEAKTR_INLINE Wide step(Wide a, Wide b, Wide sum) { return fused(a, b, sum); }
#endif

// The four bytes of a step.
WEAKTR_INLINE float together(const float* a, const float*) { return *a; }
WEAKTR_INLINE float together(const Bfloat16* a, const Bfloat16* b) {
  const uint32_t bits = *a | static_cast<uint32_t>(*b) << 16;
  float both;
  std::memcpy(&both, &bits, sizeof both);
  return both;
}

WEAKTR_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Packs 64 queries; row(i) is where the numbers of query i lie.
template <class RowOf>
void pack_queries(const RowOf& row_of, int64_t steps, float* queries) {
  for (int64_t i = 0; i < kQueries; ++i) {
    const Number* row = row_of(i);
    float* to = queries + i / kGroup * kGroup * steps + i % kGroup;
    for (int64_t t = 0; t < steps; ++t)
      to[t * kGroup] = together(row + t * kPair, row + t * kPair + kPair - 1);
  }
}

// sums[r][v] += rows[r] . queries, of `steps` steps that lie `apart` in a row.
template <int Rows>
WEAKTR_INLINE void add_products(const float* const (&rows)[Rows], int64_t apart,
                                const float* queries, int64_t query_step, int64_t steps,
                                Wide (&sums)[Rows][kVectors]) {
  for (int64_t t = 0; t < steps; ++t) {
    Wide own[kVectors];
    for (int v = 0; v < kVectors; ++v) own[v] = load<Wide>(queries + t * query_step + v * kLanes);
    for (int r = 0; r < Rows; ++r) {
      const Wide other = filled<Wide>(rows[r][t * apart]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = step(own[v], other, sums[r][v]);
    }
  }
}

// 2^x for any x; NaN stays NaN.
WEAKTR_INLINE Wide any_power_of_two(Wide x) {
#if defined(__AVX512F__)
  const __m512 whole = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
  const Wide part = power_of_fraction(x - (Wide)whole);
  return (Wide)_mm512_scalef_ps((__m512)part, whole);
#else
  const Wide low = filled<Wide>(-126.0f), high = filled<Wide>(128.0f);
#if defined(__AVX2__)  // where one is NaN the second is taken
  x = (Wide)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)x));
#else
  x = choose(less_mask(x, low), low, x);
  x = choose(less_mask(high, x), high, x);
#endif
  return power_of_two(x);
#endif
}

}  // namespace WEAKTR_ISA
}  // namespace weaktr
