// Builds a lattice by hashing its vertices. Included once per instruction set.
//
// Vertices are numbered in the order in which pixels touch them, so that neighbouring pixels find
// their rows close together. The blur's neighbours are looked up once and kept as chains.
#pragma once

#include "rows.hpp"
#include "workspace.hpp"

namespace weaktr {
namespace WEAKTR_ISA {

constexpr int kBlock = 32;          // pixels that are worked on together
constexpr int kBucket = 8;          // table entries that are compared at once
constexpr int64_t kLookAhead = 16;  // rows that are fetched ahead
constexpr uint32_t kNone = ~uint32_t{0};

// job(part) for every part of a team.
template <class Job>
WEAKTR_INLINE void in_parallel(Team& team, const Job& job) {
  team.run([](const void* context, int part) { (*static_cast<const Job*>(context))(part); }, &job);
}

WEAKTR_INLINE uint64_t mix(uint64_t key) { return key * 0x9E3779B97F4A7C15ull; }
WEAKTR_INLINE uint64_t mix(unsigned __int128 key) {
  return (static_cast<uint64_t>(key) ^ mix(static_cast<uint64_t>(key >> 64))) *
         0x9E3779B97F4A7C15ull;
}

// Which of a bucket's entries hold a key, and which are free, as bit masks.
template <class Entry>
WEAKTR_INLINE void compare(const Entry* bucket, Entry key, int index_bits, unsigned& same,
                           unsigned& vacant) {
  same = vacant = 0;
  for (int i = 0; i < kBucket; ++i) {
    same |= static_cast<unsigned>((bucket[i] >> index_bits) == key) << i;
    vacant |= static_cast<unsigned>(bucket[i] == ~Entry{0}) << i;
  }
}
#if defined(__AVX512F__)
WEAKTR_INLINE void compare(const uint64_t* bucket, uint64_t key, int index_bits, unsigned& same,
                           unsigned& vacant) {
  const __m512i entries = _mm512_load_si512(bucket);
  const __m512i keys = _mm512_srl_epi64(entries, _mm_cvtsi32_si128(index_bits));
  same = _mm512_cmpeq_epi64_mask(keys, _mm512_set1_epi64(static_cast<long long>(key)));
  vacant = _mm512_cmpeq_epi64_mask(entries, _mm512_set1_epi64(-1));
}
#elif defined(__AVX2__)
WEAKTR_INLINE void compare(const uint64_t* bucket, uint64_t key, int index_bits, unsigned& same,
                           unsigned& vacant) {
  const __m128i shift = _mm_cvtsi32_si128(index_bits);
  const __m256i wanted = _mm256_set1_epi64x(static_cast<long long>(key));
  const __m256i none = _mm256_set1_epi64x(-1);
  same = vacant = 0;
  for (int half = 0; half < 2; ++half) {
    const __m256i entries = _mm256_load_si256(reinterpret_cast<const __m256i*>(bucket) + half);
    const __m256i equal = _mm256_cmpeq_epi64(_mm256_srl_epi64(entries, shift), wanted);
    const __m256i empty = _mm256_cmpeq_epi64(entries, none);
    same |= static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(equal))) << (4 * half);
    vacant |= static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(empty))) << (4 * half);
  }
}
#endif

// Hash table of key -> vertex: buckets of entries `key << index_bits | vertex`, all ones = free.
template <class Entry>
struct VertexTable {
  Entry* entries = nullptr;
  uint64_t buckets = 0;  // a power of two
  int hash_shift = 0;
  int index_bits = 0;

