// The hot code of fuse_heads.hpp, compiled once for each instruction set (-DWEAKTR_ISA=name). Like
// dense_crf_isa.cpp this object defines no symbols that others could pick up.

#include "fuse_heads.hpp"
#include "query_tiles.hpp"

namespace weaktr {
namespace WEAKTR_ISA {
namespace {

WEAKTR_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Queries first ... first + 63 of map m as [group][d][query of the group], times scale * log2(e);
// and -log2(e) lse. Rows beyond the last are those of the last.
void pack(const FusedMaps& maps, int64_t m, int64_t first, float* queries, float* offsets) {
  typedef Lanes<4>::Float Four;
  const Four factor = filled<Four>(maps.scale * kLog2E);
  for (int64_t i = 0; i < kQueries; i += 4) {
    const float* rows[4];
    for (int64_t r = 0; r < 4; ++r) {
      const int64_t row = smaller(first + i + r, maps.patches - 1);
      rows[r] = maps.q.data + m * maps.q.map_stride + row * maps.q.row_stride;
      offsets[i + r] = -kLog2E * maps.lse.data[m * maps.lse.map_stride + row * maps.lse.row_stride];
    }
    float* to = queries + i / kGroup * kGroup * maps.width + i % kGroup;
    for (int64_t t = 0; t < maps.width; ++t)
      store(to + t * kGroup, Four{rows[0][t], rows[1][t], rows[2][t], rows[3][t]} * factor);
  }
}

// total[j][i] += weight * A[i, j] for the keys of a tile and the queries of a group.
WEAKTR_INLINE void add_tile(const float* queries, const float* offsets,
                            const float* const (&keys)[kKeys], int64_t width, float weight,
                            float* total) {
  Wide sums[kKeys][kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const Wide offset = load<Wide>(offsets + v * kLanes);
    for (int j = 0; j < kKeys; ++j) sums[j][v] = offset;
  }
  add_products(keys, 1, queries, kGroup, width, sums);
  for (int j = 0; j < kKeys; ++j)
    for (int v = 0; v < kVectors; ++v) {
      float* to = total + j * kQueries + v * kLanes;
      store(to, fused(filled<Wide>(weight), any_power_of_two(sums[j][v]), load<Wide>(to)));
    }
}

// total[j][i] += w_m A_m[i, j] for 64 queries and all keys of map m.
void add_map(const FusedMaps& maps, int64_t m, const float* queries, const float* offsets,
             float* total) {
  const float weight = maps.weights[m] / static_cast<float>(maps.maps);
  for (int64_t j = 0; j < maps.patches; j += kKeys) {
    const float* keys[kKeys];
    for (int64_t i = 0; i < kKeys; ++i)
      keys[i] = maps.k.data + m * maps.k.map_stride +
                smaller(j + i, maps.patches - 1) * maps.k.row_stride;
    for (int64_t i = 0; i < kQueries; i += kGroup)
      add_tile(queries + i * maps.width, offsets + i, keys, maps.width, weight,
               total + j * kQueries + i);
  }
}

// fine[first + i, c] = sum over j of total[j][i] values[j, c]
void spread(const FusedMaps& maps, int64_t first, const float* total) {
  const int64_t count = smaller(kQueries, maps.patches - first);
  for (int64_t c = 0; c < maps.channels; ++c) {
    Wide sums[kQueries / kLanes] = {};
    for (int64_t j = 0; j < maps.patches; ++j) {
      const Wide value = filled<Wide>(maps.values[j * maps.channels + c]);
      for (int v = 0; v < kQueries / kLanes; ++v)
        sums[v] = fused(value, load<Wide>(total + j * kQueries + v * kLanes), sums[v]);
    }
    float column[kQueries];
    for (int v = 0; v < kQueries / kLanes; ++v) store(column + v * kLanes, sums[v]);
    for (int64_t i = 0; i < count; ++i) maps.fine[(first + i) * maps.channels + c] = column[i];
  }
}

}  // namespace

void fuse_rows(const FusedMaps& maps, int64_t first, float* workspace) {
  float* queries = workspace;
  float* offsets = queries + kQueries * maps.width;
  float* total = offsets + kQueries;
  const int64_t size = fuse_workspace(maps) - (total - workspace);
  for (int64_t i = 0; i < size; ++i) total[i] = 0;
  for (int64_t m = 0; m < maps.maps; ++m) {
    pack(maps, m, first, queries, offsets);
    add_map(maps, m, queries, offsets, total);
  }
  spread(maps, first, total);
}

}  // namespace WEAKTR_ISA
}  // namespace weaktr
