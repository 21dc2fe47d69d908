// Programs around the blur.
//
//   ForEachQuad<...>   one step for every quad of values: Clear, Settle, Blur or Mix
//   SplatOnes, Normalize   n = K 1 into the weights of splat and slice
#pragma once

#include "dense_crf/cuda/build.cuh"

namespace weaktr {
namespace blocks {

// ---- values of vertices

// One quad of labels of one vertex.
struct VertexQuad {
  uint32_t vertex, quad, quads;

  WEAKTR_MEMBER size_t index() const { return static_cast<size_t>(vertex) * quads + quad; }
  WEAKTR_MEMBER VertexQuad of(int32_t other) const {
    return {static_cast<uint32_t>(other), quad, quads};
  }
};

// Any number of blocks. `Operation(lattice, round, step)` is applied to every quad of every lattice
// that has this step.
template <class Operation>
struct ForEachQuad {
  using Shared = Nothing;
  BatchView batch;
  Round round;
  int step;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared&) const {
    const uint32_t* const starts = PlanChunks::starts(batch, round, step);
    const uint32_t chunks = starts[batch.lattice_count];
    for (uint32_t chunk = block.index; chunk < chunks; chunk += block.count) {
      const int number = segment_of(starts, batch.lattice_count, chunk);
      const LatticeView& lattice = batch.lattices[number];
      const uint32_t tiles = batch.lattice_tiles[number + 1] - batch.lattice_tiles[number];
      const uint32_t quads = round.quads(lattice);
      const uint64_t first = uint64_t{chunk - starts[number]} * kChunk;
      const uint64_t left = uint64_t{lattice.tile_vertices[tiles]} * quads - first;
      const uint32_t vertex = static_cast<uint32_t>(first / quads);
      const uint32_t quad = static_cast<uint32_t>(first % quads);
      const Operation operation(lattice, round, step);
      block.each([&](int thread) {
        WEAKTR_UNROLL
        for (uint32_t i = 0; i < kQuadsPerThread; ++i) {
          const uint32_t offset = i * kThreads + thread;
          if (offset < left)
            operation(VertexQuad{vertex + (quad + offset) / quads, (quad + offset) % quads, quads});
        }
      });
    }
  }
};

// Nothing is splatted yet.
struct Clear {
  Quad* values;

  WEAKTR_MEMBER Clear(const LatticeView& lattice, Round round, int)
      : values(lattice.values[round.splat_side(lattice)]) {}
  WEAKTR_MEMBER void operator()(VertexQuad at) const { values[at.index()] = Quad{}; }
};

// What a step reads and writes: the vertices' values before and after it.
struct Sides {
  const Quad* from;
  Quad* to;

  WEAKTR_MEMBER Sides(const LatticeView& lattice, Round round, int step)
      : from(lattice.values[round.side_before(lattice, step)]),
        to(lattice.values[round.side_before(lattice, step + 1)]) {}
};

// One step along a blur axis: V'[v] = V[v] + (V[before v] + V[after v]) / 2.
struct Blur : Sides {
  const Neighbours* neighbours;  // nullptr: this step is another

  WEAKTR_MEMBER Blur(const LatticeView& lattice, Round round, int step)
      : Sides(lattice, round, step),
        neighbours(step < lattice.axes()
                       ? lattice.neighbours + static_cast<size_t>(step) * lattice.most_vertices
                       : nullptr) {}
  WEAKTR_MEMBER void operator()(VertexQuad at) const {
    if (!neighbours) return;
    const Neighbours next = neighbours[at.vertex];
    Quad sum = from[at.index()];
    Quad around = {};
    if (next.before >= 0) around = from[at.of(next.before).index()];
    if (next.after >= 0) multiply_add(around, 1.0f, from[at.of(next.after).index()]);
    multiply_add(sum, 0.5f, around);
    to[at.index()] = sum;
  }
};

// The label compatibility, applied to vertices, as they are fewer than pixels: V'[v] = V[v] compat.
struct Mix : Sides {
  const Quad* compat;  // nullptr: this step is another

