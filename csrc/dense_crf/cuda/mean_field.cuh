// The program of the mean field.
//
//   Pass   slice, softmax and the splat's first half of a tile
#pragma once

#include "dense_crf/cuda/splat.cuh"

namespace weaktr {
namespace blocks {

// -U of four labels of a pixel. A label that the table lacks gives NaN.
WEAKTR_INLINE Quad minus_unary(const ImageView& image, int64_t pixel, int quad) {
  const size_t pixels = static_cast<size_t>(image.height) * image.width;
  const int row = image.unary ? 0 : image.label_map[pixel];
  Quad minus;
  WEAKTR_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int label = 4 * quad + i;
    minus.lane[i] = -INFINITY;
    if (label >= image.labels) continue;
    if (image.unary)
      minus.lane[i] = -image.unary[label * pixels + pixel];
    else
      minus.lane[i] = row < image.table_rows ? -image.table[row * image.labels + label] : NAN;
  }
  return minus;
}

// A pixel's values, four labels each: in registers, or where there are too many in memory.
template <int Quads>
struct PixelValues {
  Quad quads[Quads];
  WEAKTR_MEMBER void place(Quad*) {}
  WEAKTR_MEMBER Quad& operator[](int quad) { return quads[quad]; }
};
template <>
struct PixelValues<0> {
  Quad* quads;
  WEAKTR_MEMBER void place(Quad* memory) { quads = memory; }
  WEAKTR_MEMBER Quad& operator[](int quad) { return quads[quad * kThreads]; }
};

// The lattices of a pair over one tile.
struct PairTile {
  const BatchView& batch;
  const Pair& pair;
  uint32_t tile;
  int position_runs, colour_runs;

  WEAKTR_MEMBER PairTile(const BatchView& batch, int pair, uint32_t tile)
      : batch(batch),
        pair(batch.pairs[pair]),
        tile(tile),
        position_runs(has<2>() ? lattice_tile<2>().runs() : 0),
        colour_runs(has<5>() ? lattice_tile<5>().runs() : 0) {}

  template <int D>
  WEAKTR_MEMBER bool has() const {
    return (D == 2 ? pair.position : pair.colour) >= 0;
  }
  template <int D>
  WEAKTR_MEMBER LatticeTile lattice_tile() const {
    return LatticeTile(batch, batch.lattices[D == 2 ? pair.position : pair.colour], tile);
  }
  // Rows are the runs of the first lattice, then of the second.
  WEAKTR_MEMBER int rows() const { return position_runs + colour_runs; }
  template <int D>
  WEAKTR_MEMBER int first_row() const {
    return D == 2 ? 0 : position_runs;
  }
};

template <int Quads>
struct PixelState {
  int32_t pixel;              // -1: outside of the image
  PixelValues<Quads> values;  // z, then Q
  TileCorners<2> position;    // of the pair that is worked on
  TileCorners<5> colour;

  template <int D>
  WEAKTR_MEMBER TileCorners<D>& corners() {
    if constexpr (D == 2)
      return position;
    else
      return colour;
  }
};

// One block per tile, or any number of blocks. Slices round `iteration` - 1 into
// z = -U - sum over kernels of compat(K~ Q), takes Q = softmax(z), and sums it up for round
// `iteration`, or writes it down after the last one. Up to `Quads` quads of labels; 0: any number,
// in `scratch` [blocks][most_quads][kThreads].
template <int Quads>
struct Pass {
  static constexpr int kWidth = Quads == 1 ? 1 : 2;      // quads at a time
  static constexpr int kRows = 1152;                     // at a time; of most tiles, all
  static constexpr int kGathered = kWidth == 1 ? 4 : 6;  // by a thread at once
  // As many as registers and shared memory allow.
  static constexpr int kBlocksPerMultiprocessor = Quads == 1 ? 6 : Quads == 2 ? 4 : 3;
  static constexpr int kPositionEntries = 3 * kThreads;

  // What shares a place is used one after the other.
  struct Shared {
    float weights[kPositionEntries + kMaxEntries];  // of the entries of both lattices
    union {
      Quad blurred[kRows][kWidth];  // of every row's vertex
      struct {
        Quad marginals[kWidth][kThreads];
        Quad position_heads[kWidth][kThreads], colour_heads[kWidth][kThreads];
      } splat;
    };
  };
  template <class Block>
  using States = typename Block::template Private<PixelState<Quads>>;

