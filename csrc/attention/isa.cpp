// The hot code of attention.hpp, compiled once for each instruction set (-DWEAKTR_ISA=name). Like
// dense_crf/cpu/isa.cpp this object defines no symbols that others could pick up.

#include <cmath>

#include "attention/attention.hpp"
#include "common/query_tiles.hpp"

namespace weaktr {
namespace WEAKTR_ISA {
namespace {

// ---- float32 -> numbers

WEAKTR_INLINE void put(float x, float& to) { to = x; }
WEAKTR_INLINE void put(float x, Bfloat16& to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t even = bits >> 16 & 1;
  to = static_cast<Bfloat16>(x == x ? (bits + 0x7fff + even) >> 16 : 0x7fc0);
}

// ---- one map

struct Map {
  const Number *q, *k, *v;  // of the first token
  Number* out;
  float* lse;
  float* class_rows = nullptr;
  float* column_sums = nullptr;
};

Map find_map(const Attention<Number>& maps, int64_t map, int64_t group) {
  const int64_t image = map / maps.heads, head = map % maps.heads;
  const int64_t groups = divide_up(maps.tokens, kGroupQueries);
  auto first = [&](const auto& rows) { return rows.data + image * rows.image + head * rows.head; };
  float* lse = maps.lse + map * maps.tokens;
  Map one_map{first(maps.q), first(maps.k), first(maps.v), first(maps.out), lse};
  if (maps.class_rows) one_map.class_rows = maps.class_rows + map * maps.classes * maps.patches;
  if (maps.column_sums)
    one_map.column_sums = maps.column_sums + (map * groups + group) * maps.patches;
  return one_map;
}

// What 64 queries are worked on in.
struct Space {
  int64_t steps, keys;             // d / kPair; N, padded to whole tiles
  float* queries;                  // [group][steps][query of the group]
  float* scores;                   // [keys, 64]
  float* result;                   // [d, 64]
  float *largest, *sums, *shares;  // [64]
  float* packed_keys;              // [keys, steps]
  float* packed_values;            // [keys / kPair, d]

  Space(const Attention<Number>& maps, float* memory) {
    steps = maps.width / kPair, keys = divide_up(maps.tokens, kKeys) * kKeys;
    queries = memory;
    scores = queries + kQueries * steps;
    result = scores + kQueries * keys;
    largest = result + kQueries * maps.width;
    sums = largest + kQueries, shares = sums + kQueries;
    packed_keys = shares + kQueries;
    packed_values = packed_keys + keys * steps;
  }
};

// Keys and values side by side. Keys beyond the last are those of the last; a value without a
// partner gets itself, times a weight of zero.
void pack_map(const Attention<Number>& maps, const Map& map, const Space& space) {
  for (int64_t j = 0; j < space.keys; ++j) {
    const Number* key = map.k + smaller(j, maps.tokens - 1) * maps.k.token;
    std::memcpy(space.packed_keys + j * space.steps, key, sizeof(float) * space.steps);
  }
  for (int64_t j = 0; j < maps.tokens; j += kPair) {
    const Number* value = map.v + j * maps.v.token;
    const Number* next = map.v + smaller(j + kPair - 1, maps.tokens - 1) * maps.v.token;
    float* to = space.packed_values + j / kPair * maps.width;
    for (int64_t c = 0; c < maps.width; ++c) to[c] = together(value + c, next + c);
  }
}

// scores[j][i] = q_i . k_j, and the largest of each query.
void score(const Space& space) {
  for (int64_t i = 0; i < kQueries; i += kGroup) {
    Wide largest[kVectors];
    for (int v = 0; v < kVectors; ++v) largest[v] = filled<Wide>(-INFINITY);
    for (int64_t j = 0; j < space.keys; j += kKeys) {
      const float* rows[kKeys];
      for (int64_t r = 0; r < kKeys; ++r) rows[r] = space.packed_keys + (j + r) * space.steps;
      Wide sums[kKeys][kVectors] = {};
      add_products(rows, 1, space.queries + i * space.steps, kGroup, space.steps, sums);
      for (int r = 0; r < kKeys; ++r)
        for (int v = 0; v < kVectors; ++v) {
          store(space.scores + (j + r) * kQueries + i + v * kLanes, sums[r][v]);
          largest[v] = larger(largest[v], sums[r][v]);
        }
    }
    for (int v = 0; v < kVectors; ++v) store(space.largest + i + v * kLanes, largest[v]);
  }
}

// scores -> exp((score - largest) scale), their sums, and log-sum-exp of the first `count` queries.
void exponentiate(const Attention<Number>& maps, const Space& space, int64_t count, float* lse) {
  const float factor = maps.scale * kLog2E;
  for (int64_t i = 0; i < kQueries; i += kLanes) {
    const Wide offset = load<Wide>(space.largest + i) * -factor;
    Wide sum = {};
    for (int64_t j = 0; j < maps.tokens; ++j) {
      float* at = space.scores + j * kQueries + i;
      const Wide weight = any_power_of_two(fused(load<Wide>(at), filled<Wide>(factor), offset));
      store(at, weight);
      sum = sum + weight;
    }
    store(space.sums + i, sum);
  }
  for (int64_t i = 0; i < count; ++i)
    lse[i] = (std::log2(space.sums[i]) + space.largest[i] * factor) / kLog2E;
}

// Class rows and column sums, as far as queries first ... first + count - 1 have part in them.
void note_statistics(const Attention<Number>& maps, const Map& map, const Space& space,
                     int64_t first, int64_t count) {
  const int64_t begin = maps.tokens - maps.patches;  // the first patch
  const float* weights = space.scores + begin * kQueries;
  for (int64_t i = 0; i < kQueries; ++i)
    space.shares[i] = i < count && first + i >= begin ? 1.0f / space.sums[i] : 0.0f;
  for (int64_t i = 0; i < count && first + i < maps.classes; ++i) {
    float* row = map.class_rows + (first + i) * maps.patches;
    const float share = 1.0f / space.sums[i];
    for (int64_t j = 0; j < maps.patches; ++j) row[j] = weights[j * kQueries + i] * share;
  }
  if (!map.column_sums || first + count <= begin) return;
  for (int64_t j = 0; j < maps.patches; ++j) {
    Wide sum = {};
    for (int64_t i = 0; i < kQueries; i += kLanes)
      sum = fused(load<Wide>(weights + j * kQueries + i), load<Wide>(space.shares + i), sum);
    map.column_sums[j] += sum_of_lanes(sum);
  }
}

// Weights of two keys in the four bytes of a step, one after the other in place.
void pair_weights(const Attention<Number>& maps, const Space& space) {
#if defined(__AVX512BF16__)
  auto half = [&](int64_t j, int64_t i) {
    const Wide weight = load<Wide>(space.scores + j * kQueries + i);
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)weight));
  };
  for (int64_t j = 0; j < maps.tokens; j += kPair)
    for (int64_t i = 0; i < kQueries; i += kLanes) {
      __m512i both = half(j, i);
      if (j + 1 < maps.tokens) both = _mm512_or_si512(both, _mm512_slli_epi32(half(j + 1, i), 16));
      std::memcpy(space.scores + j / kPair * kQueries + i, &both, sizeof both);
    }
#else
  (void)maps, (void)space;
#endif
}

