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
  // The same of another vertex.
  WEAKTR_MEMBER VertexQuad of(uint32_t other) const { return {other, quad, quads}; }
  WEAKTR_MEMBER VertexQuad further(uint32_t by) const {
    return {vertex + (quad + by) / quads, (quad + by) % quads, quads};
  }
};

// Any number of blocks. `Operation(lattice, round, step)` gives every quad of every lattice that
// has this step its new value. What leads to it is read for all quads of a thread before the first
// value is, and values are read for `kAtATime` quads before the first is written, so that they are
// on their way together: none of this may be written by the same step. Every other step goes
// backwards: it begins with what the step before wrote last, and caches still hold.
template <class Operation>
struct ForEachQuad {
  using Shared = Nothing;
  static constexpr int kBlocksPerMultiprocessor = Operation::kBlocksPerMultiprocessor;
  static constexpr int kAtATime = Operation::kAtATime;
  static_assert(kQuadsPerThread % kAtATime == 0, "whole groups");
  BatchView batch;
  Round round;
  int step;
  bool backwards;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared&) const {
    const uint32_t* const starts = PlanChunks::starts(batch, round, step);
    const uint32_t chunks = starts[batch.lattice_count];
    for (uint32_t i = block.index; i < chunks; i += block.count) {
      const uint32_t chunk = backwards ? chunks - 1 - i : i;
      const int number = segment_of(starts, batch.lattice_count, chunk);
      const LatticeView& lattice = batch.lattices[number];
      const Operation operation(lattice, round, step);
      if (!operation.applies()) continue;
      const uint32_t tiles = batch.lattice_tiles[number + 1] - batch.lattice_tiles[number];
      const uint32_t quads = round.quads(lattice);
      const uint64_t first = uint64_t{chunk - starts[number]} * kChunk;
      const uint64_t left = uint64_t{lattice.tile_vertices[tiles]} * quads - first;
      const uint32_t count = left < kChunk ? static_cast<uint32_t>(left) : kChunk;
      const VertexQuad start{static_cast<uint32_t>(first / quads),
                             static_cast<uint32_t>(first % quads), quads};
      block.each([&](int thread) { apply(operation, start, count, thread); });
    }
  }

  // To a thread's share of `count` quads from `start` on.
  WEAKTR_MEMBER static void apply(const Operation& operation, VertexQuad start, uint32_t count,
                                  int thread) {
    VertexQuad places[kQuadsPerThread];
    typename Operation::Lead leads[kQuadsPerThread];
    WEAKTR_UNROLL
    for (uint32_t i = 0; i < kQuadsPerThread; ++i) {
      const uint32_t own = i * kThreads + thread;
      places[i] = start.further(own < count ? own : count - 1);  // read by several, written by one
      leads[i] = operation.lead(places[i].vertex);
    }
    WEAKTR_UNROLL
    for (uint32_t i = 0; i < kQuadsPerThread; i += kAtATime) {
      Quad values[kAtATime];
      operation.read(places + i, leads + i, values);
      WEAKTR_UNROLL
      for (uint32_t j = 0; j < kAtATime; ++j)
        if ((i + j) * kThreads + thread < count) operation.to[places[i + j].index()] = values[j];
    }
  }
};

// The splat's second half: a vertex's value is the sum of what its runs add, in the order of tiles.
struct Pull {
  using Lead = RunList;
  static constexpr int kBlocksPerMultiprocessor = 4;
  static constexpr int kAtATime = 2;
  static constexpr uint32_t kRuns = 2;  // of each of them
  const RunList* lists;
  const uint32_t* runs;
  const Quad* sums;
  Quad* to;

  WEAKTR_MEMBER Pull(const LatticeView& lattice, Round round, int)
      : lists(lattice.lists),
        runs(lattice.listed_runs),
        sums(lattice.run_sums),
        to(lattice.values[round.splat_side(lattice)]) {}
  WEAKTR_MEMBER bool applies() const { return true; }
  WEAKTR_MEMBER RunList lead(uint32_t vertex) const { return lists[vertex]; }

