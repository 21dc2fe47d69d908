// The permutohedral lattice's geometry: which simplex encloses a point, and what its vertices are
// called. One text for the CPU (float, or vectors of floats: one point a lane) and for CUDA.
//
// Vertices are points with d + 1 integer coordinates k_0 ... k_d that are equal modulo d + 1 and
// sum to 0. Corner r of a simplex has remainder r. Arithmetic is float32 without fused
// multiply-add (compile with -ffp-contract=off, -fmad=false), so that all implementations find
// the same simplices.
//
// Source: Adams, Baek, Davis: "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
// Eurographics 2010, sections 3.1 to 3.4.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/lanes.hpp"

namespace weaktr {

constexpr int kMaxDimensions = 8;
// float32 counts cells exactly up to here; elevated coordinates must stay below.
constexpr float kLargestCoordinate = 4194304.0f;  // 2^22
// Points are padded with zero features to a multiple of this, as pydensecrf does: the padding's
// vertices exist and pass on what reaches them, but nothing is splatted onto them.
constexpr int kPadding = 4;

// Nearest integer, halves to even. |x| < 2^22.
template <class Float>
WEAKTR_INLINE Float round_half_even(Float x) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: no bits are left for fractions
  return (x + magic) - magic;
}

// ---- geometry

// What features are multiplied with before `enclosing_simplex`, so that the blur has unit
// deviation.
template <int D>
WEAKTR_INLINE float position_scale(int i) {
  const float deviation = static_cast<float>(std::sqrt(2.0 / 3.0) * (D + 1));
  return static_cast<float>(1.0 / std::sqrt((i + 1.0) * (i + 2.0)) * deviation);
}

// A simplex, by its corner 0 and the way from corner to corner.
template <int D, class Float, class Int>
struct Simplex {
  Int first;             // k_0 of corner 0
  Int digits[D];         // [i] = (k_i - k_0) / (D + 1) of corner 0, i = 1 ... D - 1; [0] unused
  Int dropped[D + 1];    // going from corner r - 1 to r adds 1 to every coordinate, and takes
                         // D + 1 from coordinate dropped[r], r = 1 ... D; [0] unused
  Float weights[D + 1];  // barycentric, of corner 0 ... D
};

// The elevated point el (in the plane sum = 0) of a scaled position.
template <int D, class Float>
WEAKTR_INLINE void elevate(const Float (&position)[D], Float (&elevated)[D + 1]) {
  Float sum = {};
  for (int j = D; j > 0; --j) {
    const Float part = position[j - 1];
    elevated[j] = sum - static_cast<float>(j) * part;
    sum = sum + part;
  }
  elevated[0] = sum;
}

// The simplex that encloses a point; position = features * position_scale.
template <int D, class Float, class Int>
WEAKTR_INLINE void enclosing_simplex(const Float (&position)[D], Simplex<D, Float, Int>& simplex) {
  constexpr float size = D + 1, inverse = 1.0f / (D + 1);
  Float elevated[D + 1], nearest[D + 1], distance[D + 1];
  elevate<D>(position, elevated);
  Int rank[D + 1], excess = {};
  for (int i = 0; i <= D; ++i) {
    const Float cell = round_half_even(inverse * elevated[i]);
    nearest[i] = cell * size;
    Int whole;
    convert(cell, whole);
    excess = excess + whole;
    distance[i] = elevated[i] - nearest[i];
  }
  for (int i = 0; i <= D; ++i) rank[i] = excess;
  for (int i = 0; i < D; ++i)
    for (int j = i + 1; j <= D; ++j) {
      const Int less = less_mask(distance[i], distance[j]);  // -1 or 0
      rank[i] = rank[i] - less;
      rank[j] = rank[j] + 1 + less;
    }
  Float share[D + 1];
  for (int i = 0; i <= D; ++i) {
    const Int below = negative_mask(rank[i]), above = negative_mask(D - rank[i]);
    const Int carry = (below & (D + 1)) - (above & (D + 1));
    Float shift;
    convert(carry, shift);
    rank[i] = rank[i] + carry;
    nearest[i] = nearest[i] + shift;
    share[i] = (elevated[i] - nearest[i]) * inverse;
  }
  Float by_rank[D + 1];
  Int of_rank[D + 1];
  for (int r = 0; r <= D; ++r) {
    by_rank[r] = share[D];
    of_rank[r] = Int{} + D;
    for (int i = 0; i < D; ++i) {
      const Int here = equal_mask(rank[i], r);
      by_rank[r] = choose(here, share[i], by_rank[r]);
      of_rank[r] = choose(here, Int{} + i, of_rank[r]);
    }
  }
  simplex.weights[0] = by_rank[D] + (1.0f - by_rank[0]);
  for (int r = 1; r <= D; ++r) {
    simplex.weights[r] = by_rank[D - r] - by_rank[D - r + 1];
    simplex.dropped[r] = of_rank[D - r + 1];
  }
  convert(nearest[0], simplex.first);
  for (int i = 1; i < D; ++i)
    convert(round_half_even((nearest[i] - nearest[0]) * inverse), simplex.digits[i]);
}