// result[channel ...][i] = sum over j of weights[j][i] values[j][channel ...] / sum of the weights
template <int Channels>
WEAKTR_INLINE void mix(const Attention<Number>& maps, const Space& space, int64_t channel) {
  const float* values[Channels];
  for (int c = 0; c < Channels; ++c) values[c] = space.packed_values + channel + c;
  for (int64_t i = 0; i < kQueries; i += kGroup) {
    Wide sums[Channels][kVectors] = {};
    add_products(values, maps.width, space.scores + i, kQueries, divide_up(maps.tokens, kPair),
                 sums);
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = i + v * kLanes;
      const Wide total = load<Wide>(space.sums + at);
      for (int c = 0; c < Channels; ++c)
        store(space.result + (channel + c) * kQueries + at, sums[c][v] / total);
    }
  }
}

void mix_values(const Attention<Number>& maps, const Space& space) {
  constexpr int kChannels = 6;
  int64_t channel = 0;
  for (; channel + kChannels <= maps.width; channel += kChannels)
    mix<kChannels>(maps, space, channel);
  for (; channel + 2 <= maps.width; channel += 2) mix<2>(maps, space, channel);
  for (; channel < maps.width; ++channel) mix<1>(maps, space, channel);
}

}  // namespace

void attend(const Attention<Number>& maps, int64_t number, int64_t group, float* workspace) {
  const Map map = find_map(maps, number, group);
  const Space space(maps, workspace);
  pack_map(maps, map, space);
  const int64_t last = smaller(maps.tokens, (group + 1) * kGroupQueries);
  for (int64_t first = group * kGroupQueries; first < last; first += kQueries) {
    const int64_t count = smaller(kQueries, last - first);
    pack_queries(
        [&](int64_t i) { return map.q + smaller(first + i, maps.tokens - 1) * maps.q.token; },
        space.steps, space.queries);
    score(space);
    exponentiate(maps, space, count, map.lse + first);
    if (maps.patches) note_statistics(maps, map, space, first, count);
    pair_weights(maps, space);
    mix_values(maps, space);
    for (int64_t i = 0; i < count; ++i) {
      Number* row = map.out + (first + i) * maps.out.token;
      for (int64_t c = 0; c < maps.width; ++c) put(space.result[c * kQueries + i], row[c]);
    }
  }
}

}  // namespace WEAKTR_ISA
}  // namespace weaktr
