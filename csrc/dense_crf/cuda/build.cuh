// Programs that build the lattices of a batch, in the order in which they run.
//
//   BuildTiles      simplices of a tile's pixels, its entries grouped; its vertices into the table
//   CountVertices   vertices that each tile touches first
//   AddUpVertices   ... and all tiles before it: the numbers of the vertices
//   NumberVertices  the numbers into the table
//   LinkVertices    the numbers to the tiles; neighbours along the blur axes; runs of each vertex
//   PlaceLists      where the runs of each vertex are listed
//   FillLists       the runs as they come
//   SortLists       ... in the order of tiles
//   PlanChunks      who blurs what
#pragma once

#include "dense_crf/cuda/views.cuh"

namespace weaktr {
namespace blocks {

struct Nothing {};

// One block per lattice tile. The vertices do not depend on the order in which blocks run: a tile
// groups its entries by itself, and of all tiles that touch a vertex the first one gets it.
struct BuildTiles {
  using Shared = Grouping;
  static constexpr int kBlocksPerMultiprocessor = 5;
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared& group) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    if (tile.lattice.dimensions == 2)
      build<2>(block, group, tile);
    else
      build<5>(block, group, tile);
  }

  template <int D, class Block>
  WEAKTR_MEMBER void build(const Block& block, Grouping& group, const LatticeTile& tile) const {
    typename Block::template Private<Corners<D>> corners;
    clear(block, group);
    block.each([&](int thread) {
      corners[thread].used = find_corners<D>(tile, thread, corners[thread].keys);
      if (corners[thread].used) enter<D>(group, corners[thread], thread);
    });
    number_runs<D>(block, group, corners);
    order_entries<D>(block, group, corners);
    block.each([&](int thread) {
      if (corners[thread].used) write_runs<D>(group, corners[thread], tile, thread);
      write_order<D>(group, tile, thread);
      if (thread == 0) tile.lattice.tile_runs[tile.number] = static_cast<uint16_t>(group.runs());
    });
  }

  // Writes the weights of a pixel's corners and returns their keys; false: there is no pixel.
  // Outside of the image, a point without weight stands for the padding with zero features, once
  // the number of pixels is not a multiple of `kPadding`: then the last tile has such places.
  template <int D>
  WEAKTR_MEMBER static bool find_corners(const LatticeTile& tile, int thread,
                                         uint64_t (&keys)[D + 1]) {
    const ImageView& image = tile.image;
    const LatticeView& lattice = tile.lattice;
    const Place place(image, tile.number, thread);
    const int last_tile = image.tiles_across * ((image.height + kTileSide - 1) / kTileSide) - 1;
    const int64_t pixels = static_cast<int64_t>(image.height) * image.width;
    if (!place.inside && (pixels % kPadding == 0 || static_cast<int>(tile.number) != last_tile))
      return false;
    float position[D] = {};
    if (place.inside) {
      position[0] = static_cast<float>(place.x);
      position[1] = static_cast<float>(place.y);
      for (int i = 2; i < D; ++i) position[i] = image.colours[3 * place.pixel + i - 2];
    }
    for (int i = 0; i < D; ++i)
      position[i] = position[i] / lattice.deviations[i] * lattice.scales[i];
    Simplex<D, float, int> simplex;
    enclosing_simplex<D>(position, simplex);
    keys[0] = lattice.packing.template pack<D>(simplex.first, simplex.digits);
    WEAKTR_UNROLL
    for (int i = 1; i <= D; ++i) keys[i] = keys[i - 1] + lattice.packing.corner[simplex.dropped[i]];
    for (int i = 0; i <= D; ++i)
      tile.corner_weights()[i * kThreads + thread] = place.inside ? simplex.weights[i] : 0.0f;
    return true;
  }

