// Memory that outlives an image, and the lattice as plain arrays.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dense_crf/problem.hpp"

namespace weaktr {

// A piece of memory that only grows. Aligned to 64 bytes, with room for 64 bytes of overrun.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }

  // Room for `count` values, contents undefined. Throws std::bad_alloc before memory runs out.
  template <class T>
  WEAKTR_MEMBER T* reserve(int64_t count) {
    return static_cast<T*>(grow(static_cast<size_t>(count) * sizeof(T), 0));
  }
  // Room for `count` values of which the first `kept` stay.
  template <class T>
  WEAKTR_MEMBER T* extend(int64_t count, int64_t kept) {
    return static_cast<T*>(
        grow(static_cast<size_t>(count) * sizeof(T), static_cast<size_t>(kept) * sizeof(T)));
  }
  // What is there.
  template <class T>
  WEAKTR_MEMBER T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  void release();

 private:
  void* grow(size_t bytes, size_t kept);
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Chains of vertices along one axis, to be blurred in place.
struct Chains {
  const uint32_t* entries = nullptr;  // [count], and a few more to look ahead to
  int64_t count = 0;                  // vertices without neighbours are left out
};
// Marks the entry of a vertex that continues the chain of the one before.
constexpr uint32_t kContinues = uint32_t{1} << 31;

// Rows of a lattice of positions that lie on a grid, where neighbours are found by arithmetic.
struct Grid {
  int64_t rows = 0, columns = 0;
  const int32_t* shift[3] = {};      // per axis [rows]: column of the neighbour in the row above
  const uint32_t* absent = nullptr;  // vertices that no pixel touches, ascending
  const int64_t* absent_start = nullptr;  // [rows + 1]
};

// Splat, blur and slice of one kernel as index and weight tables.
struct Lattice {
  int corners = 0;  // d + 1
  int64_t vertices = 0;
  uint32_t* records = nullptr;  // per pixel `corners` offsets, then `corners` weights (float)
  const uint32_t* first_touch = nullptr;  // [blocks + 1] vertices touched before each block
  const Chains* rounds = nullptr;         // of a blur, one after the other
  int round_count = 0;
  bool dense = false;  // a grid instead of chains
  Grid grid;
  const int64_t* pixel_start = nullptr;  // [vertices + 1] into the pixels that touch a vertex
  const uint32_t* pixels = nullptr;      // pairs of pixel and weight (float)
  const float* ones = nullptr;           // [vertices] ones, splatted and blurred
  bool folded = false;                   // offsets are scaled and weights normalised
};

// One kernel's memory. The lattice of positions is kept for the next image of the same size.
struct LatticeMemory {
  Lattice lattice;
  Buffer records, keys, table, first_touch, chains[kMaxDimensions + 1];
  Buffer rounds, times, merged, grid, ones, rows[2], scratch, before, after, by_vertex;
  // what `lattice` was made for; height 0: nothing to reuse
  int64_t height = 0, width = 0;
  float deviations[2] = {};
  Normalization normalization = Normalization::none;
  float strength = 0;
  int row_width = 0;
  int lanes = 0;  // instruction sets round differently
};

struct Pixel {
  uint32_t x, y;
};

// Everything one image needs.
struct Workspace {
  Buffer order, scores, labels, block, compat, messages, marginals, parts;
  int64_t order_height = 0, order_width = 0;
  LatticeMemory* kernels = nullptr;  // [kernel_count]
  int kernel_count = 0;

  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { delete[] kernels; }
  void need_kernels(int count);
  // Whether it is small beside the memory that the system has left.
  bool worth_keeping() const;
};

}  // namespace weaktr