  BatchView batch;
  int iteration;
  bool last;
  Quad* scratch;
  int most_quads;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared& shared) const {
    const uint32_t tiles = batch.image_tiles[batch.image_count];
    for (uint32_t tile = block.index; tile < tiles; tile += block.count) {
      const int number = segment_of(batch.image_tiles, batch.image_count, tile);
      run(block, shared, batch.images[number], tile - batch.image_tiles[number]);
    }
  }

  template <class Block>
  WEAKTR_MEMBER void run(const Block& block, Shared& shared, const ImageView& image,
                         uint32_t tile) const {
    States<Block> states;
    const int first = image.first_pair, end = first + image.pairs;
    block.each([&](int thread) {
      PixelState<Quads>& state = states[thread];
      state.values.place(scratch + static_cast<size_t>(block.index) * most_quads * kThreads +
                         thread);
      const Place place(image, tile, thread);
      state.pixel = place.inside ? static_cast<int32_t>(place.pixel) : -1;
      if (place.inside)
        for_quads(image,
                  [&](int quad) { state.values[quad] = minus_unary(image, place.pixel, quad); });
      if (first < end) read_corners(PairTile(batch, first, tile), state, thread);
    });
    for (int pair = first; iteration > 0 && pair < end; ++pair)
      slice(block, shared, image, PairTile(batch, pair, tile), states, pair > first);
    block.each([&](int thread) {
      PixelState<Quads>& state = states[thread];
      if (state.pixel < 0) return;
      softmax(image, state.values);
      if (last) write(image, state.pixel, state.values);
    });
    // Of a single pair, the corners are still there.
    for (int pair = first; !last && pair < end; ++pair)
      splat(block, shared, image, PairTile(batch, pair, tile), states, end - first > 1);
  }

  template <class Body>
  WEAKTR_MEMBER static void for_quads(const ImageView& image, const Body& body) {
    WEAKTR_UNROLL
    for (int quad = 0; quad < (Quads ? Quads : image.quads); ++quad)
      if (!Quads || quad < image.quads) body(quad);
  }

  // body(the first quad, how many) for `kWidth` quads at a time.
  template <class Body>
  WEAKTR_MEMBER static void for_widths(const ImageView& image, const Body& body) {
    WEAKTR_UNROLL
    for (int quad = 0; quad < (Quads ? Quads : image.quads); quad += kWidth)
      if (!Quads || quad < image.quads)
        body(quad, image.quads - quad < kWidth ? image.quads - quad : kWidth);
  }

  template <class Body>
  WEAKTR_MEMBER static void for_lattices(const PairTile& pair, const Body& body) {
    if (pair.template has<2>()) body(Dimensions<2>(), pair.template lattice_tile<2>());
    if (pair.template has<5>()) body(Dimensions<5>(), pair.template lattice_tile<5>());
  }

  WEAKTR_MEMBER static void read_corners(const PairTile& pair, PixelState<Quads>& state,
                                         int thread) {
    for_lattices(pair, [&](auto dimensions, const LatticeTile& tile) {
      constexpr int D = decltype(dimensions)::value;
      state.template corners<D>().read(tile, thread, state.pixel >= 0);
    });
  }

  // z -= compat(K~ Q) of a pair's kernels.
  template <class Block>
  WEAKTR_MEMBER void slice(const Block& block, Shared& shared, const ImageView& image,
                           const PairTile& pair, States<Block>& states, bool reads_corners) const {
    if (reads_corners) block.each([&](int thread) { read_corners(pair, states[thread], thread); });
    for_widths(image, [&](int quad, int width) {
      for (int first = 0; first < pair.rows(); first += kRows) {
        block.each([&](int thread) { gather(shared, pair, first, quad, width, thread); });
        block.each([&](int thread) {
          PixelState<Quads>& state = states[thread];
          if (state.pixel < 0) return;
          for_lattices(pair, [&](auto dimensions, const LatticeTile& tile) {
            constexpr int D = decltype(dimensions)::value;
            take_messages<D>(shared, tile.lattice, pair.template first_row<D>() - first, state,
                             quad, width);
          });
        });
      }
    });
  }