  // The runs of a pixel's corners. The first entry of a run puts its vertex into the table.
  template <int D>
  WEAKTR_MEMBER static void write_runs(const Grouping& group, const Corners<D>& corners,
                                       const LatticeTile& tile, int thread) {
    const LatticeView& lattice = tile.lattice;
    uint64_t previous[D + 1] = {};  // all are on their way together
    WEAKTR_UNROLL
    for (int i = 0; i <= D; ++i) {
      if (!(corners.firsts >> i & 1)) continue;
      uint64_t* const place = lattice.keys + slot_of(corners.keys[i], lattice.slots);
      previous[i] = atomic_replace(place, kEmpty, corners.keys[i]);
    }
    Packed<D> runs;
    WEAKTR_UNROLL
    for (int i = 0; i <= D; ++i) {
      const int run = static_cast<int>(group.place[corners.slots[i]] & 0xffff);
      runs.put(i, run);
      if (!(corners.firsts >> i & 1)) continue;
      const uint32_t slot = insert(lattice.keys, lattice.slots, corners.keys[i], previous[i]);
      atomic_lower(&lattice.owners[slot], tile.claim(run));
      tile.run_vertices()[run] = slot;
    }
    write<D>(tile.corner_runs(), thread, runs);
  }

  // The thread's part of the order.
  template <int D>
  WEAKTR_MEMBER static void write_order(const Grouping& group, const LatticeTile& tile,
                                        int thread) {
    Packed<D> entries;
    WEAKTR_UNROLL
    for (int i = 0; i <= D; ++i) entries.put(i, group.order.entry[thread * (D + 1) + i]);
    write<D>(tile.ordered_entries(), thread, entries);
    tile.parts()[thread] = part_of<D>(group, thread);
  }
};

// One block per lattice tile. Of the runs that touch their vertex first, `arrivals` gets the number
// among the tile's; of others, kNowhere.
struct CountVertices {
  struct Shared {
    uint16_t numbers[kMaxEntries];  // [run] 1: touches its vertex first, else 0; then the number
    Sums sums;
  };
  static constexpr uint16_t kNoNumber = 0xffff;
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared& shared) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    const int runs = tile.runs();
    block.each([&](int thread) {
      WEAKTR_UNROLL
      for (int i = 0; i < kMaxCorners; ++i) {
        const int run = i * kThreads + thread;
        shared.numbers[run] =
            run < runs && tile.lattice.owners[tile.run_vertices()[run]] == tile.claim(run);
      }
    });
    block.each([&](int thread) {
      uint32_t firsts = 0;
      for (int i = 0; i < kMaxCorners; ++i) firsts += shared.numbers[kMaxCorners * thread + i];
      shared.sums.own(thread) = firsts;
    });
    add_up(block, shared.sums);
    block.each([&](int thread) {
      uint32_t before = shared.sums.before[thread];
      for (int i = 0; i < kMaxCorners; ++i) {
        uint16_t& number = shared.numbers[kMaxCorners * thread + i];
        number = number ? static_cast<uint16_t>(before++) : kNoNumber;
      }
      if (thread == 0) tile.lattice.tile_vertices[tile.number + 1] = shared.sums.all();
    });
    block.each([&](int thread) {
      for (int run = thread; run < runs; run += kThreads) {
        const uint16_t number = shared.numbers[run];
        tile.arrivals()[run] = number == kNoNumber ? kNowhere : number;
      }
    });
  }
};

// One block per lattice.
struct AddUpVertices {
  using Shared = Sums;
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared& sums) const {
    const uint32_t tiles = batch.lattice_tiles[block.index + 1] - batch.lattice_tiles[block.index];
    const LatticeView& lattice = batch.lattices[block.index];
    uint32_t* const counts = lattice.tile_vertices;
    typename Block::template Private<uint32_t> before;
    block.each([&](int thread) {
      before[thread] = 0;
      if (thread == 0) counts[0] = *lattice.listed = 0;
    });
    for (uint32_t first = 1; first <= tiles; first += kThreads) {
      block.each([&](int thread) {
        sums.own(thread) = first + thread <= tiles ? counts[first + thread] : 0;
      });
      add_up(block, sums);
      block.each([&](int thread) {
        if (first + thread <= tiles) counts[first + thread] = before[thread] + sums.own(thread);
        before[thread] += sums.all();
      });
    }
  }
};

