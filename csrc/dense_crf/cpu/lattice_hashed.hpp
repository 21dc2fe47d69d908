// Builds a lattice by hashing its vertices. Included once per instruction set.
//
// Vertices are numbered in the order in which pixels touch them, so that neighbouring pixels find
// their rows close together. The blur's neighbours are looked up once and kept as chains.
#pragma once

#include "dense_crf/cpu/chains.hpp"

namespace weaktr {
namespace WEAKTR_ISA {

constexpr int kBucket = 8;  // table entries that are compared at once
constexpr uint32_t kNone = ~uint32_t{0};

WEAKTR_INLINE uint64_t mix(uint64_t key) { return key * 0x9E3779B97F4A7C15ull; }
WEAKTR_INLINE uint64_t mix(unsigned __int128 key) {
  return (static_cast<uint64_t>(key) ^ mix(static_cast<uint64_t>(key >> 64))) *
         0x9E3779B97F4A7C15ull;
}

// Which of a bucket's entries hold a key, as a bit mask.
template <class Entry>
WEAKTR_INLINE unsigned holding(const Entry* bucket, Entry key, int index_bits) {
  unsigned same = 0;
  for (int i = 0; i < kBucket; ++i)
    same |= static_cast<unsigned>((bucket[i] >> index_bits) == key) << i;
  return same;
}
#if defined(__AVX512F__)
WEAKTR_INLINE unsigned holding(const uint64_t* bucket, uint64_t key, int index_bits) {
  const __m512i keys = _mm512_srl_epi64(_mm512_load_si512(bucket), _mm_cvtsi32_si128(index_bits));
  return _mm512_cmpeq_epi64_mask(keys, _mm512_set1_epi64(static_cast<long long>(key)));
}
#elif defined(__AVX2__)
WEAKTR_INLINE unsigned holding(const uint64_t* bucket, uint64_t key, int index_bits) {
  const __m128i shift = _mm_cvtsi32_si128(index_bits);
  const __m256i wanted = _mm256_set1_epi64x(static_cast<long long>(key));
  unsigned same = 0;
  for (int half = 0; half < 2; ++half) {
    const __m256i entries = _mm256_load_si256(reinterpret_cast<const __m256i*>(bucket) + half);
    const __m256i equal = _mm256_cmpeq_epi64(_mm256_srl_epi64(entries, shift), wanted);
    same |= static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(equal))) << (4 * half);
  }
  return same;
}
#endif

// Hash table of key -> vertex: buckets of entries `key << index_bits | vertex`, filled from their
// first entry on; all ones = free.
template <class Entry>
struct VertexTable {
  Entry* entries = nullptr;
  uint64_t buckets = 0;  // a power of two
  int hash_shift = 0;
  int index_bits = 0;
  uint32_t index_mask = 0;

  void clear(Buffer& memory, uint64_t bucket_count) {
    buckets = bucket_count;
    hash_shift = 64 - __builtin_ctzll(bucket_count);
    index_mask = static_cast<uint32_t>((uint64_t{1} << index_bits) - 1);
    entries = memory.reserve<Entry>(static_cast<int64_t>(buckets) * kBucket);
    std::memset(entries, 0xFF, buckets * kBucket * sizeof(Entry));
  }
  WEAKTR_MEMBER Entry* bucket_of(Entry key) const {
    return entries + (mix(key) >> hash_shift) * kBucket;
  }
  WEAKTR_MEMBER Entry* bucket_after(Entry* bucket) const {
    Entry* next = bucket + kBucket;
    return next == entries + buckets * kBucket ? entries : next;
  }
  WEAKTR_MEMBER static bool full(const Entry* bucket) { return bucket[kBucket - 1] != ~Entry{0}; }
  WEAKTR_MEMBER void prefetch(Entry key) const { __builtin_prefetch(bucket_of(key)); }
  // The vertex of an entry of `bucket`, `same` says which; kNone if it says none. Without a branch:
  // whether there is one cannot be foreseen.
  WEAKTR_MEMBER uint32_t vertex(const Entry* bucket, unsigned same) const {
    const int at = __builtin_ctz(same | 1u << (kBucket - 1));
    const uint32_t index = static_cast<uint32_t>(bucket[at]) & index_mask;
    return index | (0u - static_cast<uint32_t>(same == 0));
  }
  // The vertex of a key; kNone if it has none or another bucket than its own.
  WEAKTR_MEMBER uint32_t peek(Entry key) const {
    const Entry* bucket = bucket_of(key);
    return vertex(bucket, holding(bucket, key, index_bits));
  }
  // The vertex of a key, or kNone.
  WEAKTR_MEMBER uint32_t find(Entry key) const {
    Entry* bucket = bucket_of(key);
    unsigned same = holding(bucket, key, index_bits);
    while (__builtin_expect((same == 0) & full(bucket), 0)) {
      bucket = bucket_after(bucket);
      same = holding(bucket, key, index_bits);
    }
    return vertex(bucket, same);
  }
  // The vertex of a key; `next` is given to a key that is new. True where it was.
  WEAKTR_MEMBER bool find_or_add(Entry key, uint32_t next, uint32_t& index) {
    for (Entry* bucket = bucket_of(key);; bucket = bucket_after(bucket)) {
      const unsigned same = holding(bucket, key, index_bits);
      index = vertex(bucket, same);
      if (same) return false;
      const unsigned vacant = holding(bucket, ~Entry{0} >> index_bits, index_bits);
      if (!vacant) continue;
      bucket[__builtin_ctz(vacant)] = key << index_bits | next;
      index = next;
      return true;
    }
  }
};

