// Chains of vertices along the axes of a lattice: in which order they are blurred, and the blur.
// Included once per instruction set.
//
// An axis must be done with a vertex and its neighbours before the next axis comes to them. Axis
// after axis (`rounds` are the axes) every row of a large lattice travels through all caches once
// an axis. `schedule` cuts the axes into rounds that follow each other closely instead.
#pragma once

#include "dense_crf/cpu/memory.hpp"
#include "dense_crf/cpu/rows.hpp"
#include "dense_crf/cpu/team.hpp"

namespace weaktr {
namespace WEAKTR_ISA {

constexpr int64_t kLookAhead = 64;       // rows that are fetched ahead
constexpr int kMostTimes = 64;           // of a schedule
constexpr int64_t kFewBytes = 16 << 20;  // of rows that a cache keeps from one axis to the next

// job(part) for every part of a team.
template <class Job>
WEAKTR_INLINE void in_parallel(Team& team, const Job& job) {
  team.run([](const void* context, int part) { (*static_cast<const Job*>(context))(part); }, &job);
}

// Whether rows of `width` floats are too many for axis after axis.
WEAKTR_INLINE bool worth_scheduling(int64_t vertices, int width, int threads) {
  const int64_t columns = width < kPlane ? width : kPlane;
  return threads == 1 && vertices * columns * 4 > kFewBytes;
}

// The time of each chain of an axis: the latest of its vertices', which is then theirs too.
// `when` [count]: of the chain that each entry belongs to.
inline void time_chains(const Chains& chains, uint8_t* times, uint8_t* when) {
  uint8_t latest = 0;
  for (int64_t i = 0; i < chains.count; ++i) {
    const uint8_t own = times[chains.entries[i] & ~kContinues];
    const uint8_t before = chains.entries[i] & kContinues ? latest : 0;
    when[i] = latest = own > before ? own : before;
  }
  for (int64_t i = chains.count - 1; i >= 0; --i) {
    latest = chains.entries[i + 1] & kContinues ? latest : when[i];
    when[i] = times[chains.entries[i] & ~kContinues] = latest;
  }
}

// Regroups the chains of all axes into rounds: time after time, in each axis after axis. No chain
// comes before those that it needs, whatever times [vertices] the vertices begin with (all below
// `kMostTimes`); how close it comes after them is what good times are for.
inline void schedule(LatticeMemory& memory, uint8_t* times) {
  Lattice& lattice = memory.lattice;
  const int axes = lattice.corners, rounds = kMostTimes * axes;
  int64_t total = 0;
  for (int axis = 0; axis < axes; ++axis) total += lattice.rounds[axis].count;
  uint8_t* const when = memory.scratch.reserve<uint8_t>(total);
  uint32_t* const merged = memory.merged.reserve<uint32_t>(total + kLookAhead);
  const Chains* const by_axis = memory.rounds.extend<Chains>(axes + rounds, axes);
  const auto for_each_entry = [&](auto job) {  // job(entry, its round)
    const uint8_t* at = when;
    for (int axis = 0; axis < axes; ++axis)
      for (int64_t i = 0; i < by_axis[axis].count; ++i)
        job(by_axis[axis].entries[i], *at++ * axes + axis);
  };

  uint8_t* at = when;
  for (int axis = 0; axis < axes; at += by_axis[axis++].count)
    time_chains(by_axis[axis], times, at);
  int64_t place[kMostTimes * (kMaxDimensions + 1)] = {};  // of each round: its size, then its end
  for_each_entry([&](uint32_t, int round) { ++place[round]; });
  Chains* const chains_of_round = memory.rounds.as<Chains>() + axes;
  int64_t before = 0;
  for (int round = 0; round < rounds; ++round) {
    chains_of_round[round] = Chains{merged + before, place[round]};
    place[round] = before;
    before += chains_of_round[round].count;
  }
  for_each_entry([&](uint32_t entry, int round) { merged[place[round]++] = entry; });
  for (int64_t i = 0; i < kLookAhead; ++i) merged[total + i] = 0;
  lattice.rounds = chains_of_round;
  lattice.round_count = rounds;
}

// The row of an entry of `Chains`.
template <int P, class Float>
WEAKTR_INLINE Float* row_of(uint32_t entry, Float* rows) {
  return rows + static_cast<size_t>(entry & ~kContinues) * P;
}
// What a neighbour before an entry is multiplied with: 1/2 if there is one, else 0.
WEAKTR_INLINE float link_of(uint32_t entry) {
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(entry) >> 31) & 0x3F000000u;
  float link;
  std::memcpy(&link, &bits, sizeof link);
  return link;
}

#if defined(__AVX512F__)
// Some rows of P floats in one vector, P = 1, 4 or 8.
template <int P>
struct FewRows {
  static constexpr int count = kLanes / P;
  __m512 values;

