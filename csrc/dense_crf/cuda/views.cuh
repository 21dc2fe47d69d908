// A batch of images as the device sees it: what the host has laid out, and who works on what.
#pragma once

#include "dense_crf/cuda/block.cuh"
#include "dense_crf/problem.hpp"

namespace weaktr {
namespace blocks {

// A pointer to the device's memory. Where it is said not to point to a block's shared memory, the
// compiler has faster instructions.
template <class T>
class Global {
 public:
  Global() = default;
  WEAKTR_MEMBER Global(T* address) : address_(address) {}
  WEAKTR_MEMBER operator T*() const {
#if defined(__CUDA_ARCH__)
    __builtin_assume(__isGlobal(address_));
#endif
    return address_;
  }

 private:
  T* address_;
};

// One image; see `Problem`.
struct ImageView {
  int height, width, labels;
  int quads;         // four labels each; those beyond L have probability 0
  int tiles_across;  // tiles of 16 x 16 pixels, row by row; those at the edges are cut off
  int first_lattice, lattices;
  Global<const uint8_t> colours;
  Global<const float> unary;
  Global<const uint8_t> label_map;
  Global<const float> table;
  int table_rows;
  Global<float> marginals;
  Global<uint8_t> argmax;
  Global<float> confidence;
};

// Along one blur axis; -1: there is none.
struct alignas(8) Neighbours {
  int32_t before, after;
};

// One kernel's lattice over one image. Vertices are numbered by the tile, and in it by the entry,
// that touches them first.
struct LatticeView {
  int image;  // which
  int dimensions;
  int quads;   // of the image
  bool mixes;  // compat is a matrix, applied to the vertices after the blur
  Normalization normalization;
  float deviations[5];
  float scales[5];  // `position_scale`
  KeyPacking<uint64_t> packing;

  Global<uint64_t> keys;    // [slots] hash table of the vertices
  Global<uint32_t> owners;  // [slots] tile and piece that touch the vertex first; then its number
  uint32_t slots;

  // of each tile, entries() places:
  Global<float> corner_weights;     // weight of an entry in the slice
  Global<uint16_t> corner_pieces;   // the first piece of its vertex
  Global<uint32_t> piece_vertices;  // the vertex of a piece (while building: its slot)
  Global<uint16_t> piece_starts;    // and one more: where its part of the next two begins
  Global<uint8_t> entry_pixels;     // entries in the order of pieces: pixel
  Global<float> entry_weights;      // weight in the splat
  Global<uint16_t> tile_pieces;     // [tiles] how many pieces there are
  Global<uint32_t> tile_vertices;   // [tiles + 1] vertices touched first by the tiles before

  int32_t most_vertices;          // that there can be
  Global<Neighbours> neighbours;  // [axes][most_vertices]
  Global<Quad> rows[2];  // [most_vertices][quads] values, read from one and written to the other
  Global<int64_t> sums;  // [most_vertices][quads][4] fixed-point, for results that do not depend on
                         // the order of additions; nullptr otherwise
  Global<const Quad> compat;  // [quads], or [4 * quads][quads] where it mixes

  WEAKTR_MEMBER int axes() const { return dimensions + 1; }
  WEAKTR_MEMBER int entries() const { return kThreads * axes(); }
};

constexpr int kMaxSteps = kMaxCorners + 1;  // blur axes and the mixing of labels
// Quads that a block takes on at a time.
constexpr int kQuadsPerThread = 4;
constexpr int kChunk = kQuadsPerThread * kThreads;

struct BatchView {
  Global<const ImageView> images;
  Global<const LatticeView> lattices;
  Global<const uint32_t> image_tiles;    // [images + 1] tiles of the images before
  Global<const uint32_t> lattice_tiles;  // [lattices + 1]
  Global<uint32_t> chunks;               // [2][kMaxSteps][lattices + 1], see `PlanChunks`
  int image_count, lattice_count;
};

// One time through splat, blur (in `steps`) and slice. Ones are filtered to normalise the kernels;
// after that the rounds are the mean field's iterations.
struct Round {
  bool ones;
  int iteration;

  WEAKTR_MEMBER int steps(const LatticeView& lattice) const {
    return lattice.axes() + (lattice.mixes && !ones);
  }
  WEAKTR_MEMBER int quads(const LatticeView& lattice) const { return ones ? 1 : lattice.quads; }
  // Which of `rows` the splat adds to. The slice of the round before reads the other one.
  WEAKTR_MEMBER int splat_rows(const LatticeView& lattice) const {
    return steps(lattice) % 2 == 0 ? iteration % 2 : 0;
  }
  // Which of `rows` holds the values before step `step`; after the last one they are sliced.
  WEAKTR_MEMBER int rows_before(const LatticeView& lattice, int step) const {
    return (splat_rows(lattice) + step) % 2;
  }
  WEAKTR_MEMBER const Quad* result(const LatticeView& lattice) const {
    return lattice.rows[rows_before(lattice, steps(lattice))];
  }
};

// One tile of one lattice.
struct LatticeTile {
  const LatticeView& lattice;
  const ImageView& image;
  uint32_t number;  // in its image

  WEAKTR_MEMBER LatticeTile(const BatchView& batch, const LatticeView& lattice, uint32_t number)
      : lattice(lattice), image(batch.images[lattice.image]), number(number) {}

  WEAKTR_MEMBER size_t base() const { return static_cast<size_t>(number) * lattice.entries(); }
  WEAKTR_MEMBER float* corner_weights() const { return lattice.corner_weights + base(); }
  WEAKTR_MEMBER uint16_t* corner_pieces() const { return lattice.corner_pieces + base(); }
  WEAKTR_MEMBER uint32_t* piece_vertices() const { return lattice.piece_vertices + base(); }
  WEAKTR_MEMBER uint16_t* piece_starts() const { return lattice.piece_starts + base() + number; }
  WEAKTR_MEMBER uint8_t* entry_pixels() const { return lattice.entry_pixels + base(); }
  WEAKTR_MEMBER float* entry_weights() const { return lattice.entry_weights + base(); }
  WEAKTR_MEMBER int pieces() const { return lattice.tile_pieces[number]; }
  // What `owners` says of a vertex that this piece touches first.
  WEAKTR_MEMBER uint32_t claim(int piece) const {
    return static_cast<uint32_t>(base()) + static_cast<uint32_t>(piece);
  }
};

// The lattice tile with this number in the batch.
WEAKTR_INLINE LatticeTile lattice_tile(const BatchView& batch, uint32_t number) {
  const int lattice = segment_of(batch.lattice_tiles, batch.lattice_count, number);
  return LatticeTile(batch, batch.lattices[lattice], number - batch.lattice_tiles[lattice]);
}

// Where a thread's pixel is.
struct Place {
  int x, y;
  bool inside;    // of the image
  int64_t pixel;  // y * width + x

  WEAKTR_MEMBER Place(const ImageView& image, uint32_t tile, int thread)
      : x(static_cast<int>(tile % image.tiles_across) * kTileSide + thread % kTileSide),
        y(static_cast<int>(tile / image.tiles_across) * kTileSide + thread / kTileSide),
        inside(x < image.width && y < image.height),
        pixel(static_cast<int64_t>(y) * image.width + x) {}
};

}  // namespace blocks
}  // namespace weaktr
