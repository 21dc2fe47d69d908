// Builds the lattice of the pixels' positions, whose vertices fill a region of the plane: they are
// rows of a dense table, and neighbours are found by arithmetic. Included once per instruction set.
//
// Table row t = -k_2 (that is the image's y, upwards from 0), within it k_0 in steps of 3 from
// `base(t)`, which follows the slant of the lattice so that rows cover the same x.
#pragma once

#include "dense_crf/cpu/lattice_hashed.hpp"

namespace weaktr {
namespace WEAKTR_ISA {

constexpr int64_t kRowMargin = 6;     // rows before t = 0
constexpr int64_t kColumnMargin = 4;  // columns at either end that no pixel touches

WEAKTR_INLINE int64_t floor_div(int64_t a, int64_t b) {
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

// Where row t begins, in k_0; agrees with -t modulo 3.
WEAKTR_INLINE int64_t grid_base(int64_t t) {
  const int64_t start = floor_div(t - 6, 2) - 3 * kColumnMargin;
  const int64_t wanted = ((-t) % 3 + 3) % 3;
  const int64_t is = (start % 3 + 3) % 3;
  return start - (is - wanted + 3) % 3;
}

struct GridShape {
  int64_t rows, columns;
};

// Room for all vertices around pixels whose scaled positions reach from 0 to `right` and `bottom`.
WEAKTR_INLINE GridShape grid_shape(float right, float bottom) {
  const int64_t rows = static_cast<int64_t>(std::ceil(2.0 * bottom)) + 2 * kRowMargin;
  const int64_t columns = static_cast<int64_t>(std::ceil(right)) / 3 + 6 + 2 * kColumnMargin;
  return GridShape{rows, columns};
}

struct GridBuilder {
  LatticeMemory& memory;
  GridShape shape;

  // `xs` [width], `ys` [height]: scaled positions. `order`: the pixels in their order.
  void build(const float* xs, const float* ys, const Pixel* order, int64_t pixels) {
    const int64_t cells = shape.rows * shape.columns;
    Lattice& lattice = memory.lattice;
    uint8_t* touched = memory.scratch.reserve<uint8_t>(cells);
    float* ones = memory.ones.reserve<float>(cells + kLookAhead);
    std::memset(touched, 0, static_cast<size_t>(cells));
    std::memset(ones, 0, static_cast<size_t>(cells) * sizeof(float));
    int64_t* start = memory.keys.reserve<int64_t>(shape.rows);  // cell of k_0 = 3 m + r at m = 0
    for (int64_t row = 0; row < shape.rows; ++row) {
      const int64_t base = grid_base(row - kRowMargin);
      start[row] = row * shape.columns - floor_div(base, 3);
    }
    uint32_t* records = memory.records.reserve<uint32_t>((pixels + kBlock) * 6);
    for (int64_t p = 0; p < pixels; p += kLanes) {
      const int count = static_cast<int>(pixels - p < kLanes ? pixels - p : kLanes);
      add_pixels(xs, ys, order + p, count, start, records + p * 6, touched, ones);
    }
    lattice.records = records;
    lattice.vertices = cells;
    lattice.dense = true;
    describe(touched);
  }

 private:
  WEAKTR_MEMBER void add_pixels(const float* xs, const float* ys, const Pixel* pixels, int count,
                                const int64_t* start, uint32_t* records, uint8_t* touched,
                                float* ones) const {
    alignas(64) float x[kLanes] = {}, y[kLanes] = {}, weight[3][kLanes];
    for (int lane = 0; lane < count; ++lane)
      x[lane] = xs[pixels[lane].x], y[lane] = ys[pixels[lane].y];
    const Wide position[2] = {load<Wide>(x), load<Wide>(y)};
    Simplex<2, Wide, WideInt> simplex;
    enclosing_simplex<2>(position, simplex);
    for (int r = 0; r < 3; ++r) store(weight[r], simplex.weights[r]);
    for (int lane = 0; lane < count; ++lane) {
      // m = (k_0 - r) / 3 and t = -k_2 = k_0 + k_1 = 2 k_0 + 3 digit_1 of corner r
      int64_t m = simplex.first[lane] / 3;
      int64_t t = 2 * static_cast<int64_t>(simplex.first[lane]) + 3 * simplex.digits[1][lane];
      for (int r = 0; r < 3; ++r) {
        if (r) {
          const int dropped = simplex.dropped[r][lane];
          m -= dropped == 0;
          t += dropped == 2 ? 2 : -1;
        }
        const int64_t cell = start[t + kRowMargin] + m;
        records[lane * 6 + r] = static_cast<uint32_t>(cell);
        std::memcpy(records + lane * 6 + 3 + r, &weight[r][lane], sizeof(float));
        touched[cell] = 1;
        ones[cell] += weight[r][lane];
      }
    }
  }

  // Neighbours and absent vertices.
  void describe(const uint8_t* touched) {
    Grid& grid = memory.lattice.grid;
    const int64_t cells = shape.rows * shape.columns;
    int64_t absent = 0;
    for (int64_t i = 0; i < cells; ++i) absent += !touched[i];
    int64_t* absent_start = memory.grid.reserve<int64_t>(shape.rows + 1 + 2 * shape.rows + absent);
    int32_t* shift = reinterpret_cast<int32_t*>(absent_start + shape.rows + 1);
    uint32_t* list = reinterpret_cast<uint32_t*>(shift + 3 * shape.rows);
    absent = 0;
    for (int64_t row = 0; row < shape.rows; ++row) {
      absent_start[row] = absent;
      for (int64_t i = row * shape.columns; i < (row + 1) * shape.columns; ++i)
        if (!touched[i]) list[absent++] = static_cast<uint32_t>(i);
      // the steps of axes 0, 1 and 2 change k_0 by +2, -1, -1 and t by +1, +1, -2; axis 2 is told
      // by its other direction (+1, +2), so that all three go up in t
      const int64_t t = row - kRowMargin, base = grid_base(t);
      shift[row] = static_cast<int32_t>((base + 2 - grid_base(t + 1)) / 3);
      shift[shape.rows + row] = static_cast<int32_t>((base - 1 - grid_base(t + 1)) / 3);
      shift[2 * shape.rows + row] = static_cast<int32_t>((base + 1 - grid_base(t + 2)) / 3);
    }
    absent_start[shape.rows] = absent;
    grid.rows = shape.rows;
    grid.columns = shape.columns;
    for (int axis = 0; axis < 3; ++axis) grid.shift[axis] = shift + axis * shape.rows;
    grid.absent = list;
    grid.absent_start = absent_start;
  }
};

// values[i] = values[i] + (before[i] + after[i]) / 2; keeps what `values` was in `old`.
WEAKTR_INLINE void blur_span(float* values, const float* before, const float* after, float* old,
                             int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Wide own = load<Wide>(values + i);
    const Wide sum = load<Wide>(before + i) + load<Wide>(after + i);
    store(old + i, own);
    store(values + i, fused(filled<Wide>(0.5f), sum, own));
  }
  for (; i < count; ++i) {
    old[i] = values[i];
    values[i] = fused(0.5f, before[i] + after[i], values[i]);
  }
}

// The blur of `cells` [rows * columns, width] along one axis, a row at a time from the top.
struct GridAxis {
  const Grid& grid;
  float* cells;
  int64_t width;
  int axis;
  float* kept;  // [3, columns * width] the last rows as they were, at first 0

