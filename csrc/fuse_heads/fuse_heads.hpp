// fuse_heads: all attention maps of an image, weighted and multiplied by values.
//
//   A_m[i, j] = exp(q_mi . k_mj scale - lse_mi)
//   fine[i, c] = 1/M sum over m of w_m sum over j of A_m[i, j] values[j, c]
//
// A tile of a map is added to the mean of all maps while it is in registers; of that mean 64 rows
// are in memory at one time, of a map nothing.
//
// Source: arXiv 2304.01184, section 3.2.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/query_sizes.hpp"

namespace weaktr {

// Rows of a map, numbers side by side; maps and rows at any distance. Those of bfloat16 begin at
// multiples of four bytes.
template <class Number>
struct MapRows {
  const Number* data = nullptr;
  int64_t map_stride = 0, row_stride = 0;  // in numbers
};

// The maps of one image, of its P patch tokens.
template <class Number>
struct FusedMaps {
  MapRows<Number> q, k;            // [M, P, d]
  MapRows<float> lse;              // [M, P]: row_stride from number to number
  const float* weights = nullptr;  // [M]
  const float* values = nullptr;   // [P, C']
  float* fine = nullptr;           // [P, C'], the result
  const int32_t* used = nullptr;   // the keys j whose values are not all zero; others add nothing
  int64_t maps = 0, patches = 0, width = 0, channels = 0;  // M, P, d, C'
  int64_t keys = 0;                                        // how many are used
  float scale = 0;
};

// Floats of work space that a thread needs.
template <class Number>
WEAKTR_INLINE int64_t fuse_workspace(const FusedMaps<Number>& maps) {
  const int64_t keys = divide_up(maps.keys, kKeys) * kKeys;
  return kQueries * (maps.width + keys + 1);
}

// fine[first ... first + 63], in code for one instruction set.
#define WEAKTR_FUSE_ROWS(isa, Number)                                             \
  namespace isa {                                                                 \
  void fuse_rows(const FusedMaps<Number>& maps, int64_t first, float* workspace); \
  }
WEAKTR_FUSE_ROWS(scalar, float)
WEAKTR_FUSE_ROWS(avx2, float)
WEAKTR_FUSE_ROWS(avx512, float)
WEAKTR_FUSE_ROWS(neon, float)
WEAKTR_FUSE_ROWS(avx512bf16, Bfloat16)
#undef WEAKTR_FUSE_ROWS

// Computes `fine` on `threads` threads; it does not depend on how many. `isa`: "auto" or one of
// `isa_levels`.
// Throws std::invalid_argument for an unknown `isa`, std::bad_alloc.
void fuse_heads_cpu(const FusedMaps<float>& maps, int threads, const std::string& isa);
// The same for maps of bfloat16. Throws std::invalid_argument where `has_bfloat16` is false.
void fuse_heads_cpu(const FusedMaps<Bfloat16>& maps, int threads);

}  // namespace weaktr
