// The kernel of the mean field: a program for blocks.
//
//   Pass   slice, softmax and splat of a tile: one iteration less the blur
#pragma once

#include "dense_crf/cuda/blur.cuh"

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

template <int Quads>
struct PixelState {
  int32_t pixel;              // -1: outside of the image
  PixelValues<Quads> values;  // z, then Q
  float weights[kMaxCorners];
  uint16_t pieces[kMaxCorners];
};

// One block per tile, or any number of blocks. Slices round `iteration` - 1 into
// z = -U - sum over kernels of compat(K~ Q), takes Q = softmax(z), and splats it for round
// `iteration`, or writes it down after the last one. Up to `Quads` quads of labels; 0: any number,
// in `scratch` [blocks][most_quads][kThreads].
template <int Quads, class Sums>
struct Pass {
  struct Shared {
    Quad rows[kMaxEntries];  // a quad of every piece's vertex
    Quad marginals[kThreads];
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
    const int quads = image.quads;
    const auto for_quads = [&](const auto& body) {
      WEAKTR_UNROLL
      for (int quad = 0; quad < (Quads ? Quads : quads); ++quad)
        if (!Quads || quad < quads) body(quad);
    };
    block.each([&](int thread) {
      PixelState<Quads>& state = states[thread];
      state.values.place(scratch + static_cast<size_t>(block.index) * most_quads * kThreads +
                         thread);
      const Place place(image, tile, thread);
      state.pixel = place.inside ? static_cast<int32_t>(place.pixel) : -1;
      if (place.inside)
        for_quads([&](int quad) { state.values[quad] = minus_unary(image, place.pixel, quad); });
    });
    for (int i = 0; iteration > 0 && i < image.lattices; ++i)
      slice(block, shared, LatticeTile(batch, batch.lattices[image.first_lattice + i], tile),
            states, for_quads);
    block.each([&](int thread) {
      PixelState<Quads>& state = states[thread];
      if (state.pixel < 0) return;
      softmax(state.values, for_quads);
      if (last) write(image, state.pixel, state.values, for_quads);
    });
    if (!last) splat(block, shared, image, tile, states, for_quads);
  }

  // z -= compat(K~ Q) of one kernel.
  template <class Block, class ForQuads>
  WEAKTR_MEMBER void slice(const Block& block, Shared& shared, const LatticeTile& tile,
                           States<Block>& states, const ForQuads& for_quads) const {
    const LatticeView& lattice = tile.lattice;
    const Quad* const rows = Round{false, iteration - 1}.result(lattice);
    const Quad* const compat = lattice.mixes ? nullptr : lattice.compat;
    const uint32_t* const vertices = tile.piece_vertices();
    const uint32_t quads = lattice.quads;
    const int pieces = tile.pieces(), corners = lattice.axes();
    block.each([&](int thread) {
      PixelState<Quads>& state = states[thread];
      WEAKTR_UNROLL
      for (int i = 0; i < kMaxCorners; ++i)
        if (i < corners && state.pixel >= 0) {
          state.weights[i] = tile.corner_weights()[i * kThreads + thread];
          state.pieces[i] = tile.corner_pieces()[i * kThreads + thread];
        }
    });
    for_quads([&](uint32_t quad) {
      block.each([&](int thread) {
        for (int piece = thread; piece < pieces; piece += kThreads)
          shared.rows[piece] = rows[Row{vertices[piece], quad, quads}.index()];
      });
      block.each([&](int thread) {
        PixelState<Quads>& state = states[thread];
        if (state.pixel < 0) return;
        Quad message = {};
        WEAKTR_UNROLL
        for (int i = 0; i < kMaxCorners; ++i)
          if (i < corners) multiply_add(message, state.weights[i], shared.rows[state.pieces[i]]);
        const Quad factor = compat ? compat[quad] : Quad{{1.0f, 1.0f, 1.0f, 1.0f}};
        WEAKTR_UNROLL
        for (int i = 0; i < 4; ++i) state.values[quad].lane[i] -= factor.lane[i] * message.lane[i];
      });
    });
  }

  template <class ForQuads>
  WEAKTR_MEMBER static void softmax(PixelValues<Quads>& values, const ForQuads& for_quads) {
    float largest = -INFINITY, sum = 0.0f;
    for_quads([&](int quad) {
      for (int i = 0; i < 4; ++i) largest = std::fmax(largest, values[quad].lane[i]);
    });
    for_quads([&](int quad) {
      for (int i = 0; i < 4; ++i) {
        values[quad].lane[i] = std::exp(values[quad].lane[i] - largest);
        sum += values[quad].lane[i];
      }
    });
    const float inverse = 1.0f / sum;
    for_quads([&](int quad) {
      for (int i = 0; i < 4; ++i) values[quad].lane[i] *= inverse;
    });
  }

  template <class ForQuads>
  WEAKTR_MEMBER static void write(const ImageView& image, int64_t pixel, PixelValues<Quads>& values,
                                  const ForQuads& for_quads) {
    const size_t pixels = static_cast<size_t>(image.height) * image.width;
    int best = 0;
    float largest = 0.0f;
    for_quads([&](int quad) {
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

  // Adds Q to the vertices of all kernels.
  template <class Block, class ForQuads>
  WEAKTR_MEMBER void splat(const Block& block, Shared& shared, const ImageView& image,
                           uint32_t number, States<Block>& states,
                           const ForQuads& for_quads) const {
    const int first = image.first_lattice, end = first + image.lattices;
    for_quads([&](uint32_t quad) {
      block.each([&](int thread) {
        shared.marginals[thread] = states[thread].pixel >= 0 ? states[thread].values[quad] : Quad{};
      });
      block.each([&](int thread) {
        for (int i = first; i < end; ++i)
          splat_quad(shared, LatticeTile(batch, batch.lattices[i], number), quad, thread);
      });
    });
  }

  WEAKTR_MEMBER void splat_quad(const Shared& shared, const LatticeTile& tile, uint32_t quad,
                                int thread) const {
    const uint32_t* const vertices = tile.piece_vertices();
    const uint32_t quads = tile.lattice.quads;
    const int pieces = tile.pieces();
    for (int piece = thread; piece < pieces; piece += kThreads) {
      const Quad sum = piece_sum(tile, piece, [&](int pixel) { return shared.marginals[pixel]; });
      Sums::add(tile.lattice, Round{false, iteration}, Row{vertices[piece], quad, quads}, sum);
    }
  }
};

}  // namespace blocks
}  // namespace weaktr
