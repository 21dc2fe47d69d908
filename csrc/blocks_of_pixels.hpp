// Slice, softmax and splat for a block of pixels. Included once per instruction set.
//
// z, q: rows of `stride` floats, one row a pixel. A record holds a pixel's offsets into the rows of
// a lattice (vertices times `offset_unit`) and the weights.
#pragma once

#include "lattice_grid.hpp"

namespace weaktr {
namespace WEAKTR_ISA {

constexpr float kNever = -1e30f;  // the score of channels that only fill up a row
constexpr float kSurest = 1e29f;  // the largest score of the others

// Where a block's pixels are in the arrays that were given; `run`: side by side.
struct BlockPlace {
  int count;
  bool run;
  int64_t index[kBlock];

  bool whole() const { return run && count == kBlock; }
  void read(const float* from, float* to) const {
    if (whole())
      for (int p = 0; p < kBlock; p += kLanes) store(to + p, load<Wide>(from + index[0] + p));
    else
      for (int p = 0; p < count; ++p) to[p] = from[index[p]];
  }
  void write(const float* from, int64_t step, float* to) const {
    if (run)
      for (int p = 0; p < count; ++p) to[index[0] + p] = from[p * step];
    else
      for (int p = 0; p < count; ++p) to[index[p]] = from[p * step];
  }
};

// What vertices are multiplied with in records; see `PlaneRow`.
constexpr uint32_t offset_unit(int width) { return width == 1 ? 1 : 2; }

// to[p] = from[p] + sum over corners of weight * rows[offset]
template <int P, int Corners>
void slice(const uint32_t* records, int any_corners, int pixels, const float* from,
           int64_t from_stride, Planes rows, float* to, int64_t to_stride) {
  const int corners = Corners ? Corners : any_corners;
  for (int p = 0; p < pixels; ++p) {
    const uint32_t* offset = records + p * 2 * corners;
    const float* weight = reinterpret_cast<const float*>(offset + corners);
    PlaneRow<P> sum;
    sum.load_from(from + p * from_stride);
    for (int r = 0; r < corners; ++r) sum.add(weight[r], rows, offset[r]);
    sum.store_to(to + p * to_stride);
  }
}

// rows[offset] += weight * q[p]
template <int P, int Corners>
void splat(const uint32_t* records, int any_corners, int pixels, const float* q, int64_t stride,
           Planes rows) {
  const int corners = Corners ? Corners : any_corners;
  for (int p = 0; p < pixels; ++p) {
    const uint32_t* offset = records + p * 2 * corners;
    const float* weight = reinterpret_cast<const float*>(offset + corners);
    PlaneRow<P> value;
    value.load_from(q + p * stride);
    for (int r = 0; r < corners; ++r) value.add_to(weight[r], rows, offset[r]);
  }
}

// norm[p] = sum over corners of weight * ones[vertex]; of records that are not folded yet
template <int Corners>
WEAKTR_INLINE void sum_ones(const uint32_t* records, int any_corners, int pixels, const float* ones,
                            float* norm) {
  const int corners = Corners ? Corners : any_corners;
  for (int p = 0; p < pixels; ++p, records += 2 * corners) {
    const float* weight = reinterpret_cast<const float*>(records + corners);
    float sum = 0;
    for (int r = 0; r < corners; ++r) sum = fused(weight[r], ones[records[r]], sum);
    norm[p] = sum;
  }
}

// Turns vertices into offsets and multiplies the weights of pixel p with scale[p].
template <int Corners>
WEAKTR_INLINE void scale_records(uint32_t* records, int any_corners, int pixels, uint32_t unit,
                                 const float* scale) {
  const int corners = Corners ? Corners : any_corners;
  for (int p = 0; p < pixels; ++p, records += 2 * corners) {
    float* weight = reinterpret_cast<float*>(records + corners);
    for (int r = 0; r < corners; ++r) records[r] *= unit;
    for (int r = 0; r < corners; ++r) weight[r] *= scale[p];
  }
}

// Lists the pixels that touch each vertex, in their order, from folded records.
inline void list_pixels(LatticeMemory& memory, int64_t pixels, uint32_t unit) {
  Lattice& lattice = memory.lattice;
  const int corners = lattice.corners;
  const uint32_t* records = lattice.records;
  int64_t* start = memory.by_vertex.reserve<int64_t>(lattice.vertices + 2 + pixels * corners);
  uint32_t* list = reinterpret_cast<uint32_t*>(start + lattice.vertices + 2);
  std::memset(start, 0, sizeof(int64_t) * static_cast<size_t>(lattice.vertices + 2));
  for (int64_t p = 0; p < pixels; ++p)
    for (int r = 0; r < corners; ++r) ++start[records[p * 2 * corners + r] / unit + 2];
  for (int64_t v = 2; v < lattice.vertices + 2; ++v) start[v] += start[v - 1];
  for (int64_t p = 0; p < pixels; ++p)
    for (int r = 0; r < corners; ++r) {
      const uint32_t* record = records + p * 2 * corners;
      const int64_t place = start[record[r] / unit + 1]++;  // in the end: where v + 1 begins
      list[2 * place] = static_cast<uint32_t>(p);
      list[2 * place + 1] = record[corners + r];
    }
  lattice.pixel_start = start;
  lattice.pixels = list;
}

// The same sums as `splat`, for vertices begin ... end - 1 of one plane instead of pixels: what a
// vertex receives is added in the order of the pixels. `q` [N, stride].
template <int P>
void gather(const Lattice& lattice, int64_t begin, int64_t end, const float* q, int64_t stride,
            const float* before, float* rows) {
  for (int64_t v = begin; v < end; ++v) {
    Row<P> sum;
    sum.clear();
    for (int64_t i = lattice.pixel_start[v]; i < lattice.pixel_start[v + 1]; ++i) {
      const int64_t pixel = lattice.pixels[2 * i];
      float weight;
      std::memcpy(&weight, lattice.pixels + 2 * i + 1, sizeof weight);
      Row<P> value;
      value.load_from(q + pixel * stride);
      if (before) value.scale(before[pixel]);
      sum.add(weight, value);
    }
    sum.store_to(rows + v * P);
  }
}

typedef void (*Slice)(const uint32_t*, int, int, const float*, int64_t, Planes, float*, int64_t);
typedef void (*Splat)(const uint32_t*, int, int, const float*, int64_t, Planes);
typedef void (*Gather)(const Lattice&, int64_t, int64_t, const float*, int64_t, const float*,
                       float*);
typedef void (*BlurChains)(const Chains&, int64_t, int64_t, float*);

// The functions for some neighbouring columns of the rows, whole planes or the end of a row.
struct Columns {
  int width;
  Slice slice[3];  // for 3 corners, 6, any number
  Splat splat[3];
};
template <int P>
constexpr Columns columns_of() {
  return Columns{
      P, {slice<P, 3>, slice<P, 6>, slice<P, 0>}, {splat<P, 3>, splat<P, 6>, splat<P, 0>}};
}

// The functions for one plane of the rows.
struct Plane {
  int width;
  Gather gather;
  BlurChains blur;
};
template <int P>
constexpr Plane plane_of() {
  return Plane{P, gather<P>, blur_chains<P>};
}

WEAKTR_INLINE int variant(int corners) { return corners == 3 ? 0 : corners == 6 ? 1 : 2; }

// A wider row is worked on in groups of columns, so that they fit the registers.
constexpr Columns kColumns[] = {
    columns_of<1>(),  columns_of<4>(),  columns_of<8>(),  columns_of<12>(), columns_of<16>(),
#if defined(__AVX2__)
    columns_of<20>(), columns_of<24>(), columns_of<28>(), columns_of<32>(),
#endif
#if defined(__AVX512F__)
    columns_of<48>(), columns_of<64>(), columns_of<80>(), columns_of<96>(),
#endif
};

constexpr Plane kPlanes[] = {plane_of<1>(), plane_of<4>(), plane_of<8>(), plane_of<12>(),
                             plane_of<kPlane>()};

// Floats in a row of `channels` values.
WEAKTR_INLINE int row_width(int channels) {
  if (channels <= 1) return channels;
  for (const Columns& columns : kColumns)
    if (columns.width >= channels) return columns.width;
  return (channels + 15) / 16 * 16;
}

// The widest functions for what is left of a row.
template <class Functions, int Count>
WEAKTR_INLINE const Functions& widest(const Functions (&functions)[Count], int left) {
  int best = 0;
  for (int i = 0; i < Count; ++i)
    if (functions[i].width <= left) best = i;
  return functions[best];
}
WEAKTR_INLINE const Columns& columns_for(int left) { return widest(kColumns, left); }
WEAKTR_INLINE const Plane& plane_for(int left) { return widest(kPlanes, left); }

// Floats from one row of z or q to the next, for rows of `width`.
WEAKTR_INLINE int block_stride(int width) {
  return width == 1 || width == 4 ? width : (width + kLanes - 1) / kLanes * kLanes;
}

// How the channels of a row make up the labels' probabilities.
enum class Channels {
  all,         // channel l is label l
  differences  // channel l is label l + 1 minus label 0, whose score is 0
};

// Softmax over rows: q = e^z / sum; with differences q = (e^z - minus * e^0) / sum and
// first = e^0 / sum. Computes whole groups of kLanes pixels, so there must be room for them.
inline void softmax_rows(const float* z, float* q, float* first, int pixels, int64_t stride,
                         Channels channels, float minus) {
  alignas(64) float top[kLanes], scale[kLanes], offset[kLanes];
  for (int p = 0; p < pixels; p += kLanes, z += kLanes * stride, q += kLanes * stride) {
    Wide rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      rows[lane] = load<Wide>(z + lane * stride);
      for (int64_t i = kLanes; i < stride; i += kLanes)
        rows[lane] = larger(rows[lane], load<Wide>(z + lane * stride + i));
    }
    Wide largest = join_lanes(rows, larger), zero = {};
    if (channels == Channels::differences) {
      largest = larger(largest, Wide{});
      zero = exponential(-largest);
    }
    store(top, largest);
    for (int lane = 0; lane < kLanes; ++lane) {
      const Wide highest = filled<Wide>(top[lane]);
      rows[lane] = Wide{};
      for (int64_t i = lane * stride; i < (lane + 1) * stride; i += kLanes) {
        const Wide e = exponential(load<Wide>(z + i) - highest);
        rows[lane] = rows[lane] + e;
        store(q + i, e);
      }
    }
    const Wide sum = join_lanes(rows, [](Wide a, Wide b) { return a + b; });
    const Wide inverse = reciprocal(sum + zero);
    store(scale, inverse);
    store(first + p, zero * inverse);
    store(offset, zero * inverse * -minus);
    for (int lane = 0; lane < kLanes; ++lane) {
      const Wide factor = filled<Wide>(scale[lane]), shift = filled<Wide>(offset[lane]);
      for (int64_t i = lane * stride; i < (lane + 1) * stride; i += kLanes)
        store(q + i, fused(load<Wide>(q + i), factor, shift));
    }
  }
}

// In every four lanes, the neighbour at distance 1 or 2.
WEAKTR_INLINE Wide swap_pairs(Wide x) {
#if defined(__AVX512F__)
  return (Wide)_mm512_permute_ps((__m512)x, 0xB1);
#elif defined(__AVX2__)
  return (Wide)_mm256_permute_ps((__m256)x, 0xB1);
#else
  return Wide{x[1], x[0], x[3], x[2]};
#endif
}
WEAKTR_INLINE Wide swap_halves(Wide x) {
#if defined(__AVX512F__)
  return (Wide)_mm512_permute_ps((__m512)x, 0x4E);
#elif defined(__AVX2__)
  return (Wide)_mm256_permute_ps((__m256)x, 0x4E);
#else
  return Wide{x[2], x[3], x[0], x[1]};
#endif
}

// Rows of four: several pixels a vector.
inline void softmax_fours(const float* z, float* q, float* first, int pixels, Channels channels,
                          float minus) {
  const bool reference = channels == Channels::differences;
  for (int i = 0; i < 4 * pixels; i += kLanes) {
    const Wide x = load<Wide>(z + i);
    Wide top = larger(x, swap_pairs(x));
    top = larger(top, swap_halves(top));
    if (reference) top = larger(top, Wide{});
    const Wide e = exponential(x - top);
    Wide sum = e + swap_pairs(e);
    sum = sum + swap_halves(sum);
    Wide zero = {};
    if (reference) zero = exponential(-top);
    const Wide scale = reciprocal(sum + zero);
    store(q + i, (e - minus * zero) * scale);
    if (!reference) continue;
    zero = zero * scale;
    for (int lane = 0; lane < kLanes; lane += 4) first[(i + lane) / 4] = zero[lane];
  }
}

// Rows of one: two labels by their difference.
inline void softmax_ones(const float* z, float* q, float* first, int pixels, float minus) {
  for (int i = 0; i < pixels; i += kLanes) {
    const Wide x = load<Wide>(z + i);
    const WideInt negative = less_mask(x, Wide{});
    const Wide e = exponential(choose(negative, x, -x));
    const Wide likely = reciprocal(1.0f + e), unlikely = e * likely;
    const Wide one = choose(negative, unlikely, likely), zero = choose(negative, likely, unlikely);
    store(q + i, one - minus * zero);
    store(first + i, zero);
  }
}

}  // namespace WEAKTR_ISA
}  // namespace weaktr