  // Some rows' quads into shared memory.
  WEAKTR_MEMBER void gather(Shared& shared, const PairTile& pair, int first, int quad, int width,
                            int thread) const {
    const int rows = pair.rows() - first < kRows ? pair.rows() - first : kRows;
    for (int begin = thread; begin < rows * kWidth; begin += kGathered * kThreads) {
      Quad quads[kGathered];
      WEAKTR_UNROLL
      for (int i = 0; i < kGathered; ++i) {
        const int place = begin + i * kThreads, row = place / kWidth, offset = place % kWidth;
        if (row < rows && offset < width) quads[i] = result_of(pair, first + row, quad + offset);
      }
      WEAKTR_UNROLL
      for (int i = 0; i < kGathered; ++i) {
        const int place = begin + i * kThreads, row = place / kWidth;
        if (row < rows) shared.blurred[row][place % kWidth] = quads[i];
      }
    }
  }

  WEAKTR_MEMBER Quad result_of(const PairTile& pair, int row, int quad) const {
    return row < pair.position_runs
               ? result_of(pair.template lattice_tile<2>(), row, quad)
               : result_of(pair.template lattice_tile<5>(), row - pair.position_runs, quad);
  }

  WEAKTR_MEMBER Quad result_of(const LatticeTile& tile, int run, int quad) const {
    const Quad* const result = Round{false, iteration - 1}.result(tile.lattice);
    const VertexQuad at{tile.run_vertices()[run], static_cast<uint32_t>(quad),
                        static_cast<uint32_t>(tile.lattice.quads)};
    return result[at.index()];
  }

