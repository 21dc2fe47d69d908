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

// A number of dimensions as a type.
template <int D>
struct Dimensions {
  static constexpr int value = D;
};

constexpr int kMaxQuads = (kMaxLabels + 3) / 4;

// One image; see `Problem`.
struct ImageView {
  int height, width, labels;
  int quads;         // four labels each; those beyond L have probability 0
  int tiles_across;  // tiles of 16 x 16 pixels, row by row; those at the edges are cut off
  int first_pair, pairs;
  Global<const uint8_t> colours;
  Global<const float> unary;
  Global<const uint8_t> label_map;
  Global<const float> table;
  int table_rows;
  Global<float> marginals;
  Global<uint8_t> argmax;
  Global<float> confidence;
};

// Lattices of an image that are sliced together, by their numbers; -1: there is none.
struct Pair {
  int position, colour;
};

// Where the runs of a vertex are listed, one for each tile that touches it.
struct alignas(8) RunList {
  uint32_t first, count;
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
  Global<uint32_t> owners;  // [slots] tile and run that touch the vertex first; then its number
  uint32_t slots;

  // of each tile, for threads 0 ... 255 one after the other (what is `Packed`, word by word):
  Global<float> corner_weights;      // [axes] weights of the pixel's corners, scaled by `Normalize`
  Global<uint32_t> corner_runs;      // packed: the runs of the corners
  Global<uint32_t> ordered_entries;  // packed: the thread's part of the entries, run after run
  Global<Part> parts;                // which runs these are
  // of each tile, entries() places:
  Global<uint32_t> run_vertices;   // the vertex of a run (while building: its slot)
  Global<uint32_t> arrivals;       // while building: the number of the vertex among those that the
                                   // tile touches first; then runs of it that were counted before
  Global<Quad> run_sums;           // [quads] what a run adds to its vertex
  Global<uint16_t> tile_runs;      // [tiles] how many runs there are
  Global<uint32_t> tile_vertices;  // [tiles + 1] vertices touched first by the tiles before

  int32_t most_vertices;          // that there can be
  Global<RunList> lists;          // [most_vertices]
  Global<uint32_t> listed;        // [1] runs that have a place in a list
  Global<uint32_t> arrived;       // runs of a vertex as they came; then, in the tiles' order:
  Global<uint32_t> listed_runs;   // tile * entries() + run
  Global<Neighbours> neighbours;  // [axes][most_vertices]
  Global<Quad> values[2];         // [most_vertices][quads], read from one and written to the other
  Global<const Quad> compat;      // times alpha; [quads], or [4 * quads][quads] where it mixes

  WEAKTR_MEMBER int axes() const { return dimensions + 1; }
  WEAKTR_MEMBER int entries() const { return kThreads * axes(); }
  WEAKTR_MEMBER int words() const {
    return dimensions == 2 ? Packed<2>::kWords : Packed<5>::kWords;
  }
  WEAKTR_MEMBER Neighbours* neighbours_along(int axis) const {
    return neighbours + static_cast<size_t>(axis) * most_vertices;
  }
  // What a slice is multiplied by, as pydensecrf does.
  WEAKTR_MEMBER float alpha() const {
    return 1.0f / (1.0f + 1.0f / static_cast<float>(1 << dimensions));
  }
};

constexpr int kMaxSteps = kMaxCorners + 1;  // blur axes and the mixing of labels
// Quads that a block takes on at a time.
constexpr int kQuadsPerThread = 4;
constexpr int kChunk = kQuadsPerThread * kThreads;

struct BatchView {
  Global<const ImageView> images;
  Global<const LatticeView> lattices;
  Global<const Pair> pairs;
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
  // Which of `values` the splat writes. The slice of the round before reads the other one.
  WEAKTR_MEMBER int splat_side(const LatticeView& lattice) const {
    return steps(lattice) % 2 == 0 ? iteration % 2 : 0;
  }
  // Which of `values` is current before step `step`; after the last one they are sliced.
  WEAKTR_MEMBER int side_before(const LatticeView& lattice, int step) const {
    return (splat_side(lattice) + step) % 2;
  }
  WEAKTR_MEMBER const Quad* result(const LatticeView& lattice) const {
    return lattice.values[side_before(lattice, steps(lattice))];
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
  WEAKTR_MEMBER uint32_t* corner_runs() const { return lattice.corner_runs + packed_base(); }
  WEAKTR_MEMBER uint32_t* ordered_entries() const {
    return lattice.ordered_entries + packed_base();
  }
  WEAKTR_MEMBER Part* parts() const {
    return lattice.parts + static_cast<size_t>(number) * kThreads;
  }
  WEAKTR_MEMBER uint32_t* run_vertices() const { return lattice.run_vertices + base(); }
  WEAKTR_MEMBER uint32_t* arrivals() const { return lattice.arrivals + base(); }
  WEAKTR_MEMBER int runs() const { return lattice.tile_runs[number]; }
  // The number of a run in the lattice. Also what `owners` says of a vertex that it touches first.
  WEAKTR_MEMBER uint32_t claim(int run) const {
    return static_cast<uint32_t>(base()) + static_cast<uint32_t>(run);
  }

 private:
  WEAKTR_MEMBER size_t packed_base() const {
    return static_cast<size_t>(number) * kThreads * lattice.words();
  }
};

// Reads a thread's numbers, words [kWords][256].
template <int D>
WEAKTR_INLINE Packed<D> unpacked(const uint32_t* words, int thread) {
  Packed<D> packed;
  WEAKTR_UNROLL
  for (int i = 0; i < Packed<D>::kWords; ++i) packed.words[i] = words[i * kThreads + thread];
  return packed;
}

template <int D>
WEAKTR_INLINE void write(uint32_t* words, int thread, const Packed<D>& packed) {
  WEAKTR_UNROLL
  for (int i = 0; i < Packed<D>::kWords; ++i) words[i * kThreads + thread] = packed.words[i];
}

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