WEAKTR_INLINE void store_ints(int* to, WideInt value) { std::memcpy(to, &value, sizeof value); }

template <int D, class Entry>
struct HashedBuilder {
  LatticeMemory& memory;
  const KeyPacking<Entry>& packing;
  VertexTable<Entry> table;
  int64_t vertices = 0, room = 0;
  Entry* keys = nullptr;
  float* ones = nullptr;

  static constexpr int kCorners = D + 1;

  // Touches the lattice with all pixels. `points(first, count, position)` gives scaled positions.
  template <class Points>
  void build(const Points& points, int64_t pixels) {
    uint64_t buckets = 16;
    while (buckets * kBucket < static_cast<uint64_t>(pixels)) buckets *= 2;
    table.clear(memory.table, buckets);
    uint32_t* records = memory.records.reserve<uint32_t>((pixels + kStrip) * 2 * kCorners);
    uint32_t* first_touch = memory.first_touch.reserve<uint32_t>(pixels / kStrip + 2);
    Group groups[2];  // one is placed while the next one's buckets are on their way
    prepare(points, 0, pixels, groups[0]);
    for (int64_t p = 0, turn = 0; p < pixels; p += kLanes, turn ^= 1) {
      if (p % kStrip == 0) first_touch[p / kStrip] = static_cast<uint32_t>(vertices);
      if (p + kLanes < pixels) prepare(points, p + kLanes, pixels, groups[turn ^ 1]);
      make_room(kLanes * kCorners, p < pixels / 2 ? 4 : 2);
      place(groups[turn], records + p * 2 * kCorners);
    }
    first_touch[(pixels + kStrip - 1) / kStrip] = static_cast<uint32_t>(vertices);
    if (pixels % kPadding) touch_padding();
    memory.lattice.records = records;
    memory.lattice.first_touch = first_touch;
  }

  // The neighbours along every axis, as chains to walk along: a round for each axis.
  void link(Team& team) {
    const int64_t share = 2 * vertices + vertices / 4 + 2 * kLanes;
    uint32_t* all = memory.rows[1].reserve<uint32_t>(share * team.size());  // not in use yet
    for (int axis = 0; axis < kCorners; ++axis)
      memory.chains[axis].reserve<uint32_t>(vertices + kLookAhead);
    Chains* rounds = memory.rounds.reserve<Chains>(kCorners);
    in_parallel(team, [&](int part) {
      uint32_t* successor = all + part * share;
      uint32_t* start = successor + vertices;
      uint8_t* continues =
          reinterpret_cast<uint8_t*>(start + vertices + kLanes);  // has a predecessor
      for (int axis = part; axis < kCorners; axis += team.size()) {
        find_successors(packing.axis_step(axis), successor);
        mark_continuing(successor, continues);
        rounds[axis] = collect(memory.chains[axis], successor, continues, start);
      }
    });
    memory.lattice.rounds = rounds;
    memory.lattice.round_count = kCorners;
  }

  // Orders the chains of all axes by k_0, the sum of the scaled features: it grows by 1 along an
  // axis (along axis 0 it falls by D), so that vertices which are close in it need each other.
  void schedule_by_sum() {
    const Entry mask = (Entry{1} << (D > 1 ? packing.shift[1] : packing.bits)) - 1;
    Entry low = mask, high = 0;
    for (int64_t v = 0; v < vertices; ++v) {
      low = (keys[v] & mask) < low ? keys[v] & mask : low;
      high = (keys[v] & mask) > high ? keys[v] & mask : high;
    }
    int shift = 0;
    while ((high - low) >> shift >= kMostTimes) ++shift;
    uint8_t* times = memory.times.reserve<uint8_t>(vertices);
    for (int64_t v = 0; v < vertices; ++v)
      times[v] = static_cast<uint8_t>(((keys[v] & mask) - low) >> shift);
    schedule(memory, times);
  }