// One block per lattice tile.
struct NumberVertices {
  using Shared = Nothing;
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared&) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    const uint32_t first = tile.lattice.tile_vertices[tile.number];
    const uint32_t end = tile.lattice.tile_vertices[tile.number + 1];
    const int runs = tile.runs();
    block.each([&](int thread) {
      WEAKTR_UNROLL
      for (int i = 0; i < kMaxCorners; ++i) {
        const int run = i * kThreads + thread;
        if (run >= runs) continue;
        const uint32_t number = tile.arrivals()[run], slot = tile.run_vertices()[run];
        if (number != kNowhere) tile.lattice.owners[slot] = first + number;
      }
      for (uint32_t vertex = first + thread; vertex < end; vertex += kThreads)
        begin_vertex(tile.lattice, vertex);
    });
  }

  WEAKTR_MEMBER static void begin_vertex(const LatticeView& lattice, uint32_t vertex) {
    lattice.lists[vertex].count = 0;
    for (int axis = 0; axis < lattice.axes(); ++axis)
      lattice.neighbours_along(axis)[vertex] = {-1, -1};
  }
};

// One block per lattice tile.
struct LinkVertices {
  using Shared = Nothing;
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared&) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    if (tile.lattice.dimensions == 2)
      link_all<2>(block, tile);
    else
      link_all<5>(block, tile);
  }

  template <int D, class Block>
  WEAKTR_MEMBER static void link_all(const Block& block, const LatticeTile& tile) {
    const LatticeView& lattice = tile.lattice;
    const uint32_t first = lattice.tile_vertices[tile.number];
    const int runs = tile.runs();
    uint32_t* const vertices = tile.run_vertices();  // slots until now
    uint32_t* const arrivals = tile.arrivals();      // numbers until now
    block.each([&](int thread) {
      for (int run = thread; run < runs; run += kThreads) {
        const uint32_t slot = vertices[run], number = arrivals[run];
        const bool is_first = number != kNowhere;
        const uint32_t vertex = is_first ? first + number : lattice.owners[slot];
        vertices[run] = vertex;
        const uint32_t arrival = atomic_add(&lattice.lists[vertex].count, 1);
        if (is_first) link<D>(lattice, static_cast<int32_t>(vertex), lattice.keys[slot]);
        arrivals[run] = arrival;
      }
    });
  }

  // Looks for the neighbours on one side; on the other side they find this vertex. What is read
  // along one axis does not wait for another.
  template <int D>
  WEAKTR_MEMBER static void link(const LatticeView& lattice, int32_t vertex, uint64_t key) {
    uint32_t slots[D + 1];
    uint64_t seen[D + 1];
    WEAKTR_UNROLL
    for (int axis = 0; axis <= D; ++axis) {
      slots[axis] = slot_of(key + lattice.packing.axis_step(axis), lattice.slots);
      seen[axis] = lattice.keys[slots[axis]];
    }
    WEAKTR_UNROLL
    for (int axis = 0; axis <= D; ++axis)
      slots[axis] = find(lattice.keys, lattice.slots, key + lattice.packing.axis_step(axis),
                         slots[axis], seen[axis]);
    int32_t after[D + 1];
    WEAKTR_UNROLL
    for (int axis = 0; axis <= D; ++axis)
      after[axis] =
          slots[axis] == kNowhere ? -1 : static_cast<int32_t>(lattice.owners[slots[axis]]);
    WEAKTR_UNROLL
    for (int axis = 0; axis <= D; ++axis) {
      if (after[axis] < 0) continue;
      Neighbours* const neighbours = lattice.neighbours_along(axis);
      neighbours[vertex].after = after[axis];
      neighbours[after[axis]].before = vertex;
    }
  }
};