  // The rows of `count` entries.
  WEAKTR_MEMBER void load_from(const uint32_t* entries, const float* rows) {
    if constexpr (P == 1) {  // as fast as a gather, and what follows it faster than a scatter
      alignas(64) float one[count];
      for (int i = 0; i < count; ++i) one[i] = *row_of<P>(entries[i], rows);
      values = _mm512_load_ps(one);
    } else if constexpr (P == 4) {
      values = _mm512_castps128_ps512(_mm_load_ps(row_of<P>(entries[0], rows)));
      values = _mm512_insertf32x4(values, _mm_load_ps(row_of<P>(entries[1], rows)), 1);
      values = _mm512_insertf32x4(values, _mm_load_ps(row_of<P>(entries[2], rows)), 2);
      values = _mm512_insertf32x4(values, _mm_load_ps(row_of<P>(entries[3], rows)), 3);
    } else {
      values = _mm512_castps256_ps512(_mm256_load_ps(row_of<P>(entries[0], rows)));
      values = _mm512_insertf32x8(values, _mm256_load_ps(row_of<P>(entries[1], rows)), 1);
    }
  }
  WEAKTR_MEMBER void store_to(const uint32_t* entries, float* rows) const {
    if constexpr (P == 1) {
      alignas(64) float one[count];
      _mm512_store_ps(one, values);
      for (int i = 0; i < count; ++i) *row_of<P>(entries[i], rows) = one[i];
    } else if constexpr (P == 4) {
      _mm_store_ps(row_of<P>(entries[0], rows), _mm512_castps512_ps128(values));
      _mm_store_ps(row_of<P>(entries[1], rows), _mm512_extractf32x4_ps(values, 1));
      _mm_store_ps(row_of<P>(entries[2], rows), _mm512_extractf32x4_ps(values, 2));
      _mm_store_ps(row_of<P>(entries[3], rows), _mm512_extractf32x4_ps(values, 3));
    } else {
      _mm256_store_ps(row_of<P>(entries[0], rows), _mm512_castps512_ps256(values));
      _mm256_store_ps(row_of<P>(entries[1], rows), _mm512_extractf32x8_ps(values, 1));
    }
  }
  // Lanes of the rows whose entries continue a chain.
  WEAKTR_MEMBER static __mmask16 continuing(const uint32_t* entries) {
    if constexpr (P == 1) return _mm512_movepi32_mask(_mm512_loadu_si512(entries));
    const __m512i spread = P == 4
                               ? _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
                               : _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(entries));
    return _mm512_movepi32_mask(_mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(some)));
  }
};
// Of two vectors side by side, the lanes from `By` on.
template <int By>
WEAKTR_INLINE __m512 shifted(__m512 left, __m512 right) {
  return _mm512_castsi512_ps(
      _mm512_alignr_epi32(_mm512_castps_si512(right), _mm512_castps_si512(left), By));
}

// The beginning of `blur_chains`, several entries at a time; returns where the rest begins and
// leaves the row before it, as it was.
template <int P>
WEAKTR_INLINE int64_t blur_few(const uint32_t* entries, int64_t begin, int64_t end, float* rows,
                               Row<P>& before) {
  constexpr int count = FewRows<P>::count;
  if (end - begin < 2 * count) return begin;
  const __m512 half = _mm512_set1_ps(0.5f);
  FewRows<P> last{_mm512_setzero_ps()}, own, next;
  own.load_from(entries + begin, rows);
  int64_t i = begin;
  for (; i + 2 * count <= end; i += count) {
    next.load_from(entries + i + count, rows);
    for (int ahead = 0; ahead < count; ++ahead)
      __builtin_prefetch(row_of<P>(entries[i + kLookAhead + ahead], rows));
    FewRows<P> mixed;
    mixed.values = _mm512_mask3_fmadd_ps(half, shifted<P>(own.values, next.values), own.values,
                                         FewRows<P>::continuing(entries + i + 1));
    mixed.values = _mm512_mask3_fmadd_ps(half, shifted<kLanes - P>(last.values, own.values),
                                         mixed.values, FewRows<P>::continuing(entries + i));
    mixed.store_to(entries + i, rows);
    last = own;
    own = next;
  }
  float old[kLanes];
  _mm512_storeu_ps(old, last.values);
  before.load_from(old + kLanes - P);
  return i;
}
#endif

// In place along chains: V[i] += (V[i - 1] + V[i + 1]) / 2 with the old neighbours, for entries
// begin ... end - 1, which are whole chains. `rows` [vertices, P].
template <int P>
void blur_chains(const Chains& chains, int64_t begin, int64_t end, float* rows) {
  const uint32_t* entries = chains.entries;
  Row<P> before, own, after, mixed;
  before.clear();
#if defined(__AVX512F__)
  if constexpr (P == 1 || P == 4 || P == 8) begin = blur_few<P>(entries, begin, end, rows, before);
#endif
  if (begin == end) return;
  float* here = row_of<P>(entries[begin], rows);
  own.load_from(here);
  float link_before = link_of(entries[begin]);
  for (int64_t i = begin; i + 1 < end; ++i) {
    const float link_after = link_of(entries[i + 1]);
    float* next = row_of<P>(entries[i + 1], rows);
    after.load_from(next);
    __builtin_prefetch(row_of<P>(entries[i + kLookAhead - 2], rows));
    mixed.blend(own, link_before, before, link_after, after);
    mixed.store_to(here);
    before = own;
    own = after;
    here = next;
    link_before = link_after;
  }
  after.clear();
  mixed.blend(own, link_before, before, 0.0f, after);
  mixed.store_to(here);
}

// Where part `part` of `parts` begins: a place near its share of the entries where a chain starts.
WEAKTR_INLINE int64_t chain_boundary(const Chains& chains, int part, int parts) {
  int64_t at = chains.count * part / parts;
  while (at < chains.count && chains.entries[at] & kContinues) ++at;
  return at;
}

}  // namespace WEAKTR_ISA
}  // namespace weaktr