  void clear(Buffer& memory, uint64_t bucket_count) {
    buckets = bucket_count;
    hash_shift = 64 - __builtin_ctzll(bucket_count);
    entries = memory.reserve<Entry>(static_cast<int64_t>(buckets) * kBucket);
    std::memset(entries, 0xFF, buckets * kBucket * sizeof(Entry));
  }
  WEAKTR_MEMBER uint64_t bucket_of(Entry key) const { return mix(key) >> hash_shift; }
  WEAKTR_MEMBER void prefetch(Entry key) const {
    __builtin_prefetch(entries + bucket_of(key) * kBucket);
  }
  // The vertex of a key, or kNone.
  WEAKTR_MEMBER uint32_t find(Entry key) const {
    for (uint64_t b = bucket_of(key);; b = (b + 1) & (buckets - 1)) {
      unsigned same, vacant;
      const Entry* bucket = entries + b * kBucket;
      compare(bucket, key, index_bits, same, vacant);
      if (__builtin_expect((same | vacant) == 0, 0)) continue;
      // without a branch: whether a neighbour exists cannot be foreseen
      const uint32_t found = vertex(bucket[__builtin_ctz(same | 1u << (kBucket - 1))]);
      return found | (0u - static_cast<uint32_t>(same == 0));
    }
  }
  // The vertex of a key; `next` is given to a key that is new. True where it was.
  WEAKTR_MEMBER bool find_or_add(Entry key, uint32_t next, uint32_t& found) {
    for (uint64_t b = bucket_of(key);; b = (b + 1) & (buckets - 1)) {
      unsigned same, vacant;
      Entry* bucket = entries + b * kBucket;
      compare(bucket, key, index_bits, same, vacant);
      if (__builtin_expect(same != 0, 1)) {
        found = vertex(bucket[__builtin_ctz(same)]);
        return false;
      }
      if (vacant) {
        bucket[__builtin_ctz(vacant)] = key << index_bits | next;
        found = next;
        return true;
      }
    }
  }
  WEAKTR_MEMBER uint32_t vertex(Entry entry) const {
    return static_cast<uint32_t>(entry & ((Entry{1} << index_bits) - 1));
  }
};

WEAKTR_INLINE void store_ints(int* to, WideInt value) { std::memcpy(to, &value, sizeof value); }

template <int D, class Entry>
struct SparseBuilder {
  LatticeMemory& memory;
  const KeyPacking<Entry>& packing;
  VertexTable<Entry> table;
  int64_t vertices = 0, room = 0;
  Entry* keys = nullptr;
  float* ones = nullptr;

  static constexpr int kCorners = D + 1;
  Entry last_key[kCorners] = {};  // no key is 0: the fields have room below
  uint32_t last_vertex[kCorners] = {};

  // Touches the lattice with all pixels. `points(first, count, position)` gives scaled positions.
  template <class Points>
  void build(const Points& points, int64_t pixels) {
    uint64_t buckets = 16;
    while (buckets * kBucket < static_cast<uint64_t>(pixels)) buckets *= 2;
    table.clear(memory.table, buckets);
    uint32_t* records = memory.records.reserve<uint32_t>((pixels + kBlock) * 2 * kCorners);
    uint32_t* first_touch = memory.first_touch.reserve<uint32_t>(pixels / kBlock + 2);
    Group groups[2];  // one is placed while the next one's buckets are on their way
    prepare(points, 0, pixels, groups[0]);
    for (int64_t p = 0, turn = 0; p < pixels; p += kLanes, turn ^= 1) {
      if (p % kBlock == 0) first_touch[p / kBlock] = static_cast<uint32_t>(vertices);
      if (p + kLanes < pixels) prepare(points, p + kLanes, pixels, groups[turn ^ 1]);
      make_room(kLanes * kCorners);
      place(groups[turn], records + p * 2 * kCorners);
    }
    first_touch[(pixels + kBlock - 1) / kBlock] = static_cast<uint32_t>(vertices);
    if (pixels % kPadding) touch_padding();
    memory.lattice.records = records;
    memory.lattice.first_touch = first_touch;
  }