  WEAKTR_MEMBER void read(const VertexQuad* at, const RunList* leads, Quad* totals) const {
    uint32_t longest = 0;
    WEAKTR_UNROLL
    for (int i = 0; i < kAtATime; ++i) {
      totals[i] = Quad{};
      longest = leads[i].count > longest ? leads[i].count : longest;
    }
    uint32_t listed[kAtATime][kRuns] = {};
    look_up(leads, 0, listed);
    for (uint32_t first = 0; first < longest; first += kRuns) {
      Quad parts[kAtATime][kRuns] = {};
      WEAKTR_UNROLL
      for (int i = 0; i < kAtATime; ++i) {
        WEAKTR_UNROLL
        for (uint32_t j = 0; j < kRuns; ++j)
          if (first + j < leads[i].count) parts[i][j] = sums[at[i].of(listed[i][j]).index()];
      }
      look_up(leads, first + kRuns, listed);
      WEAKTR_UNROLL
      for (int i = 0; i < kAtATime; ++i) {
        WEAKTR_UNROLL
        for (uint32_t j = 0; j < kRuns; ++j) multiply_add(totals[i], 1.0f, parts[i][j]);
      }
    }
  }

  // Runs `first`, ... of every list, as far as there are any.
  WEAKTR_MEMBER void look_up(const RunList* leads, uint32_t first,
                             uint32_t (&listed)[kAtATime][kRuns]) const {
    WEAKTR_UNROLL
    for (int i = 0; i < kAtATime; ++i) {
      WEAKTR_UNROLL
      for (uint32_t j = 0; j < kRuns; ++j)
        if (first + j < leads[i].count) listed[i][j] = runs[leads[i].first + first + j];
    }
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
  using Lead = Neighbours;
  static constexpr int kBlocksPerMultiprocessor = 4;
  static constexpr int kAtATime = 4;
  const Neighbours* neighbours;  // nullptr: this step is another

  WEAKTR_MEMBER Blur(const LatticeView& lattice, Round round, int step)
      : Sides(lattice, round, step),
        neighbours(step < lattice.axes() ? lattice.neighbours_along(step) : nullptr) {}
  WEAKTR_MEMBER bool applies() const { return neighbours; }
  WEAKTR_MEMBER Neighbours lead(uint32_t vertex) const { return read_once(neighbours + vertex); }

  WEAKTR_MEMBER void read(const VertexQuad* at, const Neighbours* leads, Quad* values) const {
    Quad before[kAtATime] = {}, after[kAtATime] = {};
    WEAKTR_UNROLL
    for (int i = 0; i < kAtATime; ++i) {
      values[i] = from[at[i].index()];
      if (leads[i].before >= 0)
        before[i] = from[at[i].of(static_cast<uint32_t>(leads[i].before)).index()];
      if (leads[i].after >= 0)
        after[i] = from[at[i].of(static_cast<uint32_t>(leads[i].after)).index()];
    }
    WEAKTR_UNROLL
    for (int i = 0; i < kAtATime; ++i) {
      multiply_add(before[i], 1.0f, after[i]);
      multiply_add(values[i], 0.5f, before[i]);
    }
  }
};

// The label compatibility, applied to vertices, as they are fewer than pixels: V'[v] = V[v] compat.
struct Mix : Sides {
  using Lead = Nothing;
  static constexpr int kBlocksPerMultiprocessor = 4;
  static constexpr int kAtATime = 1;
  const Quad* compat;  // nullptr: this step is another

  WEAKTR_MEMBER Mix(const LatticeView& lattice, Round round, int step)
      : Sides(lattice, round, step), compat(step == lattice.axes() ? lattice.compat : nullptr) {}
  WEAKTR_MEMBER bool applies() const { return compat; }
  WEAKTR_MEMBER Nothing lead(uint32_t) const { return {}; }

  WEAKTR_MEMBER void read(const VertexQuad* at, const Nothing*, Quad* sum) const {
    *sum = Quad{};
    const uint32_t quads = at->quads;
    for (uint32_t quad = 0; quad < quads; ++quad) {
      const Quad value = from[VertexQuad{at->vertex, quad, quads}.index()];
      WEAKTR_UNROLL
      for (int i = 0; i < 4; ++i)
        multiply_add(*sum, value.lane[i], compat[(4 * quad + i) * quads + at->quad]);
    }
  }
};

}  // namespace blocks
}  // namespace weaktr
