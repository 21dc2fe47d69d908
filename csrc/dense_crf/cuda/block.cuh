// What a block of 256 threads does together: sort, add up, look up vertices, group the entries of a
// tile. Written once: CUDA runs it on the GPU, tests/native/emulation on the CPU, where
// tests cover everything but the launch itself.
//
// A block works in phases: `block.each([&](int thread) { ... })` runs the phase once per thread and
// waits until all are done. Within a phase threads write to different places, or use the `atomic_`
// functions. What is read outside of phases is the same for all threads, and no phase writes it.
// What a thread keeps from one phase to the next is a `Block::Private<T>`, indexed by the thread.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "dense_crf/permutohedral.hpp"

#if defined(__CUDACC__)
#define WEAKTR_UNROLL _Pragma("unroll")
#else
#define WEAKTR_UNROLL
#endif

namespace weaktr {
namespace blocks {

constexpr int kTileSide = 16;
constexpr int kThreads = kTileSide * kTileSide;  // of a block; one per pixel of a tile
constexpr int kMaxCorners = 6;                   // of a simplex, d + 1
constexpr int kMaxEntries = kThreads * kMaxCorners;
// Entries that one thread adds up; a vertex with more is shared by several threads.
constexpr int kPieceLength = 16;

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

// ---- atomics: on the GPU between all threads, on the CPU between threads of the emulation

WEAKTR_INLINE uint32_t atomic_read(const uint32_t* place) {
#if defined(__CUDA_ARCH__)
  return *const_cast<const volatile uint32_t*>(place);
#else
  return __atomic_load_n(place, __ATOMIC_RELAXED);
#endif
}

WEAKTR_INLINE void atomic_write(uint32_t* place, uint32_t value) {
#if defined(__CUDA_ARCH__)
  *const_cast<volatile uint32_t*>(place) = value;
#else
  __atomic_store_n(place, value, __ATOMIC_RELAXED);
#endif
}

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

WEAKTR_INLINE void atomic_add(uint32_t* place, uint32_t value) {
#if defined(__CUDA_ARCH__)
  atomicAdd(place, value);
#else
  __atomic_fetch_add(place, value, __ATOMIC_RELAXED);
#endif
}

WEAKTR_INLINE void atomic_add(int64_t* place, int64_t value) {
#if defined(__CUDA_ARCH__)
  atomicAdd(reinterpret_cast<unsigned long long*>(place), static_cast<unsigned long long>(value));
#else
  __atomic_fetch_add(place, value, __ATOMIC_RELAXED);
#endif
}

WEAKTR_INLINE void atomic_add(float* place, float value) {
#if defined(__CUDA_ARCH__)
  atomicAdd(place, value);
#else
  float seen, sum;
  __atomic_load(place, &seen, __ATOMIC_RELAXED);
  do {
    sum = seen + value;
  } while (
      !__atomic_compare_exchange(place, &seen, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
#endif
}

WEAKTR_INLINE void atomic_add(Quad* place, const Quad& value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(place),
            make_float4(value.lane[0], value.lane[1], value.lane[2], value.lane[3]));
#else
  for (int i = 0; i < 4; ++i) atomic_add(&place->lane[i], value.lane[i]);
#endif
}

// ---- sorting and adding up

// Sorts `size` numbers, a power of two, ascending (Batcher's bitonic sort).
template <class Block>
WEAKTR_INLINE void sort(const Block& block, uint32_t* numbers, int size) {
  for (int run = 2; run <= size; run *= 2)
    for (int distance = run / 2; distance > 0; distance /= 2)
      block.each([&](int thread) {
        for (int pair = thread; pair < size / 2; pair += kThreads) {
          const int low = 2 * pair - (pair & (distance - 1)), high = low + distance;
          const bool descending = (low & run) != 0;
          const uint32_t a = numbers[low], b = numbers[high];
          if ((a > b) != descending) {
            numbers[low] = b;
            numbers[high] = a;
          }
        }
      });
}

// One number per thread in sums[thread + 1] -> sums[thread]: of all threads before; sums[kThreads]:
// of all threads.
template <class Block>
WEAKTR_INLINE void add_up(const Block& block, uint32_t (&sums)[kThreads + 1]) {
  typename Block::template Private<uint32_t> sum;
  for (int distance = 1; distance < kThreads; distance *= 2) {
    block.each([&](int thread) {
      sum[thread] = sums[thread + 1] + (thread >= distance ? sums[thread + 1 - distance] : 0);
    });
    block.each([&](int thread) { sums[thread + 1] = sum[thread]; });
  }
  block.each([&](int thread) {
    if (thread == 0) sums[0] = 0;
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

// The slot of a key, which is put there if it is new. There must be room.
WEAKTR_INLINE uint32_t insert(uint64_t* keys, uint32_t slots, uint64_t key) {
  uint32_t slot = slot_of(key, slots);
  for (;;) {
    const uint64_t previous = atomic_replace(&keys[slot], kEmpty, key);
    if (previous == kEmpty || previous == key) return slot;
    slot = slot + 1 == slots ? 0 : slot + 1;
  }
}

// The slot of a key, or kNowhere. There must be an empty slot.
WEAKTR_INLINE uint32_t find(const uint64_t* keys, uint32_t slots, uint64_t key) {
  uint32_t slot = slot_of(key, slots);
  while (keys[slot] != key) {
    if (keys[slot] == kEmpty) return kNowhere;
    slot = slot + 1 == slots ? 0 : slot + 1;
  }
  return slot;
}

// ---- the entries of a tile

// Shared memory in which a tile's entries are grouped. An entry is one corner of one pixel's
// simplex, number corner * 256 + pixel. Entries of the same vertex are a run, cut into pieces of at
// most `kPieceLength`.
struct Grouping {
  static constexpr int kSlots = 2048;
  uint64_t keys[kSlots];        // hash table of the tile's vertices
  uint32_t first[kSlots];       // the lowest entry of the vertex in that slot
  uint32_t order[kSlots];       // entries in the order of their vertex's first entry, then of their
                                // own: first entry << 16 | entry, then kNowhere
  uint16_t begin[kMaxEntries];  // [a vertex's first entry]: where its run begins in `order`
  uint16_t piece[kMaxEntries];  // [position in order]: the piece it belongs to
  uint32_t sums[kThreads + 1];  // [thread]: pieces before this thread's part of `order`

  WEAKTR_MEMBER int first_entry(int position) const { return order[position] >> 16; }
  WEAKTR_MEMBER int entry(int position) const { return order[position] & 0xffff; }
  WEAKTR_MEMBER bool used(int position) const { return order[position] != kNowhere; }
  WEAKTR_MEMBER bool starts_run(int position) const {
    return used(position) && begin[first_entry(position)] == position;
  }
  WEAKTR_MEMBER bool starts_piece(int position) const {
    return used(position) && (position - begin[first_entry(position)]) % kPieceLength == 0;
  }
  // The first piece of the vertex with this first entry.
  WEAKTR_MEMBER int first_piece(int first_entry) const { return piece[begin[first_entry]]; }
};

// The corners of one pixel's simplex.
template <int D>
struct Corners {
  bool used;  // else there is no pixel
  uint64_t keys[D + 1];
  uint16_t slots[D + 1];  // in Grouping::keys
};

template <class Block>
WEAKTR_INLINE void clear(const Block& block, Grouping& group) {
  block.each([&](int thread) {
    for (int slot = thread; slot < Grouping::kSlots; slot += kThreads) {
      group.keys[slot] = kEmpty;
      group.first[slot] = kNowhere;
    }
  });
}

// Enters a pixel's corners into the tile's hash table: part of a phase.
template <int D>
WEAKTR_INLINE void enter(Grouping& group, Corners<D>& corners, int thread) {
  WEAKTR_UNROLL
  for (int corner = 0; corner <= D; ++corner) {
    const uint32_t slot = insert(group.keys, Grouping::kSlots, corners.keys[corner]);
    atomic_lower(&group.first[slot], static_cast<uint32_t>(corner * kThreads + thread));
    corners.slots[corner] = static_cast<uint16_t>(slot);
  }
}

// Sorts the entries and cuts them into pieces, all in an order that depends on nothing but the
// keys. Afterwards group.sums[kThreads] is the number of pieces.
template <int D, class Block, class AllCorners>
WEAKTR_INLINE void group_entries(const Block& block, Grouping& group, AllCorners& corners) {
  constexpr int entries = kThreads * (D + 1);
  constexpr int size = entries <= 1024 ? 1024 : 2048;
  constexpr int part = size / kThreads;  // of the order, per thread
  static_assert(entries <= size && size <= Grouping::kSlots, "room for every entry");
  block.each([&](int thread) {
    for (int corner = 0; corner <= D; ++corner) {
      const uint32_t entry = corner * kThreads + thread;
      group.order[entry] = corners[thread].used
                               ? group.first[corners[thread].slots[corner]] << 16 | entry
                               : kNowhere;
    }
    for (int i = entries + thread; i < size; i += kThreads) group.order[i] = kNowhere;
  });
  sort(block, group.order, size);
  block.each([&](int thread) {
    for (int i = thread; i < entries; i += kThreads)
      if (group.used(i) && (i == 0 || group.first_entry(i - 1) != group.first_entry(i)))
        group.begin[group.first_entry(i)] = static_cast<uint16_t>(i);
  });
  block.each([&](int thread) {
    uint32_t pieces = 0;
    for (int i = part * thread; i < part * (thread + 1); ++i) pieces += group.starts_piece(i);
    group.sums[thread + 1] = pieces;
  });
  add_up(block, group.sums);
  block.each([&](int thread) {
    uint32_t pieces = group.sums[thread];
    for (int i = part * thread; i < part * (thread + 1); ++i) {
      pieces += group.starts_piece(i);
      if (group.used(i)) group.piece[i] = static_cast<uint16_t>(pieces - 1);
    }
  });
}

}  // namespace blocks
}  // namespace weaktr