  WEAKTR_MEMBER int64_t step() const { return axis == 2 ? 2 : 1; }  // rows to the neighbours
  WEAKTR_MEMBER void blur_row(int64_t row) const {
    const int64_t span = grid.columns * width;
    if (row < step() || row + step() >= grid.rows) return;
    const int64_t first = kColumnMargin / 2 * width, count = (grid.columns - kColumnMargin) * width;
    const int32_t* shift = grid.shift[axis];
    float* values = cells + row * span;
    const float* after = values + step() * span + shift[row] * width;
    const float* before = kept + (row - step()) % 3 * span - shift[row - step()] * width;
    blur_span(values + first, before + first, after + first, kept + row % 3 * span + first, count);
    for (int64_t a = grid.absent_start[row]; a < grid.absent_start[row + 1]; ++a)
      std::memset(cells + grid.absent[a] * width, 0, sizeof(float) * static_cast<size_t>(width));
  }
};

// Blurs `cells` along the three axes in place, in one go: an axis follows the one before as soon as
// that is done with the rows it reads. `memory`: room for the rows that are kept.
inline void blur_grid(const Grid& grid, float* cells, int64_t width, Buffer& memory) {
  const int64_t span = 3 * grid.columns * width;
  float* kept = memory.reserve<float>(3 * span);
  std::memset(kept, 0, static_cast<size_t>(3 * span) * sizeof(float));
  const GridAxis first{grid, cells, width, 0, kept}, second{grid, cells, width, 1, kept + span},
      third{grid, cells, width, 2, kept + 2 * span};
  for (int64_t row = 0; row < grid.rows + 3; ++row) {
    first.blur_row(row);
    second.blur_row(row - 1);
    third.blur_row(row - 3);
  }
}

}  // namespace WEAKTR_ISA
}  // namespace weaktr