  WEAKTR_MEMBER Mix(const LatticeView& lattice, Round round, int step)
      : Sides(lattice, round, step), compat(step == lattice.axes() ? lattice.compat : nullptr) {}
  WEAKTR_MEMBER void operator()(VertexQuad at) const {
    if (!compat) return;
    Quad sum = {};
    for (uint32_t quad = 0; quad < at.quads; ++quad) {
      const Quad value = from[VertexQuad{at.vertex, quad, at.quads}.index()];
      WEAKTR_UNROLL
      for (int i = 0; i < 4; ++i)
        multiply_add(sum, value.lane[i], compat[(4 * quad + i) * at.quads + at.quad]);
    }
    to[at.index()] = sum;
  }
};

// ---- splatting

// Values add up in the order in which the device comes to them: the last digits vary.
struct FloatSums {
  WEAKTR_MEMBER static void add(const LatticeView& lattice, Round round, VertexQuad at,
                                const Quad& value) {
    atomic_add(&lattice.values[round.splat_side(lattice)][at.index()], value);
  }
};

// Values add up as whole multiples of 2^-32, so that no order matters. Sums stay below 2^31:
// weights are at most 1 / n <= 6.2, as a point's own share of n is at least 1 / (d + 1) less the
// scale.
struct ExactSums {
  static constexpr float kScale = 4294967296.0f;
  WEAKTR_MEMBER static void add(const LatticeView& lattice, Round, VertexQuad at,
                                const Quad& value) {
    WEAKTR_UNROLL
    for (int i = 0; i < 4; ++i)
      atomic_add(&lattice.sums[4 * at.index() + i],
                 static_cast<int64_t>(llrintf(value.lane[i] * kScale)));
  }
};

// Takes over what `ExactSums` has, and clears it for the next round.
struct Settle {
  int64_t* sums;
  Quad* values;

  WEAKTR_MEMBER Settle(const LatticeView& lattice, Round round, int)
      : sums(lattice.sums), values(lattice.values[round.splat_side(lattice)]) {}
  WEAKTR_MEMBER void operator()(VertexQuad at) const {
    Quad value;
    WEAKTR_UNROLL
    for (int i = 0; i < 4; ++i) {
      value.lane[i] = static_cast<float>(sums[4 * at.index() + i]) / ExactSums::kScale;
      sums[4 * at.index() + i] = 0;
    }
    values[at.index()] = value;
  }
};

// What one piece adds to its vertex: sum of weight * value over its entries.
template <class Value>
WEAKTR_INLINE Quad piece_sum(const LatticeTile& tile, int piece, const Value& value_of_pixel) {
  const uint8_t* const pixels = tile.entry_pixels();
  const float* const weights = tile.entry_weights();
  const int end = tile.piece_starts()[piece + 1];
  Quad sum = {};
  for (int entry = tile.piece_starts()[piece]; entry < end; ++entry)
    multiply_add(sum, weights[entry], value_of_pixel(pixels[entry]));
  return sum;
}

// One block per lattice tile.
template <class Sums>
struct SplatOnes {
  using Shared = Nothing;
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared&) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    const int pieces = tile.pieces();
    block.each([&](int thread) {
      for (int piece = thread; piece < pieces; piece += kThreads) {
        const Quad sum = piece_sum(tile, piece, [](int) { return Quad{{1.0f, 0.0f, 0.0f, 0.0f}}; });
        Sums::add(tile.lattice, Round{true, 0}, VertexQuad{tile.piece_vertices()[piece], 0, 1},
                  sum);
      }
    });
  }
};

// One block per lattice tile: 1/n and alpha = 1 / (1 + 2^-d) go into the weights.
struct Normalize {
  struct Shared {
    float before[kThreads];
  };
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared& shared) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    block.each([&](int thread) {
      shared.before[thread] = 1.0f;
      if (Place(tile.image, tile.number, thread).inside)
        shared.before[thread] = scale_slice(tile, thread);
    });
    block.each([&](int thread) {
      const int end = tile.piece_starts()[tile.pieces()];
      for (int entry = thread; entry < end; entry += kThreads)
        tile.entry_weights()[entry] *= shared.before[tile.entry_pixels()[entry]];
    });
  }

  // Scales the weights of a pixel's slice; returns the factor for its splat.
  WEAKTR_MEMBER static float scale_slice(const LatticeTile& tile, int thread) {
    const LatticeView& lattice = tile.lattice;
    const float alpha = 1.0f / (1.0f + 1.0f / static_cast<float>(1 << lattice.dimensions));
    float* const weights = tile.corner_weights() + thread;
    float before = 1.0f, after = 1.0f;
    if (lattice.normalization != Normalization::none) {
      const Quad* const ones = Round{true, 0}.result(lattice);
      float sum = 0.0f;
      for (int i = 0; i < lattice.axes(); ++i) {
        const int piece = tile.corner_pieces()[i * kThreads + thread];
        sum += weights[i * kThreads] * alpha * ones[tile.piece_vertices()[piece]].lane[0];
      }
      sum += 1e-20f;
      if (lattice.normalization == Normalization::symmetric) before = after = 1.0f / std::sqrt(sum);
      if (lattice.normalization == Normalization::before) before = 1.0f / sum;
      if (lattice.normalization == Normalization::after) after = 1.0f / sum;
    }
    for (int i = 0; i < lattice.axes(); ++i) weights[i * kThreads] *= alpha * after;
    return before;
  }
};

}  // namespace blocks
}  // namespace weaktr