 private:
  // A few neighbouring pixels' vertices.
  struct Group {
    int count;
    Entry key[kCorners][kLanes];
    float weight[kCorners][kLanes];
  };

  template <class Points>
  WEAKTR_MEMBER void prepare(const Points& points, int64_t first, int64_t pixels,
                             Group& group) const {
    group.count = static_cast<int>(pixels - first < kLanes ? pixels - first : kLanes);
    corners_of(points, first, group.count, group.key, group.weight);
    for (int r = 0; r < kCorners; ++r)
      for (int lane = 0; lane < kLanes; ++lane) table.prefetch(group.key[r][lane]);
  }

  // Writes a group's records. Most vertices are there: these are looked up first, without branches.
  WEAKTR_MEMBER void place(const Group& group, uint32_t* records) {
    const VertexTable<Entry> now = table;  // its fields in registers
    int missing[kCorners * kLanes], count = 0;
    for (int lane = 0; lane < group.count; ++lane)
      for (int r = 0; r < kCorners; ++r) {
        const uint32_t vertex = now.peek(group.key[r][lane]);
        records[lane * 2 * kCorners + r] = vertex;
        missing[count] = lane * kCorners + r;
        count += vertex == kNone;
      }
    for (int i = 0; i < count; ++i) {
      const int lane = missing[i] / kCorners, r = missing[i] % kCorners;
      records[lane * 2 * kCorners + r] = touch(group.key[r][lane]);
    }
    float* sums = ones;
    for (int lane = 0; lane < group.count; ++lane, records += 2 * kCorners)
      for (int r = 0; r < kCorners; ++r) {
        const float weight = group.weight[r][lane];
        std::memcpy(records + kCorners + r, &weight, sizeof weight);
        sums[records[r]] += weight;
      }
  }

  template <class Points>
  WEAKTR_MEMBER void corners_of(const Points& points, int64_t first, int count,
                                Entry (&key)[kCorners][kLanes],
                                float (&weight)[kCorners][kLanes]) const {
    alignas(64) float position[D][kLanes];
    points(first, count, position);
    for (int i = 0; i < D; ++i)
      for (int lane = count; lane < kLanes; ++lane) position[i][lane] = 0;
    Wide scaled[D];
    for (int i = 0; i < D; ++i) scaled[i] = load<Wide>(position[i]);
    Simplex<D, Wide, WideInt> simplex;
    enclosing_simplex<D>(scaled, simplex);
    for (int r = 0; r < kCorners; ++r) store(weight[r], simplex.weights[r]);
    alignas(64) int digits[D][kLanes], dropped[kCorners][kLanes];
    store_ints(digits[0], simplex.first);
    for (int i = 1; i < D; ++i) store_ints(digits[i], simplex.digits[i]);
    for (int r = 1; r < kCorners; ++r) store_ints(dropped[r], simplex.dropped[r]);
    for (int lane = 0; lane < kLanes; ++lane) {
      Entry k = 0;
      for (int i = 0; i < D; ++i)
        k += static_cast<Entry>(digits[i][lane] - packing.lowest[i]) << packing.shift[i];
      key[0][lane] = k;
      for (int r = 1; r < kCorners; ++r) key[r][lane] = k += packing.corner[dropped[r][lane]];
    }
  }

  WEAKTR_MEMBER uint32_t touch(Entry key) {
    uint32_t index;
    if (table.find_or_add(key, static_cast<uint32_t>(vertices), index)) {
      keys[vertices] = key;
      ones[vertices] = 0;
      ++vertices;
    }
    return index;
  }

  void touch_padding() {
    float zero[D] = {};
    Simplex<D, float, int> simplex;
    enclosing_simplex<D>(zero, simplex);
    make_room(kCorners, 2);
    Entry key = packing.template pack<D>(simplex.first, simplex.digits);
    touch(key);
    for (int r = 1; r < kCorners; ++r) touch(key += packing.corner[simplex.dropped[r]]);
  }

