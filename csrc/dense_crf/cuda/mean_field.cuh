// The program of the mean field.
//
//   Pass   slice, softmax and the splat's first half of a tile
#pragma once

#include "dense_crf/cuda/splat.cuh"

namespace weaktr {
namespace blocks {

// -U of four labels of a pixel, from `unary` [L] that are `stride` apart.
WEAKTR_INLINE Quad minus_unary(const float* unary, int64_t stride, int labels) {
  Quad minus;
  WEAKTR_UNROLL
  for (int i = 0; i < 4; ++i) minus.lane[i] = i < labels ? -unary[i * stride] : -INFINITY;
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

template <int Quads>
struct PixelState {
  int32_t pixel;              // -1: outside of the image
  PixelValues<Quads> values;  // z, then Q
};

// Of some tiles, one block per tile, or any number of blocks. Slices round `iteration` - 1 into
// z = -U - sum over kernels of compat(K~ Q), takes Q = softmax(z), and sums it up for round
// `iteration`, or writes it down after the last one. Up to `Quads` quads of labels; 0: any number,
// in `scratch` [blocks][most_quads][kThreads]. Tiles go backwards, as the vertices of the last ones
// were blurred last.
template <int Quads>
struct Pass {
  static constexpr int kWidth = Quads == 1 ? 1 : 2;  // quads at a time
  // Rows at a time, of most tiles all, as many as shared memory allows; both quads of a row or of
  // its neighbour lie in different banks.
  static constexpr int kRows = Quads == 1 ? 1116 : 892;
  static constexpr int kGathered = Quads == 1 ? 4 : Quads <= 2 ? 3 : 2;  // by a thread at once
  // As many as registers and shared memory allow.
  static constexpr int kBlocksPerMultiprocessor = Quads == 1 ? 6 : Quads <= 6 ? 4 : 3;

  // What shares a place is used one after the other.
  struct Shared {
    int image;
    uint32_t tile;              // in the image
    TileView position, colour;  // of the pair that is worked on
    TileCorners<2> position_corners;
    TileCorners<5> colour_corners;
    union {
      Quad blurred[kWidth][kRows];  // of every row's vertex
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
  uint32_t first, tiles;  // of the batch, which are worked on

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared& shared) const {
    const uint32_t end = first + tiles;
    if (Quads) return run(block, shared, end - 1 - block.index);
    for (uint32_t tile = block.index; tile < tiles; tile += block.count) {
      run(block, shared, end - 1 - tile);
      block.each([](int) {});  // until all threads have left this tile
    }
  }

  // `number`: of the tile in the batch.
  template <class Block>
  WEAKTR_MEMBER void run(const Block& block, Shared& shared, uint32_t number) const {
    States<Block> states;
    block.each([&](int thread) {
      const uint32_t* const starts = batch.image_tiles;
      for (int image = thread; image < batch.image_count; image += kThreads) {
        if (number < starts[image] || number >= starts[image + 1]) continue;
        shared.image = image;
        shared.tile = number - starts[image];
      }
    });
    if (pairs(shared)) view_pair(block, shared, 0);
    block.each([&](int thread) {
      PixelState<Quads>& state = states[thread];
      state.values.place(scratch + static_cast<size_t>(block.index) * most_quads * kThreads +
                         thread);
      const ImageView& image = batch.images[shared.image];
      const Place place(image, shared.tile, thread);
      state.pixel = place.inside ? static_cast<int32_t>(place.pixel) : -1;
      read_unary(image, place, state.values);
      if (pairs(shared) == 1) read_corners(shared, state.pixel >= 0, thread);
    });
    const auto next_pair = [&](int pair) {
      if (pairs(shared) == 1) return;  // it is there already
      view_pair(block, shared, pair);
      block.each([&](int thread) { read_corners(shared, states[thread].pixel >= 0, thread); });
    };
    for (int pair = 0; iteration > 0 && pair < pairs(shared); ++pair) {
      next_pair(pair);
      slice(block, shared, batch.images[shared.image].quads, states);
    }
    block.each([&](int thread) {
      PixelState<Quads>& state = states[thread];
      if (state.pixel < 0) return;
      const ImageView& image = batch.images[shared.image];
      softmax(image.quads, state.values);
      if (last) write(image, state.pixel, state.values);
    });
    for (int pair = 0; !last && pair < pairs(shared); ++pair) {
      next_pair(pair);
      splat(block, shared, batch.images[shared.image].quads, states);
    }
  }

  // z = -U. A label that the table lacks gives NaN.
  WEAKTR_MEMBER static void read_unary(const ImageView& image, const Place& place,
                                       PixelValues<Quads>& values) {
    for_quads(image.quads, [&](int quad) { values[quad] = Quad{}; });
    if (!place.inside) return;
    const bool looks_up = !image.unary;
    const int row = looks_up ? image.label_map[place.pixel] : 0;
    const bool lacks = looks_up && row >= image.table_rows;
    const int64_t stride = looks_up ? 1 : static_cast<int64_t>(image.height) * image.width;
    const Global<const float> unary =
        looks_up ? image.table + (lacks ? 0 : row * image.labels) : image.unary + place.pixel;
    for_quads(image.quads, [&](int quad) {
      values[quad] = minus_unary(unary + 4 * quad * stride, stride, image.labels - 4 * quad);
      if (lacks) values[quad] = Quad{{NAN, NAN, NAN, NAN}};
    });
  }

  // Of the image. A register for it would be one too many.
  WEAKTR_MEMBER int pairs(const Shared& shared) const { return batch.images[shared.image].pairs; }

  template <class Block>
  WEAKTR_MEMBER void view_pair(const Block& block, Shared& shared, int number) const {
    block.each([&](int thread) {
      const Pair& pair = batch.pairs[batch.images[shared.image].first_pair + number];
      if (thread == 0) view(pair.position, shared.tile, shared.position);
      if (thread == kThreads / 2) view(pair.colour, shared.tile, shared.colour);
    });
  }

  WEAKTR_MEMBER void view(int lattice, uint32_t tile, TileView& view) const {
    view.runs = 0;
    if (lattice < 0) return;
    view.look_at(LatticeTile(batch, batch.lattices[lattice], tile));
    if (iteration > 0) view.result = Round{false, iteration - 1}.result(batch.lattices[lattice]);
  }

  template <class Body>
  WEAKTR_MEMBER static void for_quads(int quads, const Body& body) {
    WEAKTR_UNROLL
    for (int quad = 0; quad < (Quads ? Quads : quads); ++quad)
      if (!Quads || quad < quads) body(quad);
  }

  // body(the first quad, how many) for `kWidth` quads at a time.
  template <class Body>
  WEAKTR_MEMBER static void for_widths(int quads, const Body& body) {
    WEAKTR_UNROLL
    for (int quad = 0; quad < (Quads ? Quads : quads); quad += kWidth)
      if (!Quads || quad < quads) body(quad, quads - quad < kWidth ? quads - quad : kWidth);
  }

  // body(a lattice, its corners) of the pair, where they are.
  template <class Shared_, class Body>
  WEAKTR_MEMBER static void for_lattices(Shared_& shared, const Body& body) {
    if (shared.position.runs) body(shared.position, shared.position_corners);
    if (shared.colour.runs) body(shared.colour, shared.colour_corners);
  }

  WEAKTR_MEMBER static void read_corners(Shared& shared, bool inside, int thread) {
    for_lattices(shared,
                 [&](const TileView& tile, auto& corners) { corners.read(tile, thread, inside); });
  }

  // z -= compat(K~ Q) of a pair's kernels. Rows are the runs of the first, then of the second.
  template <class Block>
  WEAKTR_MEMBER static void slice(const Block& block, Shared& shared, int quads,
                                  States<Block>& states) {
    const int rows = shared.position.runs + shared.colour.runs;
    for_widths(quads, [&](int quad, int width) {
      for (int first = 0; first < rows; first += kRows) {
        block.each([&](int thread) {
          gather(shared, first, quad, width, thread);
          wait_for_copies();
        });
        block.each([&](int thread) {
          PixelState<Quads>& state = states[thread];
          if (state.pixel < 0) return;
          if (shared.position.runs)
            take_messages(shared, shared.position, shared.position_corners, -first, state.values,
                          thread, quad, width);
          if (shared.colour.runs)
            take_messages(shared, shared.colour, shared.colour_corners,
                          shared.position.runs - first, state.values, thread, quad, width);
        });
      }
    });
  }

  // Some rows' quads into shared memory.
  WEAKTR_MEMBER static void gather(Shared& shared, int first, int quad, int width, int thread) {
    const int rows = shared.position.runs + shared.colour.runs;
    const int end = rows - first < kRows ? rows - first : kRows;
    constexpr int step = kThreads / kWidth;
    const int offset = thread % kWidth;  // which of a row's quads
    if (offset >= width) return;
    for (int row = thread / kWidth; row < end; row += kGathered * step) {
      Quad quads[kGathered] = {};
      WEAKTR_UNROLL
      for (int i = 0; i < kGathered; ++i)
        if (row + i * step < end)
          quads[i] = result_of(shared, first + row + i * step, quad + offset);
      WEAKTR_UNROLL
      for (int i = 0; i < kGathered; ++i)
        if (row + i * step < end) shared.blurred[offset][row + i * step] = quads[i];
    }
  }

  WEAKTR_MEMBER static Quad result_of(const Shared& shared, int row, int quad) {
    const bool is_colour = row >= shared.position.runs;
    const TileView& tile = is_colour ? shared.colour : shared.position;
    const int run = is_colour ? row - shared.position.runs : row;
    return tile.result[static_cast<size_t>(tile.run_vertices[run]) * tile.quads + quad];
  }

  // z -= compat(K~ Q) of one kernel, from rows that are there; `first_row`: of its first run.
  template <int D>
  WEAKTR_MEMBER static void take_messages(const Shared& shared, const TileView& tile,
                                          const TileCorners<D>& corners, int first_row,
                                          PixelValues<Quads>& values, int thread, int quad,
                                          int width) {
    const Quad* const compat = tile.compat;
    const Packed<D> runs = unpacked<D>(&corners.runs[0][0], thread);
    const float share =
        tile.normalization == Normalization::before ? inverse(corners.total_weight(thread)) : 1.0f;
    WEAKTR_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      if (i >= width) continue;
      Quad message = {};
      WEAKTR_UNROLL
      for (int corner = 0; corner <= D; ++corner) {
        const uint32_t row = static_cast<uint32_t>(first_row + runs[corner]);
        if (row < static_cast<uint32_t>(kRows))
          multiply_add(message, corners.weights[corner][thread], shared.blurred[i][row]);
      }
      const Quad factor = compat ? compat[quad + i] : Quad{{1.0f, 1.0f, 1.0f, 1.0f}};
      Quad z = values[quad + i];
      WEAKTR_UNROLL
      for (int lane = 0; lane < 4; ++lane)
        z.lane[lane] -= factor.lane[lane] * (share * message.lane[lane]);
      values[quad + i] = z;
    }
  }

  WEAKTR_MEMBER static void softmax(int quads, PixelValues<Quads>& values) {
    float largest = -INFINITY, sum = 0.0f;
    for_quads(quads, [&](int quad) {
      const Quad z = values[quad];
      for (int i = 0; i < 4; ++i) largest = std::fmax(largest, z.lane[i]);
    });
    for_quads(quads, [&](int quad) {
      Quad z = values[quad];
      for (int i = 0; i < 4; ++i) {
        z.lane[i] = std::exp(z.lane[i] - largest);
        sum += z.lane[i];
      }
      values[quad] = z;
    });
    const float share = inverse(sum);
    for_quads(quads, [&](int quad) {
      Quad q = values[quad];
      for (int i = 0; i < 4; ++i) q.lane[i] *= share;
      values[quad] = q;
    });
  }

  WEAKTR_MEMBER static void write(const ImageView& image, int64_t pixel,
                                  PixelValues<Quads>& values) {
    const size_t pixels = static_cast<size_t>(image.height) * image.width;
    int best = 0;
    float largest = 0.0f;
    for_quads(image.quads, [&](int quad) {
      const Quad q = values[quad];
      for (int i = 0; i < 4; ++i) {
        const int label = 4 * quad + i;
        if (label >= image.labels) continue;
        const float value = q.lane[i];
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
  WEAKTR_MEMBER static void splat(const Block& block, Shared& shared, int quads,
                                  States<Block>& states) {
    block.each([&](int thread) {
      wait_for_copies();
      for_lattices(shared, [&](const TileView& tile, auto& corners) {
        if (tile.normalization == Normalization::after && states[thread].pixel >= 0)
          corners.scale(thread, inverse(corners.total_weight(thread)));
      });
    });
    for_widths(quads, [&](int quad, int width) {
      typename Block::template Private<typename RunSums<2, kWidth>::Tail> position_tails;
      typename Block::template Private<typename RunSums<5, kWidth>::Tail> colour_tails;
      const auto value = [&](int i, int pixel) { return shared.splat.marginals[i][pixel]; };
      const auto write_to = [&](const TileView& tile) {
        return [&tile, quad, width](int run, const Quad(&sums)[kWidth]) {
          Quad* const place = tile.run_sums + static_cast<size_t>(run) * tile.quads + quad;
          WEAKTR_UNROLL
          for (int i = 0; i < kWidth; ++i)
            if (i < width) place[i] = sums[i];
        };
      };
      block.each([&](int thread) {
        WEAKTR_UNROLL
        for (int i = 0; i < kWidth; ++i)
          shared.splat.marginals[i][thread] =
              i < width ? splatted(states[thread], quad + i) : Quad{};
      });
      block.each([&](int thread) {
        if (shared.position.runs)
          position_tails[thread] =
              RunSums<2, kWidth>::add(shared.position_corners, shared.splat.position_heads, thread,
                                      value, write_to(shared.position));
        if (shared.colour.runs)
          colour_tails[thread] =
              RunSums<5, kWidth>::add(shared.colour_corners, shared.splat.colour_heads, thread,
                                      value, write_to(shared.colour));
      });
      block.each([&](int thread) {
        if (shared.position.runs)
          RunSums<2, kWidth>::add_followers(position_tails[thread], shared.splat.position_heads,
                                            shared.position_corners.parts[thread], thread,
                                            write_to(shared.position));
        if (shared.colour.runs)
          RunSums<5, kWidth>::add_followers(colour_tails[thread], shared.splat.colour_heads,
                                            shared.colour_corners.parts[thread], thread,
                                            write_to(shared.colour));
      });
    });
  }

  // A quad of a pixel's Q. What is not a number stays where it is.
  WEAKTR_MEMBER static Quad splatted(PixelState<Quads>& state, int quad) {
    const Quad q = state.values[quad];
    return state.pixel < 0 || std::isnan(q.lane[0]) ? Quad{} : q;
  }
};

}  // namespace blocks
}  // namespace weaktr
