// The splat's first half, and programs that normalise the kernels with it.
//
//   RunSums                what the runs of a tile add to their vertices
//   SplatOnes, Normalize   n = K 1 into the weights
#pragma once

#include "dense_crf/cuda/blur.cuh"

namespace weaktr {
namespace blocks {

// What is read and written of one lattice over one tile. It lies in shared memory, as registers are
// few.
struct TileView {
  int runs;  // 0: there is no lattice
  int quads;
  Normalization normalization;
  Global<const float> corner_weights;
  Global<const uint32_t> corner_runs, ordered_entries, run_vertices;
  Global<const Part> parts;
  Global<Quad> run_sums;      // [runs][quads]
  Global<const Quad> compat;  // nullptr: vertices are mixed
  Global<const Quad> result;  // of the round before

  WEAKTR_MEMBER void look_at(const LatticeTile& tile) {
    runs = tile.runs();
    quads = tile.lattice.quads;
    normalization = tile.lattice.normalization;
    corner_weights = tile.corner_weights();
    corner_runs = tile.corner_runs();
    ordered_entries = tile.ordered_entries();
    run_vertices = tile.run_vertices();
    parts = tile.parts();
    run_sums = tile.lattice.run_sums + tile.base() * quads;
    compat = tile.lattice.mixes ? nullptr : tile.lattice.compat;
  }
};

// The corners of a tile's pixels, and its entries run after run, in shared memory: of each thread
// what it uses itself, and the weights.
template <int D>
struct TileCorners {
  static constexpr int kWords = Packed<D>::kWords;
  float weights[D + 1][kThreads];
  uint32_t runs[kWords][kThreads];
  uint32_t entries[kWords][kThreads];  // the thread's part of the order
  Part parts[kThreads];

  // Begins to copy; `wait_for_copies` before use.
  WEAKTR_MEMBER void read(const TileView& tile, int thread, bool inside) {
    const float* const tile_weights = tile.corner_weights + thread;
    const uint32_t* const tile_runs = tile.corner_runs + thread;
    const uint32_t* const tile_entries = tile.ordered_entries + thread;
    const Part* const tile_part = tile.parts + thread;
    WEAKTR_UNROLL
    for (int i = 0; i <= D; ++i) {
      if (inside)
        copy_later(&weights[i][thread], tile_weights + i * kThreads);
      else
        weights[i][thread] = 0.0f;
    }
    WEAKTR_UNROLL
    for (int i = 0; i < kWords; ++i) {
      if (inside) copy_later(&runs[i][thread], tile_runs + i * kThreads);
      copy_later(&entries[i][thread], tile_entries + i * kThreads);
    }
    copy_later(&parts[thread], tile_part);
  }
  WEAKTR_MEMBER float total_weight(int thread) const {
    float total = 0.0f;
    WEAKTR_UNROLL
    for (int i = 0; i <= D; ++i) total += weights[i][thread];
    return total;
  }
  WEAKTR_MEMBER void scale(int thread, float factor) {
    WEAKTR_UNROLL
    for (int i = 0; i <= D; ++i) weights[i][thread] *= factor;
  }
};

// Sums up the runs of a tile, `Width` quads of labels at a time: every thread those in its part of
// the order, then the one that goes on after it. Two phases for all lattices.
template <int D, int Width>
struct RunSums {
  using Heads = Quad[Width][kThreads];
  struct Tail {
    int run = -1;  // the thread's part begins no run
    Quad sums[Width] = {};
  };

  // Sum of weight * value over the entries of the thread's part. Of the run that an earlier part
  // begins, it is left in `heads`; of the last one that begins here, returned; others are
  // `done(run, sums)`. `value(i, pixel)`: quad i of a pixel.
  template <class Value, class Done>
  WEAKTR_MEMBER static Tail add(const TileCorners<D>& corners, Heads& heads, int thread,
                                const Value& value, const Done& done) {
    const Part part = corners.parts[thread];
    const Packed<D> entries = unpacked<D>(&corners.entries[0][0], thread);
    Tail current;
    int run = part.runs_before();
    WEAKTR_UNROLL
    for (int i = 0; i <= D; ++i) {
      if (part.starts(i)) {
        finish(current, heads, thread, done);
        current = Tail{run++};
      }
      const int entry = entries[i], pixel = entry % kThreads;
      const float weight = corners.weights[entry / kThreads][pixel];
      WEAKTR_UNROLL
      for (int j = 0; j < Width; ++j) multiply_add(current.sums[j], weight, value(j, pixel));
    }
    if (current.run < 0) finish(current, heads, thread, done);
    return current;
  }