  // Keeps the table at most two fifths full, so that full buckets are rare, and the arrays long
  // enough. `growth`: how much larger the table becomes if it has to.
  WEAKTR_MEMBER void make_room(int64_t more, int growth) {
    if (__builtin_expect((vertices + more) * 5 > static_cast<int64_t>(table.buckets) * kBucket * 2,
                         0))
      enlarge_table(growth);
    if (__builtin_expect(vertices + more > room, 0)) enlarge_arrays(more);
  }
  __attribute__((noinline)) void enlarge_table(int growth) {
    table.clear(memory.table, table.buckets * static_cast<uint64_t>(growth));
    constexpr int64_t ahead = 32;
    uint32_t index;
    for (int64_t v = 0; v < vertices; ++v) {
      table.prefetch(keys[v + ahead < vertices ? v + ahead : v]);
      table.find_or_add(keys[v], static_cast<uint32_t>(v), index);
    }
  }
  __attribute__((noinline)) void enlarge_arrays(int64_t more) {
    room = (vertices + more) * 3 / 2 + (1 << 14);
    keys = memory.keys.extend<Entry>(room, vertices);
    ones = memory.ones.extend<float>(room + kLookAhead, vertices);
  }

  __attribute__((noinline)) void find_successors(Entry step, uint32_t* successor) const {
    const VertexTable<Entry> now = table;  // its fields in registers
    const Entry* key = keys;
    const int64_t count = vertices;
    constexpr int64_t ahead = 64;
    for (int64_t v = 0; v < count; ++v) {
      now.prefetch(key[v + ahead < count ? v + ahead : v] + step);
      successor[v] = now.find(key[v] + step);
    }
  }

  // `continues` [vertices + 1]: the last one is nobody's.
  __attribute__((noinline)) void mark_continuing(const uint32_t* successor,
                                                 uint8_t* continues) const {
    const int64_t count = vertices;
    std::memset(continues, 0, static_cast<size_t>(count));
    const uint32_t nobody = static_cast<uint32_t>(count);
    for (int64_t v = 0; v < count; ++v) {
      const uint32_t none = 0u - (successor[v] >> 31);  // a mask, without a branch
      continues[(successor[v] & ~none) | (nobody & none)] = 1;
    }
  }

  // Lists the vertices that have a successor, but no predecessor; returns how many they are.
  int64_t list_starts(const uint32_t* successor, const uint8_t* continues, uint32_t* start) const {
    int64_t starts = 0, v = 0;
#if defined(__AVX512F__)
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; v + kLanes <= vertices; v += kLanes) {
      const __m128i before = _mm_loadu_si128(reinterpret_cast<const __m128i*>(continues + v));
      const __mmask16 chosen =
          _mm_testn_epi8_mask(before, before) &
          _mm512_cmpneq_epi32_mask(_mm512_loadu_si512(successor + v), _mm512_set1_epi32(-1));
      const __m512i numbers = _mm512_add_epi32(first, _mm512_set1_epi32(static_cast<int>(v)));
      _mm512_storeu_si512(start + starts, _mm512_maskz_compress_epi32(chosen, numbers));
      starts += __builtin_popcount(chosen);
    }
#endif
    for (; v < vertices; ++v) {
      start[starts] = static_cast<uint32_t>(v);
      starts += !continues[v] & (successor[v] != kNone);
    }
    return starts;
  }

  // `start`: room for the first row of every chain.
  __attribute__((noinline)) Chains collect(Buffer& chain_memory, const uint32_t* successor,
                                           const uint8_t* continues, uint32_t* start) const {
    uint32_t* entries = chain_memory.as<uint32_t>();
    const int64_t starts = list_starts(successor, continues, start);
    // Two walks at once, as each waits for what it reads: over the first half of the chains,
    // forwards from the first entry, and over the other half, backwards from the last.
    int64_t front = 0, back = vertices, chain = 0, other_chain = starts / 2;
    const int64_t middle = other_chain;
    uint32_t next = kNone, other_next = kNone;
    const auto forwards = [&] {
      const bool ended = next == kNone;
      if (ended && chain == middle) return false;
      const uint32_t here = ended ? start[chain] : next;
      chain += ended;
      entries[front++] = ended ? here : here | kContinues;
      next = successor[here];
      return true;
    };
    const auto backwards = [&] {
      const bool ended = other_next == kNone;
      if (ended && other_chain == starts) return false;
      const uint32_t here = ended ? start[other_chain] : other_next;
      other_chain += ended;
      other_next = successor[here];
      entries[--back] = other_next == kNone ? here : here | kContinues;
      return true;
    };
    while (forwards() && backwards()) {
    }
    while (forwards()) {
    }
    while (backwards()) {
    }
    const int64_t more = vertices - back;
    std::memmove(entries + front, entries + back, static_cast<size_t>(more) * sizeof(uint32_t));
    for (int64_t i = 0; i < kLookAhead; ++i) entries[front + more + i] = 0;
    return Chains{entries, front + more};
  }
};

}  // namespace WEAKTR_ISA
}  // namespace weaktr