  // z -= compat(K~ Q) of one kernel, from rows that are there; `first_row`: of its first run.
  template <int D>
  WEAKTR_MEMBER static void take_messages(const Shared& shared, const LatticeView& lattice,
                                          int first_row, PixelState<Quads>& state, int quad,
                                          int width) {
    const TileCorners<D>& corners = state.template corners<D>();
    const Quad* const compat = lattice.mixes ? nullptr : lattice.compat;
    const float share =
        lattice.normalization == Normalization::before ? 1.0f / corners.total_weight() : 1.0f;
    WEAKTR_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      if (i >= width) continue;
      Quad message = {};
      WEAKTR_UNROLL
      for (int corner = 0; corner <= D; ++corner) {
        const int row = first_row + corners.runs[corner];
        if (row >= 0 && row < kRows)
          multiply_add(message, corners.weights[corner], shared.blurred[row][i]);
      }
      const Quad factor = compat ? compat[quad + i] : Quad{{1.0f, 1.0f, 1.0f, 1.0f}};
      WEAKTR_UNROLL
      for (int lane = 0; lane < 4; ++lane)
        state.values[quad + i].lane[lane] -= factor.lane[lane] * (share * message.lane[lane]);
    }
  }

  WEAKTR_MEMBER static void softmax(const ImageView& image, PixelValues<Quads>& values) {
    float largest = -INFINITY, sum = 0.0f;
    for_quads(image, [&](int quad) {
      for (int i = 0; i < 4; ++i) largest = std::fmax(largest, values[quad].lane[i]);
    });
    for_quads(image, [&](int quad) {
      for (int i = 0; i < 4; ++i) {
        values[quad].lane[i] = std::exp(values[quad].lane[i] - largest);
        sum += values[quad].lane[i];
      }
    });
    const float inverse = 1.0f / sum;
    for_quads(image, [&](int quad) {
      for (int i = 0; i < 4; ++i) values[quad].lane[i] *= inverse;
    });
  }

  WEAKTR_MEMBER static void write(const ImageView& image, int64_t pixel,
                                  PixelValues<Quads>& values) {
    const size_t pixels = static_cast<size_t>(image.height) * image.width;
    int best = 0;
    float largest = 0.0f;
    for_quads(image, [&](int quad) {
      for (int i = 0; i < 4; ++i) {
        const int label = 4 * quad + i;
        if (label >= image.labels) continue;
        const float value = values[quad].lane[i];
        if (image.marginals) image.marginals[label * pixels + pixel] = value;
        if (label == 0 || value > largest) {
          best = label;
          largest = value;
        }
      }
    });
    if (image.argmax) image.argmax[pixel] = static_cast<uint8_t>(best);
    if (image.confidence) image.confidence[pixel] = largest;
  }

  // Sums up Q over the runs of a pair's lattices.
  template <class Block>
  WEAKTR_MEMBER void splat(const Block& block, Shared& shared, const ImageView& image,
                           const PairTile& pair, States<Block>& states, bool reads_corners) const {
    block.each([&](int thread) {
      PixelState<Quads>& state = states[thread];
      if (reads_corners) read_corners(pair, state, thread);
      for_lattices(pair, [&](auto dimensions, const LatticeTile& tile) {
        constexpr int D = decltype(dimensions)::value;
        share_weights<D>(shared, tile, state, thread);
      });
    });
    for_widths(image, [&](int quad, int width) {
      typename Block::template Private<typename RunSums<2, kWidth>::Tail> position_tails;
      typename Block::template Private<typename RunSums<5, kWidth>::Tail> colour_tails;
      const auto value = [&](int i, int pixel) { return shared.splat.marginals[i][pixel]; };
      const auto write_to = [&](const LatticeTile& tile) {
        return [&tile, quad, width](int run, const Quad(&sums)[kWidth]) {
          const size_t place = static_cast<size_t>(tile.claim(run)) * tile.lattice.quads + quad;
          WEAKTR_UNROLL
          for (int i = 0; i < kWidth; ++i)
            if (i < width) tile.lattice.run_sums[place + i] = sums[i];
        };
      };
      block.each([&](int thread) {
        WEAKTR_UNROLL
        for (int i = 0; i < kWidth; ++i)
          shared.splat.marginals[i][thread] =
              i < width ? splatted(states[thread], quad + i) : Quad{};
      });
      block.each([&](int thread) {
        if (pair.template has<2>()) {
          const LatticeTile tile = pair.template lattice_tile<2>();
          position_tails[thread] =
              RunSums<2, kWidth>::add(states[thread].position, shared.weights,
                                      shared.splat.position_heads, thread, value, write_to(tile));
        }
        if (pair.template has<5>()) {
          const LatticeTile tile = pair.template lattice_tile<5>();
          colour_tails[thread] =
              RunSums<5, kWidth>::add(states[thread].colour, shared.weights + kPositionEntries,
                                      shared.splat.colour_heads, thread, value, write_to(tile));
        }
      });
      block.each([&](int thread) {
        if (pair.template has<2>()) {
          const LatticeTile tile = pair.template lattice_tile<2>();
          RunSums<2, kWidth>::add_followers(position_tails[thread], shared.splat.position_heads,
                                            states[thread].position.part, thread, write_to(tile));
        }
        if (pair.template has<5>()) {
          const LatticeTile tile = pair.template lattice_tile<5>();
          RunSums<5, kWidth>::add_followers(colour_tails[thread], shared.splat.colour_heads,
                                            states[thread].colour.part, thread, write_to(tile));
        }
      });
    });
  }

  template <int D>
  WEAKTR_MEMBER static void share_weights(Shared& shared, const LatticeTile& tile,
                                          PixelState<Quads>& state, int thread) {
    const TileCorners<D>& corners = state.template corners<D>();
    float* const weights = shared.weights + (D == 2 ? 0 : kPositionEntries) + thread;
    const bool shares = tile.lattice.normalization == Normalization::after && state.pixel >= 0;
    const float share = shares ? 1.0f / corners.total_weight() : 1.0f;
    WEAKTR_UNROLL
    for (int i = 0; i <= D; ++i) weights[i * kThreads] = share * corners.weights[i];
  }

  // A quad of a pixel's Q. What is not a number stays where it is.
  WEAKTR_MEMBER static Quad splatted(PixelState<Quads>& state, int quad) {
    if (state.pixel < 0 || std::isnan(state.values[quad].lane[0])) return Quad{};
    return state.values[quad];
  }
};

}  // namespace blocks
}  // namespace weaktr
