// Programs for every vertex.
//
//   ForEachQuad<...>   one step for every quad of values: Pull, Blur or Mix
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
  static constexpr int kBlocksPerMultiprocessor = Operation::kBlocksPerMultiprocessor;
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

// The splat's second half: a vertex's value is the sum of what its runs add, in the order of tiles.
struct Pull {
  static constexpr int kBlocksPerMultiprocessor = 6;
  static constexpr uint32_t kAtATime = 4;
  const RunList* lists;
  const uint32_t* runs;
  const Quad* sums;
  Quad* values;

  WEAKTR_MEMBER Pull(const LatticeView& lattice, Round round, int)
      : lists(lattice.lists),
        runs(lattice.listed_runs),
        sums(lattice.run_sums),
        values(lattice.values[round.splat_side(lattice)]) {}
  WEAKTR_MEMBER void operator()(VertexQuad at) const {
    const RunList list = lists[at.vertex];
    Quad total = {};
    for (uint32_t first = 0; first < list.count; first += kAtATime) {
      Quad parts[kAtATime] = {};
      WEAKTR_UNROLL
      for (uint32_t i = 0; i < kAtATime; ++i)
        if (first + i < list.count)
          parts[i] = sums[VertexQuad{runs[list.first + first + i], at.quad, at.quads}.index()];
      WEAKTR_UNROLL
      for (uint32_t i = 0; i < kAtATime; ++i) multiply_add(total, 1.0f, parts[i]);
    }
    values[at.index()] = total;
  }
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
  static constexpr int kBlocksPerMultiprocessor = 8;
  const Neighbours* neighbours;  // nullptr: this step is another

  WEAKTR_MEMBER Blur(const LatticeView& lattice, Round round, int step)
      : Sides(lattice, round, step),
        neighbours(step < lattice.axes() ? lattice.neighbours_along(step) : nullptr) {}
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
  static constexpr int kBlocksPerMultiprocessor = 4;
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

}  // namespace blocks
}  // namespace weaktr