  // Once all threads have added theirs.
  template <class Done>
  WEAKTR_MEMBER static void add_followers(Tail& tail, const Heads& heads, Part part, int thread,
                                          const Done& done) {
    if (tail.run < 0) return;
    const int end = thread + part.followers();
    WEAKTR_UNROLL
    for (int j = 0; j < Width; ++j) {
      WEAKTR_UNROLL_BY_4
      for (int other = thread + 1; other <= end; ++other)
        multiply_add(tail.sums[j], 1.0f, heads[j][other]);
    }
    done(tail.run, tail.sums);
  }

 private:
  template <class Done>
  WEAKTR_MEMBER static void finish(const Tail& current, Heads& heads, int thread,
                                   const Done& done) {
    if (current.run >= 0) return done(current.run, current.sums);
    WEAKTR_UNROLL
    for (int j = 0; j < Width; ++j) heads[j][thread] = current.sums[j];
  }
};

// One block per lattice tile.
struct SplatOnes {
  struct Shared {
    union {
      TileCorners<2> position;
      TileCorners<5> colour;
    };
    Quad heads[1][kThreads];
  };
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared& shared) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    if (tile.lattice.normalization == Normalization::none) return;
    if (tile.lattice.dimensions == 2)
      splat(block, shared.position, shared.heads, tile);
    else
      splat(block, shared.colour, shared.heads, tile);
  }

  template <int D, class Block>
  WEAKTR_MEMBER static void splat(const Block& block, TileCorners<D>& corners,
                                  Quad (&heads)[1][kThreads], const LatticeTile& tile) {
    using Sums = RunSums<D, 1>;
    typename Block::template Private<typename Sums::Tail> tails;
    const auto ones = [](int, int) { return Quad{{1.0f, 0.0f, 0.0f, 0.0f}}; };
    const auto done = [&](int run, const Quad(&sums)[1]) {
      tile.lattice.run_sums[tile.claim(run)] = sums[0];
    };
    block.each([&](int thread) {
      TileView view;
      view.look_at(tile);
      corners.read(view, thread, Place(tile.image, tile.number, thread).inside);
      wait_for_copies();
    });
    block.each([&](int thread) { tails[thread] = Sums::add(corners, heads, thread, ones, done); });
    block.each([&](int thread) {
      Sums::add_followers(tails[thread], heads, corners.parts[thread], thread, done);
    });
  }
};

// One block per lattice tile: the weights are scaled by 1 / n, or by its root where that goes to
// both sides. Before that they add up to 1, so that their sum tells the scale.
struct Normalize {
  struct Shared {
    float ones[kMaxEntries];  // of every run's vertex
  };
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared& shared) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    if (tile.lattice.normalization == Normalization::none) return;
    const Quad* const ones = Round{true, 0}.result(tile.lattice);
    block.each([&](int thread) {
      for (int run = thread; run < tile.runs(); run += kThreads)
        shared.ones[run] = ones[tile.run_vertices()[run]].lane[0];
    });
    block.each([&](int thread) {
      if (!Place(tile.image, tile.number, thread).inside) return;
      if (tile.lattice.dimensions == 2)
        scale<2>(shared, tile, thread);
      else
        scale<5>(shared, tile, thread);
    });
  }

  template <int D>
  WEAKTR_MEMBER static void scale(const Shared& shared, const LatticeTile& tile, int thread) {
    float* const weights = tile.corner_weights() + thread;
    const Packed<D> runs = unpacked<D>(tile.corner_runs(), thread);
    float n = 0.0f;
    WEAKTR_UNROLL
    for (int i = 0; i <= D; ++i)
      n += weights[i * kThreads] * tile.lattice.alpha() * shared.ones[runs[i]];
    n += 1e-20f;
    const bool both = tile.lattice.normalization == Normalization::symmetric;
    const float factor = 1.0f / (both ? std::sqrt(n) : n);
    WEAKTR_UNROLL
    for (int i = 0; i <= D; ++i) weights[i * kThreads] *= factor;
  }
};

}  // namespace blocks
}  // namespace weaktr