// One block per lattice tile: those vertices that it touches first get their place.
struct PlaceLists {
  struct Shared {
    Sums sums;
    uint32_t first;  // of this block's places
  };
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared& shared) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    RunList* const lists = tile.lattice.lists + tile.lattice.tile_vertices[tile.number];
    const int vertices = static_cast<int>(tile.lattice.tile_vertices[tile.number + 1] -
                                          tile.lattice.tile_vertices[tile.number]);
    block.each([&](int thread) {
      uint32_t runs = 0;
      for (int i = kMaxCorners * thread; i < kMaxCorners * (thread + 1); ++i)
        if (i < vertices) runs += lists[i].count;
      shared.sums.own(thread) = runs;
    });
    add_up(block, shared.sums);
    block.each([&](int thread) {
      if (thread == 0) shared.first = atomic_add(tile.lattice.listed, shared.sums.all());
    });
    block.each([&](int thread) {
      uint32_t place = shared.first + shared.sums.before[thread];
      for (int i = kMaxCorners * thread; i < kMaxCorners * (thread + 1); ++i) {
        if (i >= vertices) continue;
        lists[i].first = place;
        place += lists[i].count;
      }
    });
  }
};

// One block per lattice tile. `Operation(tile, run, list)` is applied to every run.
template <class Operation>
struct ForEachRun {
  using Shared = Nothing;
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared&) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    block.each([&](int thread) {
      for (int run = thread; run < tile.runs(); run += kThreads)
        Operation()(tile, run, tile.lattice.lists[tile.run_vertices()[run]]);
    });
  }
};

struct FillLists {
  WEAKTR_MEMBER void operator()(const LatticeTile& tile, int run, RunList list) const {
    tile.lattice.arrived[list.first + tile.arrivals()[run]] = tile.claim(run);
  }
};

// A run's place is how many runs of its vertex belong to tiles before: results do not depend on
// the order in which blocks ran.
struct SortLists {
  WEAKTR_MEMBER void operator()(const LatticeTile& tile, int run, RunList list) const {
    const uint32_t own = tile.claim(run);
    const uint32_t* const arrived = tile.lattice.arrived + list.first;
    uint32_t before = 0;
    WEAKTR_UNROLL_BY_4
    for (uint32_t i = 0; i < list.count; ++i) before += arrived[i] < own;
    tile.lattice.listed_runs[list.first + before] = own;
  }
};

// One block. Values are worked on in chunks of `kChunk` quads of one lattice; for each kind of
// round (mean field, ones) and step: chunks of the lattices before.
struct PlanChunks {
  using Shared = Nothing;
  BatchView batch;

  // Of steps `step` of rounds like this one.
  WEAKTR_MEMBER static const uint32_t* starts(const BatchView& batch, Round round, int step) {
    return batch.chunks +
           static_cast<size_t>(round.ones * kMaxSteps + step) * (batch.lattice_count + 1);
  }

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared&) const {
    block.each([&](int thread) {
      if (thread >= 2 * kMaxSteps) return;
      const Round round{thread >= kMaxSteps, 0};
      const int step = thread % kMaxSteps;
      uint32_t* const starts =
          batch.chunks + static_cast<size_t>(thread) * (batch.lattice_count + 1);
      uint32_t total = 0;
      for (int i = 0; i < batch.lattice_count; ++i) {
        const LatticeView& lattice = batch.lattices[i];
        const uint32_t tiles = batch.lattice_tiles[i + 1] - batch.lattice_tiles[i];
        const uint64_t quads = uint64_t{lattice.tile_vertices[tiles]} * round.quads(lattice);
        starts[i] = total;
        if (step < round.steps(lattice))
          total += static_cast<uint32_t>((quads + kChunk - 1) / kChunk);
      }
      starts[batch.lattice_count] = total;
    });
  }
};

}  // namespace blocks
}  // namespace weaktr
