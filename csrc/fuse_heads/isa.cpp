// The hot code of fuse_heads.hpp, compiled once for each instruction set (-DWEAKTR_ISA=name). Like
// dense_crf/cpu/isa.cpp this object defines no symbols that others could pick up.

#include "common/query_tiles.hpp"
#include "fuse_heads/fuse_heads.hpp"

namespace weaktr {
namespace WEAKTR_ISA {
namespace {

typedef FusedMaps<Number> Maps;

int64_t steps_of(const Maps& maps) { return maps.width / kPair; }

// Queries first ... first + 63 of map m, and -log2(e) lse. Rows beyond the last are those of the
// last.
void pack(const Maps& maps, int64_t m, int64_t first, float* queries, float* offsets) {
  auto row = [&](int64_t i) { return smaller(first + i, maps.patches - 1); };
  const Number* own = maps.q.data + m * maps.q.map_stride;
  pack_queries([&](int64_t i) { return own + row(i) * maps.q.row_stride; }, steps_of(maps),
               queries);
  const float* lse = maps.lse.data + m * maps.lse.map_stride;
  for (int64_t i = 0; i < kQueries; ++i) offsets[i] = -kLog2E * lse[row(i) * maps.lse.row_stride];
}

// total[j][i] += weight * A[i, j] for the keys of a tile and the queries of a group.
WEAKTR_INLINE void add_tile(const float* queries, const float* offsets,
                            const float* const (&keys)[kKeys], int64_t steps, float factor,
                            float weight, float* total) {
  Wide sums[kKeys][kVectors] = {};
  add_products(keys, 1, queries, kGroup, steps, sums);
  for (int j = 0; j < kKeys; ++j)
    for (int v = 0; v < kVectors; ++v) {
      float* to = total + j * kQueries + v * kLanes;
      const Wide offset = load<Wide>(offsets + v * kLanes);
      const Wide power = any_power_of_two(fused(sums[j][v], filled<Wide>(factor), offset));
      store(to, fused(filled<Wide>(weight), power, load<Wide>(to)));
    }
}

// total[j][i] += w_m A_m[i, used[j]] for 64 queries and all used keys of map m.
void add_map(const Maps& maps, int64_t m, const float* queries, const float* offsets,
             float* total) {
  const int64_t steps = steps_of(maps);
  const float weight = maps.weights[m] / static_cast<float>(maps.maps);
  const float factor = maps.scale * kLog2E;
  for (int64_t j = 0; j < maps.keys; j += kKeys) {
    const float* keys[kKeys];  // in steps of four bytes
    for (int64_t i = 0; i < kKeys; ++i) {
      const int64_t key = maps.used[smaller(j + i, maps.keys - 1)];
      keys[i] = reinterpret_cast<const float*>(maps.k.data + m * maps.k.map_stride +
                                               key * maps.k.row_stride);
    }
    for (int64_t i = 0; i < kQueries; i += kGroup)
      add_tile(queries + i * steps, offsets + i, keys, steps, factor, weight,
               total + j * kQueries + i);
  }
}

// fine[first + i, c] = sum over j of total[j][i] values[used[j], c]
void spread(const Maps& maps, int64_t first, const float* total) {
  const int64_t count = smaller(kQueries, maps.patches - first);
  for (int64_t c = 0; c < maps.channels; ++c) {
    Wide sums[kQueries / kLanes] = {};
    for (int64_t j = 0; j < maps.keys; ++j) {
      const Wide value = filled<Wide>(maps.values[maps.used[j] * maps.channels + c]);
      for (int v = 0; v < kQueries / kLanes; ++v)
        sums[v] = fused(value, load<Wide>(total + j * kQueries + v * kLanes), sums[v]);
    }
    float column[kQueries];
    for (int v = 0; v < kQueries / kLanes; ++v) store(column + v * kLanes, sums[v]);
    for (int64_t i = 0; i < count; ++i) maps.fine[(first + i) * maps.channels + c] = column[i];
  }
}

}  // namespace

void fuse_rows(const Maps& maps, int64_t first, float* workspace) {
  float* queries = workspace;
  float* offsets = queries + kQueries * steps_of(maps);
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
