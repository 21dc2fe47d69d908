// What a block of 256 threads does together: add up, look up vertices, group the entries of a tile.
// Written once: CUDA runs it on the GPU, tests/native/emulation on the CPU, where tests cover
// everything but the launch itself.
//
// A block works in phases: `block.each([&](int thread) { ... })` runs the phase once per thread and
// waits until all are done. Within a phase threads write to different places, or use the `atomic_`
// functions. What is read outside of phases is the same for all threads, and written in a phase
// before, if at all. What a thread keeps from one phase to the next is a `Block::Private<T>`,
// indexed by the thread.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dense_crf/permutohedral.hpp"

#if defined(__CUDACC__)
#include <cuda_pipeline.h>

#define WEAKTR_UNROLL _Pragma("unroll")
#define WEAKTR_UNROLL_BY_4 _Pragma("unroll 4")
#else
#define WEAKTR_UNROLL
#define WEAKTR_UNROLL_BY_4
#endif

namespace weaktr {
namespace blocks {

constexpr int kTileSide = 16;
constexpr int kThreads = kTileSide * kTileSide;  // of a block; one per pixel of a tile
constexpr int kMaxCorners = 6;                   // of a simplex, d + 1
constexpr int kMaxEntries = kThreads * kMaxCorners;

// Four labels of one vertex or pixel, moved in one piece.
struct alignas(16) Quad {
  float lane[4];
};

// sum += weight * value, on the GPU with a single rounding.
WEAKTR_INLINE void multiply_add(Quad& sum, float weight, const Quad& value) {
  WEAKTR_UNROLL
  for (int i = 0; i < 4; ++i) {
#if defined(__CUDA_ARCH__)
    sum.lane[i] = __fmaf_rn(weight, value.lane[i], sum.lane[i]);
#else
    sum.lane[i] += weight * value.lane[i];
#endif
  }
}

// 1 / x to within two units in the last place.
WEAKTR_INLINE float inverse(float x) {
#if defined(__CUDA_ARCH__)
  return __fdividef(1.0f, x);
#else
  return 1.0f / x;
#endif
}

// Reads 4, 8 or 16 bytes that no other thread will read, so that they take no place in caches from
// what is read again. They were written by an earlier program.
template <class T>
WEAKTR_INLINE T read_once(const T* place) {
#if defined(__CUDA_ARCH__)
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "one instruction");
  using Words = std::conditional_t<sizeof(T) == 4, uint32_t,
                                   std::conditional_t<sizeof(T) == 8, uint2, uint4>>;
  const Words words = __ldcs(reinterpret_cast<const Words*>(place));
  T value;
  memcpy(&value, &words, sizeof(T));
  return value;
#else
  return *place;
#endif
}

// ---- copies into shared memory that go on while the thread does other things

template <class T>
WEAKTR_INLINE void copy_later(T* to, const T* from) {
#if defined(__CUDA_ARCH__)
  __pipeline_memcpy_async(to, from, sizeof(T));
#else
  *to = *from;
#endif
}

// Until what this thread copies is there.
WEAKTR_INLINE void wait_for_copies() {
#if defined(__CUDA_ARCH__)
  __pipeline_commit();
  __pipeline_wait_prior(0);
#endif
}

// ---- atomics: on the GPU between all threads, on the CPU between threads of the emulation

// Writes `value` if `expected` is there. Returns what was there before.
WEAKTR_INLINE uint64_t atomic_replace(uint64_t* place, uint64_t expected, uint64_t value) {
#if defined(__CUDA_ARCH__)
  return atomicCAS(reinterpret_cast<unsigned long long*>(place), expected, value);
#else
  __atomic_compare_exchange_n(place, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
#endif
}

WEAKTR_INLINE void atomic_lower(uint32_t* place, uint32_t value) {
#if defined(__CUDA_ARCH__)
  atomicMin(place, value);
#else
  uint32_t seen = __atomic_load_n(place, __ATOMIC_RELAXED);
  while (value < seen && !__atomic_compare_exchange_n(place, &seen, value, false, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
#endif
}

// Returns what was there before.
WEAKTR_INLINE uint32_t atomic_add(uint32_t* place, uint32_t value) {
#if defined(__CUDA_ARCH__)
  return atomicAdd(place, value);
#else
  return __atomic_fetch_add(place, value, __ATOMIC_RELAXED);
#endif
}

WEAKTR_INLINE void atomic_or(uint32_t* place, uint32_t bits) {
#if defined(__CUDA_ARCH__)
  atomicOr(place, bits);
#else
  __atomic_fetch_or(place, bits, __ATOMIC_RELAXED);
#endif
}

WEAKTR_INLINE int count_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}

// ---- adding up

// One number per thread.
struct Sums {
  static constexpr int kGroup = 16;
  uint32_t before[kThreads + 1];  // of all threads before; at the end, of all
  uint32_t groups[kThreads / kGroup];

  // Where a thread's own number goes for `add_up`.
  WEAKTR_MEMBER uint32_t& own(int thread) { return before[thread + 1]; }
  WEAKTR_MEMBER uint32_t all() const { return before[kThreads]; }
};

template <class Block>
WEAKTR_INLINE void add_up(const Block& block, Sums& sums) {
  constexpr int group = Sums::kGroup;
  block.each([&](int thread) {
    if (thread >= kThreads / group) return;
    uint32_t sum = 0;
    for (int i = group * thread; i < group * (thread + 1); ++i) sum = sums.own(i) += sum;
    sums.groups[thread] = sum;
  });
  block.each([&](int thread) {
    uint32_t before = 0;
    for (int i = 0; i < thread / group; ++i) before += sums.groups[i];
    sums.own(thread) += before;
    if (thread == 0) sums.before[0] = 0;
  });
}

// The last i < count with starts[i] <= place; starts ascends from 0, and empty segments are
// skipped.
WEAKTR_INLINE int segment_of(const uint32_t* starts, int count, uint32_t place) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (starts[middle] <= place)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// ---- hash tables: open addressing, linear probing

constexpr uint64_t kEmpty = ~uint64_t{0};  // keys have at most 63 bits
constexpr int kMaxKeyBits = 63;
constexpr uint32_t kNowhere = ~uint32_t{0};

WEAKTR_INLINE uint32_t slot_of(uint64_t key, uint32_t slots) {
  const uint64_t mixed = (key * 0x9E3779B97F4A7C15u) >> 32;
  return static_cast<uint32_t>((mixed * slots) >> 32);
}

// The slot of a key, which is put there if it is new; `previous` is what an `atomic_replace` found
// in its `slot_of`. There must be room.
WEAKTR_INLINE uint32_t insert(uint64_t* keys, uint32_t slots, uint64_t key, uint64_t previous) {
  uint32_t slot = slot_of(key, slots);
  while (previous != kEmpty && previous != key) {
    slot = slot + 1 == slots ? 0 : slot + 1;
    previous = atomic_replace(&keys[slot], kEmpty, key);
  }
  return slot;
}

WEAKTR_INLINE uint32_t insert(uint64_t* keys, uint32_t slots, uint64_t key) {
  return insert(keys, slots, key, atomic_replace(&keys[slot_of(key, slots)], kEmpty, key));
}

// The slot of a key, or kNowhere; `seen` is the key in `slot`, its `slot_of`. There must be an
// empty slot.
WEAKTR_INLINE uint32_t find(const uint64_t* keys, uint32_t slots, uint64_t key, uint32_t slot,
                            uint64_t seen) {
  while (seen != key) {
    if (seen == kEmpty) return kNowhere;
    slot = slot + 1 == slots ? 0 : slot + 1;
    seen = keys[slot];
  }
  return slot;
}

// ---- the entries of a tile

// One number below 256 * (D + 1) for each of a pixel's D + 1 corners, in few words.
template <int D>
struct Packed {
  static constexpr int kBits = D == 2 ? 10 : 16, kPerWord = 32 / kBits;
  static constexpr int kWords = D / kPerWord + 1;
  static_assert(kThreads * (D + 1) <= 1 << kBits, "room for every number");
  uint32_t words[kWords] = {};

  WEAKTR_MEMBER int operator[](int i) const {
    return words[i / kPerWord] >> i % kPerWord * kBits & ((1u << kBits) - 1);
  }
  WEAKTR_MEMBER void put(int i, uint32_t number) {
    words[i / kPerWord] |= number << i % kPerWord * kBits;
  }
};

// An entry is one corner of one pixel's simplex, number corner * 256 + pixel. Entries of the same
// vertex are a run. In the order of the runs every thread has an equal part, D + 1 entries.
struct Part {
  uint32_t bits;

  Part() = default;
  WEAKTR_MEMBER Part(int runs_before, int followers, uint32_t starts)
      : bits(static_cast<uint32_t>(runs_before) | static_cast<uint32_t>(followers) << 11 |
             starts << 19) {}
  // Runs that begin in the parts before.
  WEAKTR_MEMBER int runs_before() const { return bits & 2047; }
  // Parts after this one into which its last run goes on.
  WEAKTR_MEMBER int followers() const { return bits >> 11 & 255; }
  // Whether its entry i is the first of a run.
  WEAKTR_MEMBER bool starts(int i) const { return bits >> (19 + i) & 1; }
};

// Shared memory in which a tile's entries are grouped. What shares a place is used one after the
// other.
struct Grouping {
  static constexpr int kSlots = 2048;
  static constexpr int kMasks = 768;  // runs of which it is known at a time who is in them
  static constexpr int kWords = kThreads / 32;
  struct Order {
    uint16_t entry[kMaxEntries];  // in the order of runs, those by their first entry; in a run by
                                  // pixel
    uint16_t run[kMaxEntries];    // its run
    uint16_t end[kMaxEntries];    // [run] where it ends
  };
  union {
    uint64_t keys[kSlots];           // hash table of the tile's vertices
    uint32_t masks[kMasks][kWords];  // pixels in each run
  };
  union {
    uint32_t first[kSlots];  // of the vertex in that slot: its lowest pixel * (D + 1) + corner
    Order order;
  };
  uint32_t place[kSlots];  // how many entries that vertex has; then start << 16 | run
  Sums sums;

  WEAKTR_MEMBER int runs() const { return static_cast<int>(sums.all() & 0xffff); }
  WEAKTR_MEMBER int entries() const { return static_cast<int>(sums.all() >> 16); }
};

// The corners of one pixel's simplex.
template <int D>
struct Corners {
  bool used;        // else there is no pixel
  uint32_t firsts;  // bit i: corner i is the first entry of its run
  uint64_t keys[D + 1];
  uint16_t slots[D + 1];  // in Grouping
  uint16_t runs[D + 1];
};

template <class Block>
WEAKTR_INLINE void clear(const Block& block, Grouping& group) {
  block.each([&](int thread) {
    for (int slot = thread; slot < Grouping::kSlots; slot += kThreads) {
      group.keys[slot] = kEmpty;
      group.first[slot] = kNowhere;
      group.place[slot] = 0;
    }
  });
}

// Enters a pixel's corners into the tile's hash table: part of a phase.
template <int D>
WEAKTR_INLINE void enter(Grouping& group, Corners<D>& corners, int thread) {
  WEAKTR_UNROLL
  for (int i = 0; i <= D; ++i) {
    const uint32_t slot = insert(group.keys, Grouping::kSlots, corners.keys[i]);
    atomic_lower(&group.first[slot], static_cast<uint32_t>(thread * (D + 1) + i));
    atomic_add(&group.place[slot], 1);
    corners.slots[i] = static_cast<uint16_t>(slot);
  }
}

// Numbers the runs and finds where each begins. Keys are gone afterwards.
template <int D, class Block, class AllCorners>
WEAKTR_INLINE void number_runs(const Block& block, Grouping& group, AllCorners& all) {
  block.each([&](int thread) {
    Corners<D>& corners = all[thread];
    corners.firsts = 0;
    uint32_t sum = 0;
    WEAKTR_UNROLL
    for (int i = 0; i <= D; ++i) {
      if (!corners.used ||
          group.first[corners.slots[i]] != static_cast<uint32_t>(thread * (D + 1) + i))
        continue;
      corners.firsts |= 1u << i;
      sum += group.place[corners.slots[i]] << 16 | 1;
    }
    group.sums.own(thread) = sum;
  });
  add_up(block, group.sums);
  block.each([&](int thread) {
    const Corners<D>& corners = all[thread];
    uint32_t before = group.sums.before[thread];
    WEAKTR_UNROLL
    for (int i = 0; i <= D; ++i) {
      if (!(corners.firsts >> i & 1)) continue;
      uint32_t& place = group.place[corners.slots[i]];
      const uint32_t length = place;
      place = before;
      before += length << 16 | 1;
      group.order.end[(before & 0xffff) - 1] = static_cast<uint16_t>(before >> 16);
    }
  });
}

// Puts the entries into their order. Runs are worked on in portions, so that their masks fit.
template <int D, class Block, class AllCorners>
WEAKTR_INLINE void order_entries(const Block& block, Grouping& group, AllCorners& all) {
  const int runs = group.runs(), entries = group.entries();
  for (int first = 0; first < runs; first += Grouping::kMasks) {
    const auto for_runs = [&](int thread, const auto& body) {
      Corners<D>& corners = all[thread];
      WEAKTR_UNROLL
      for (int i = 0; i <= D; ++i) {
        if (!corners.used) continue;
        const uint32_t place = group.place[corners.slots[i]];
        const int run = static_cast<int>(place & 0xffff);
        corners.runs[i] = static_cast<uint16_t>(run);
        if (run >= first && run - first < Grouping::kMasks)
          body(i, run, static_cast<int>(place >> 16), group.masks[run - first]);
      }
    };
    block.each([&](int thread) {
      const int count = (runs - first < Grouping::kMasks ? runs - first : Grouping::kMasks);
      for (int i = thread; i < count * Grouping::kWords; i += kThreads)
        group.masks[i / Grouping::kWords][i % Grouping::kWords] = 0;
      for (int i = entries + thread; first == 0 && i < kThreads * (D + 1); i += kThreads)
        group.order.entry[i] = kThreads - 1;  // outside of the image, where any place is
    });
    block.each([&](int thread) {
      for_runs(thread, [&](int, int, int, uint32_t (&mask)[Grouping::kWords]) {
        atomic_or(&mask[thread / 32], 1u << thread % 32);
      });
    });
    block.each([&](int thread) {
      for_runs(thread, [&](int i, int run, int start, const uint32_t (&mask)[Grouping::kWords]) {
        int position = start + count_bits(mask[thread / 32] & ((1u << thread % 32) - 1));
        WEAKTR_UNROLL
        for (int word = 0; word < Grouping::kWords; ++word)
          if (word < thread / 32) position += count_bits(mask[word]);
        group.order.entry[position] = static_cast<uint16_t>(i * kThreads + thread);
        group.order.run[position] = static_cast<uint16_t>(run);
      });
    });
  }
}

// A thread's part of the order.
template <int D>
WEAKTR_INLINE Part part_of(const Grouping& group, int thread) {
  const int first = thread * (D + 1), entries = group.entries();
  if (first >= entries) return Part(group.runs(), 0, 0);
  uint32_t starts = 0;
  WEAKTR_UNROLL
  for (int i = 0; i <= D; ++i) {
    const int position = first + i;
    if (position < entries &&
        (position == 0 || group.order.run[position] != group.order.run[position - 1]))
      starts |= 1u << i;
  }
  const int last = first + D < entries ? first + D : entries - 1;
  const int followers = (group.order.end[group.order.run[last]] - 1) / (D + 1) - thread;
  return Part(group.order.run[first] + !(starts & 1), followers, starts);
}

}  // namespace blocks
}  // namespace weaktr