  // The neighbours along every axis, as chains to walk along.
  void link(Team& team) {
    const int64_t share = 3 * vertices + 2;
    uint32_t* all = memory.rows[1].reserve<uint32_t>(share * team.size());  // not in use yet
    for (int axis = 0; axis < kCorners; ++axis)
      memory.chains[axis].reserve<uint32_t>(vertices + kLookAhead);
    in_parallel(team, [&](int part) {
      uint32_t* successor = all + part * share;
      uint32_t* start = successor + vertices;
      uint8_t* continues = reinterpret_cast<uint8_t*>(start + vertices + 1);  // has a predecessor
      for (int axis = part; axis < kCorners; axis += team.size()) {
        find_successors(packing.axis_step(axis), successor, continues);
        memory.lattice.chains[axis] = collect(memory.chains[axis], successor, continues, start);
      }
    });
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

  // Writes a group's records; pixels of the same simplex as the one before are looked up once.
  WEAKTR_MEMBER void place(const Group& group, uint32_t* records) {
    for (int lane = 0; lane < group.count; ++lane, records += 2 * kCorners) {
      Entry changed = 0;
      for (int r = 0; r < kCorners; ++r) changed |= group.key[r][lane] ^ last_key[r];
      if (changed)
        for (int r = 0; r < kCorners; ++r) {
          last_key[r] = group.key[r][lane];
          last_vertex[r] = touch(last_key[r]);
        }
      for (int r = 0; r < kCorners; ++r) {
        const float weight = group.weight[r][lane];
        records[r] = last_vertex[r];
        std::memcpy(records + kCorners + r, &weight, sizeof weight);
        ones[last_vertex[r]] += weight;
      }
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
    uint32_t found;
    if (table.find_or_add(key, static_cast<uint32_t>(vertices), found)) {
      keys[vertices] = key;
      ones[vertices] = 0;
      ++vertices;
    }
    return found;
  }

  void touch_padding() {
    float zero[D] = {};
    Simplex<D, float, int> simplex;
    enclosing_simplex<D>(zero, simplex);
    make_room(kCorners);
    Entry key = packing.template pack<D>(simplex.first, simplex.digits);
    touch(key);
    for (int r = 1; r < kCorners; ++r) touch(key += packing.corner[simplex.dropped[r]]);
  }

  // Keeps the table at most three quarters full and the arrays long enough.
  WEAKTR_MEMBER void make_room(int64_t more) {
    if (__builtin_expect((vertices + more) * 4 > static_cast<int64_t>(table.buckets) * kBucket * 3,
                         0))
      enlarge_table();
    if (__builtin_expect(vertices + more > room, 0)) enlarge_arrays(more);
  }
  __attribute__((noinline)) void enlarge_table() {
    table.clear(memory.table, table.buckets * 4);
    uint32_t found;
    for (int64_t v = 0; v < vertices; ++v)
      table.find_or_add(keys[v], static_cast<uint32_t>(v), found);
  }
  __attribute__((noinline)) void enlarge_arrays(int64_t more) {
    room = (vertices + more) * 3 / 2 + (1 << 14);
    keys = memory.keys.extend<Entry>(room, vertices);
    ones = memory.ones.extend<float>(room + kLookAhead, vertices);
  }

  __attribute__((noinline)) void find_successors(Entry step, uint32_t* successor,
                                                 uint8_t* continues) const {
    std::memset(continues, 0, static_cast<size_t>(vertices) + 1);
    constexpr int64_t ahead = 64;
    for (int64_t v = 0; v < vertices; ++v) {
      if (v + ahead < vertices) table.prefetch(keys[v + ahead] + step);
      const uint32_t next = table.find(keys[v] + step);
      successor[v] = next;
      continues[next == kNone ? vertices : next] = 1;
    }
  }

  // `start`: room for the first row of every chain.
  __attribute__((noinline)) Chains collect(Buffer& chain_memory, const uint32_t* successor,
                                           const uint8_t* continues, uint32_t* start) const {
    uint32_t* entries = chain_memory.as<uint32_t>();
    int64_t starts = 0, count = 0;
    for (int64_t v = 0; v < vertices; ++v) {  // written without branches, as all below
      start[starts] = static_cast<uint32_t>(v);
      starts += !continues[v] & (successor[v] != kNone);
    }
    uint32_t at = kNone;
    for (int64_t chain = 0;;) {  // to the next row of the chain, or to the next chain
      const bool ended = at == kNone;
      if (ended && chain == starts) break;
      const uint32_t here = ended ? start[chain] : at;
      chain += ended;
      entries[count++] = ended ? here : here | kContinues;
      at = successor[here];
    }
    for (int64_t i = 0; i < kLookAhead; ++i) entries[count + i] = 0;
    return Chains{entries, count};
  }
};

// What a neighbour before an entry is multiplied with: 1/2 if there is one, else 0.
WEAKTR_INLINE float link_of(uint32_t entry) {
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(entry) >> 31) & 0x3F000000u;
  float link;
  std::memcpy(&link, &bits, sizeof link);
  return link;
}

// In place along chains: V[i] += (V[i - 1] + V[i + 1]) / 2 with the old neighbours, for entries
// begin ... end - 1, which are whole chains. `rows` [vertices, P].
template <int P>
void blur_chains(const Chains& chains, int64_t begin, int64_t end, float* rows) {
  if (begin == end) return;
  const uint32_t* entries = chains.entries;
  auto row = [&](int64_t i) { return rows + static_cast<size_t>(entries[i] & ~kContinues) * P; };
  Row<P> before, own, after, mixed;
  before.clear();
  float* here = row(begin);
  own.load_from(here);
  float link_before = 0;
  for (int64_t i = begin; i + 1 < end; ++i) {
    const float link_after = link_of(entries[i + 1]);
    float* next = row(i + 1);
    after.load_from(next);
    __builtin_prefetch(row(i + kLookAhead - 2));
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
