// Slice, softmax and splat for a strip of pixels, those that are worked on together. Included once
// per instruction set.
//
// z, q: rows of `width` floats, one row a pixel. A record holds a pixel's offsets into the rows of
// a lattice (vertices times `offset_unit`) and the weights.
#pragma once

#include "dense_crf/cpu/lattice_grid.hpp"

namespace weaktr {
namespace WEAKTR_ISA {

constexpr float kNever = -1e30f;  // the score of channels that only fill up a row
constexpr float kSurest = 1e29f;  // the largest score of the others

// Where a strip's pixels are in the arrays that were given; `run`: side by side.
struct StripPlace {
  int count;
  bool run;
  int64_t index[kStrip];

  bool whole() const { return run && count == kStrip; }
  void read(const float* from, float* to) const {
    if (whole())
      for (int p = 0; p < kStrip; p += kLanes) store(to + p, load<Wide>(from + index[0] + p));
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

// to[p] = before[p] + sum over corners of weight * rows[offset] + after[p], where `before` and
// `after` may be nullptr.
template <int P, int Corners>
void slice(const uint32_t* records, int any_corners, int pixels, Planes rows, const float* before,
           const float* after, float* to, int64_t width) {
  const int corners = Corners ? Corners : any_corners;
  for (int p = 0; p < pixels; ++p) {
    const uint32_t* offset = records + p * 2 * corners;
    const float* weight = reinterpret_cast<const float*>(offset + corners);
    PlaneRow<P> sum;
    if (before)
      sum.load_from(before + p * width);
    else
      sum.clear();
    for (int r = 0; r < corners; ++r) sum.add(weight[r], rows, offset[r]);
    if (after) sum.add(after + p * width);
    sum.store_to(to + p * width);
  }
}

// rows[offset] += weight * q[p]
template <int P, int Corners>
void splat(const uint32_t* records, int any_corners, int pixels, const float* q, Planes rows,
           int64_t width) {
  const int corners = Corners ? Corners : any_corners;
  for (int p = 0; p < pixels; ++p) {
    const uint32_t* offset = records + p * 2 * corners;
    const float* weight = reinterpret_cast<const float*>(offset + corners);
    PlaneRow<P> value;
    value.load_from(q + p * width);
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
// vertex receives is added in the order of the pixels. `q` [N, width].
template <int P>
void gather(const Lattice& lattice, int64_t begin, int64_t end, const float* q, int64_t width,
            const float* before, float* rows) {
  for (int64_t v = begin; v < end; ++v) {
    Row<P> sum;
    sum.clear();
    for (int64_t i = lattice.pixel_start[v]; i < lattice.pixel_start[v + 1]; ++i) {
      const int64_t pixel = lattice.pixels[2 * i];
      float weight;
      std::memcpy(&weight, lattice.pixels + 2 * i + 1, sizeof weight);
      Row<P> value;
      value.load_from(q + pixel * width);
      if (before) value.scale(before[pixel]);
      sum.add(weight, value);
    }
    sum.store_to(rows + v * P);
  }
}

typedef void (*Slice)(const uint32_t*, int, int, Planes, const float*, const float*, float*,
                      int64_t);
typedef void (*Splat)(const uint32_t*, int, int, const float*, Planes, int64_t);
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

// How the channels of a row make up the labels' probabilities.
enum class Channels {
  all,         // channel l is label l
  differences  // channel l is label l + 1 minus label 0, whose score is 0
};

// How kLanes rows of `width` floats, one after another, lie in vectors.
struct RowsInVectors {
  int width = 0;
  bool whole = true;                           // no vector holds floats of two rows; else
  alignas(64) uint8_t rows[32 * kLanes] = {};  // [width, kLanes] which row each float is of

  void lay_out(int floats) {
    width = floats;
    whole = width % kLanes == 0;
    for (int i = 0; i < width * kLanes && !whole; ++i) rows[i] = static_cast<uint8_t>(i / width);
  }
  // job(start, spread) for every vector; spread(values) gives each lane its row's of kLanes values.
  template <class Job>
  WEAKTR_MEMBER void for_each(const Job& job) const {
    if (whole) {
      for (int row = 0; row < kLanes; ++row)
        for (int i = row * width; i < (row + 1) * width; i += kLanes)
          job(i, [&](const float* values) { return filled<Wide>(values[row]); });
    } else {
      for (int i = 0; i < kLanes * width; i += kLanes)
        job(i, [&](const float* values) { return lanes_at(load<Wide>(values), rows + i); });
    }
  }
  // What each row's floats come to, joined two by two; `none` changes nothing that it is joined to.
  template <class Join>
  WEAKTR_MEMBER Wide join_each(const float* from, float none, const Join& join) const {
    Wide joined[kLanes];
    for (int row = 0; row < kLanes; ++row, from += width) {
      joined[row] = filled<Wide>(none);
      int i = 0;
      for (; i + kLanes <= width; i += kLanes)
        joined[row] = join(joined[row], load<Wide>(from + i));
      if (!whole) joined[row] = join(joined[row], load_some(from + i, width - i, none));
    }
    return join_lanes(joined, join);
  }
};

// Whether differences of scores may be used as exponents as they are, for no sum can overflow;
// else the largest of each row is subtracted first.
inline bool moderate(const float* z, int count) {
  Wide most = load<Wide>(z);
  for (int i = kLanes; i < count; i += kLanes) most = larger(most, load<Wide>(z + i));
  return !any_above(most, 60.0f);
}

// Softmax over rows: q = e^z / sum; with differences q = (e^z - minus * e^0) / sum and
// first = e^0 / sum. Computes whole groups of kLanes pixels, so there must be room for them.
inline void softmax_rows(const float* z, float* q, float* first, int pixels,
                         const RowsInVectors& vectors, Channels channels, float minus) {
  alignas(64) float top[kLanes], scale[kLanes], offset[kLanes];
  const int step = kLanes * vectors.width;
  for (int p = 0; p < pixels; p += kLanes, z += step, q += step) {
    Wide zero = {};
    if (channels == Channels::differences && moderate(z, step)) {
      for (int i = 0; i < step; i += kLanes) store(q + i, exponential(load<Wide>(z + i)));
      zero = filled<Wide>(1.0f);
    } else {
      Wide largest = vectors.join_each(z, kNever, larger);
      if (channels == Channels::differences) {
        largest = larger(largest, Wide{});
        zero = exponential(-largest);
      }
      store(top, largest);
      vectors.for_each(
          [&](int i, auto spread) { store(q + i, exponential(load<Wide>(z + i) - spread(top))); });
    }
    const Wide sum = vectors.join_each(q, 0.0f, [](Wide a, Wide b) { return a + b; });
    const Wide inverse = reciprocal(sum + zero);
    store(scale, inverse);
    store(first + p, zero * inverse);
    store(offset, zero * inverse * -minus);
    vectors.for_each([&](int i, auto spread) {
      store(q + i, fused(load<Wide>(q + i), spread(scale), spread(offset)));
    });
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
  const auto divide = [&](int i, Wide e, Wide zero) {
    Wide sum = e + swap_pairs(e);
    sum = sum + swap_halves(sum);
    const Wide scale = reciprocal(sum + zero);
    store(q + i, (e - minus * zero) * scale);
    zero = zero * scale;
    for (int lane = 0; lane < kLanes && reference; lane += 4) first[(i + lane) / 4] = zero[lane];
  };
  if (reference && moderate(z, 4 * pixels)) {
    for (int i = 0; i < 4 * pixels; i += kLanes)
      divide(i, exponential(load<Wide>(z + i)), filled<Wide>(1.0f));
    return;
  }
  for (int i = 0; i < 4 * pixels; i += kLanes) {
    const Wide x = load<Wide>(z + i);
    Wide top = larger(x, swap_pairs(x));
    top = larger(top, swap_halves(top));
    if (reference) top = larger(top, Wide{});
    divide(i, exponential(x - top), reference ? exponential(-top) : Wide{});
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
