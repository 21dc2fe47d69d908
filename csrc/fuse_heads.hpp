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

#include "query_blocks.hpp"

namespace weaktr {

// Rows of float32, `d` numbers each, lying side by side; maps and rows at any distance.
struct Rows {
  const float* data = nullptr;
  int64_t map_stride = 0, row_stride = 0;  // in numbers
};

// The maps of one image, of its P patch tokens.
struct FusedMaps {
  Rows q, k;                       // [M, P, d]
  Rows lse;                        // [M, P]: row_stride from number to number
  const float* weights = nullptr;  // [M]
  const float* values = nullptr;   // [P, C']
  float* fine = nullptr;           // [P, C'], the result
  int64_t maps = 0, patches = 0, width = 0, channels = 0;  // M, P, d, C'
  float scale = 0;
};

// Floats of work space that a thread needs.
WEAKTR_INLINE int64_t fuse_workspace(const FusedMaps& maps) {
  const int64_t keys = blocks_of(kKeys, maps.patches) * kKeys;
  return kQueries * (maps.width + keys + 1);
}

// fine[first ... first + 63], in code for one instruction set.
#define WEAKTR_FUSE_ROWS(isa)                                             \
  namespace isa {                                                         \
  void fuse_rows(const FusedMaps& maps, int64_t first, float* workspace); \
  }
WEAKTR_FUSE_ROWS(scalar)
WEAKTR_FUSE_ROWS(avx2)
WEAKTR_FUSE_ROWS(avx512)
WEAKTR_FUSE_ROWS(neon)
#undef WEAKTR_FUSE_ROWS

// Computes `fine` on `threads` threads; it does not depend on how many. `isa`: "auto" or one of
// `isa_levels`.
// Throws std::invalid_argument for an unknown `isa`, std::bad_alloc.
void fuse_heads_cpu(const FusedMaps& maps, int threads, const std::string& isa);

}  // namespace weaktr