// ---- keys

// Names vertices by one unsigned integer: k_0 and the digits (k_i - k_0) / (d + 1), i = 1 ... d -
// 1, side by side in as many bits as their ranges need, with room for the steps to neighbours.
template <class Key>
struct KeyPacking {
  int bits = 0;                         // of a whole key
  int shift[kMaxDimensions] = {};       // where each field begins; field 0 is k_0
  int64_t lowest[kMaxDimensions] = {};  // what is taken from each field, so that none is negative
  Key corner[kMaxDimensions + 1] = {};  // key(corner r) - key(corner r - 1), [i]: i was dropped

  // key(neighbour) - key along blur axis j; the neighbour on the other side is at minus that.
  WEAKTR_MEMBER Key axis_step(int j) const { return corner[j]; }

  // The key of corner 0; `Digits` is indexable like Simplex::digits, with integers.
  template <int D, class Digits>
  WEAKTR_MEMBER Key pack(int64_t first, const Digits& digits) const {
    Key key = static_cast<Key>(first - lowest[0]);
    for (int i = 1; i < D; ++i)
      key += static_cast<Key>(static_cast<int64_t>(digits[i]) - lowest[i]) << shift[i];
    return key;
  }
};

// Bits that tell 0 ... range apart.
WEAKTR_INLINE int bits_for(int64_t range) {
  int bits = 1;
  while (bits < 63 && (int64_t{1} << bits) <= range) ++bits;
  return bits;
}

// Lays out the keys for scaled positions within [low[i], high[i]]; 0 is added for the padding.
// Returns false where elevated coordinates leave float32's whole numbers (kLargestCoordinate).
// `packing.bits` says how wide a key had to be; above 8 * sizeof(Key) the packing is of no use.
template <int D, class Key>
WEAKTR_INLINE bool make_packing(const float (&low)[D], const float (&high)[D],
                                KeyPacking<Key>& packing) {
  constexpr int size = D + 1;
  double below = 0, above = 0;  // of sum over i' < i of the positions
  for (int i = 1; i <= D; ++i) {
    const double least = low[i - 1] < 0 ? low[i - 1] : 0, most = high[i - 1] > 0 ? high[i - 1] : 0;
    // el_i - el_0 = -(sum over i' < i - 1) - (i + 1) position[i - 1]
    if (!((i + 1) * (most - least) + above - below < kLargestCoordinate)) return false;
    if (i < D) {
      packing.lowest[i] = static_cast<int64_t>(std::floor((-above - (i + 1) * most) / size)) - 4;
      const int64_t top = static_cast<int64_t>(std::ceil((-below - (i + 1) * least) / size)) + 4;
      packing.shift[i] = bits_for(top - packing.lowest[i]);  // for now its width
    }
    below += least, above += most;
  }
  if (!(above - below < kLargestCoordinate)) return false;
  packing.lowest[0] = static_cast<int64_t>(std::floor(below)) - 3 * size;
  const int64_t top = static_cast<int64_t>(std::ceil(above)) + 3 * size;
  packing.bits = bits_for(top - packing.lowest[0]);
  for (int i = D - 1; i >= 1; --i) {
    const int width = packing.shift[i];
    packing.shift[i] = packing.bits;
    packing.bits += width;
  }
  if (packing.bits > static_cast<int>(8 * sizeof(Key))) return true;
  // every coordinate + 1: k_0 grows, the differences stay; then d + 1 less on the dropped one
  for (int i = 0; i <= D; ++i) packing.corner[i] = 1;
  packing.corner[0] -= size;
  for (int i = 1; i < D; ++i) {
    packing.corner[0] += Key{1} << packing.shift[i];
    packing.corner[i] -= Key{1} << packing.shift[i];
  }
  return true;
}

}  // namespace weaktr
