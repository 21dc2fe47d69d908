// Kernels that build the lattices of a batch: programs for blocks, in the order in which they run.
//
//   BuildTiles      simplices of a tile's pixels, its entries grouped; its vertices into the table
//   CountVertices   vertices that each tile touches first
//   AddUpVertices   ... and all tiles before it: the numbers of the vertices
//   NumberVertices  the numbers into the table
//   LinkVertices    the numbers to the tiles; neighbours along the blur axes
//   PlanChunks      who blurs what
#pragma once

#include "dense_crf/cuda/views.cuh"

namespace weaktr {
namespace blocks {

struct Nothing {};

// In `owners`: a number instead of a claim.
constexpr uint32_t kNumbered = 0x80000000u;

// One block per lattice tile. The vertices do not depend on the order in which blocks run: a tile
// groups its entries by itself, and of all tiles that touch a vertex the first one gets it.
struct BuildTiles {
  using Shared = Grouping;
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
    group_entries<D>(block, group, corners);
    block.each([&](int thread) {
      write_entries(group, tile, thread);
      if (corners[thread].used) claim_vertices<D>(group, corners[thread], tile, thread);
    });
    block.each([&](int thread) { copy_slots(group, tile, thread); });
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

  WEAKTR_MEMBER static void write_entries(const Grouping& group, const LatticeTile& tile,
                                          int thread) {
    const int entries = tile.lattice.entries();
    for (int i = thread; i < entries; i += kThreads) {
      if (!group.used(i)) continue;
      const int entry = group.entry(i);
      tile.entry_pixels()[i] = static_cast<uint8_t>(entry % kThreads);
      tile.entry_weights()[i] = tile.corner_weights()[entry];
      tile.corner_pieces()[entry] = static_cast<uint16_t>(group.first_piece(group.first_entry(i)));
      if (group.starts_piece(i)) tile.piece_starts()[group.piece[i]] = static_cast<uint16_t>(i);
      if (i + 1 == entries || !group.used(i + 1))  // the last one
        tile.piece_starts()[group.piece[i] + 1] = static_cast<uint16_t>(i + 1);
    }
    if (thread == 0) tile.lattice.tile_pieces[tile.number] = group.sums[kThreads];
  }

  // The thread with a vertex's first entry puts it into the table.
  template <int D>
  WEAKTR_MEMBER static void claim_vertices(const Grouping& group, const Corners<D>& corners,
                                           const LatticeTile& tile, int thread) {
    const LatticeView& lattice = tile.lattice;
    WEAKTR_UNROLL
    for (int corner = 0; corner <= D; ++corner) {
      const int entry = corner * kThreads + thread;
      if (static_cast<int>(group.first[corners.slots[corner]]) != entry) continue;
      const uint32_t slot = insert(lattice.keys, lattice.slots, corners.keys[corner]);
      const int piece = group.first_piece(entry);
      atomic_lower(&lattice.owners[slot], tile.claim(piece));
      tile.piece_vertices()[piece] = slot;
    }
  }

  // A vertex's other pieces have the slot of its first one.
  WEAKTR_MEMBER static void copy_slots(const Grouping& group, const LatticeTile& tile, int thread) {
    uint32_t* const slots = tile.piece_vertices();
    for (int i = thread; i < tile.lattice.entries(); i += kThreads)
      if (group.starts_piece(i) && !group.starts_run(i))
        slots[group.piece[i]] = slots[group.first_piece(group.first_entry(i))];
  }
};

// One block per lattice tile.
struct CountVertices {
  struct Shared {
    uint32_t count;
  };
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared& shared) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    block.each([&](int thread) {
      if (thread == 0) shared.count = 0;
    });
    block.each([&](int thread) {
      uint32_t mine = 0;
      for (int piece = thread; piece < tile.pieces(); piece += kThreads)
        mine += tile.lattice.owners[tile.piece_vertices()[piece]] == tile.claim(piece);
      if (mine) atomic_add(&shared.count, mine);
    });
    block.each([&](int thread) {
      if (thread == 0) tile.lattice.tile_vertices[tile.number + 1] = shared.count;
    });
  }
};

// One block per lattice.
struct AddUpVertices {
  struct Shared {
    uint32_t sums[kThreads + 1];
  };
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared& shared) const {
    const uint32_t tiles = batch.lattice_tiles[block.index + 1] - batch.lattice_tiles[block.index];
    uint32_t* const counts = batch.lattices[block.index].tile_vertices;
    typename Block::template Private<uint32_t> before;
    block.each([&](int thread) {
      before[thread] = 0;
      if (thread == 0) counts[0] = 0;
    });
    for (uint32_t first = 1; first <= tiles; first += kThreads) {
      block.each([&](int thread) {
        shared.sums[thread + 1] = first + thread <= tiles ? counts[first + thread] : 0;
      });
      add_up(block, shared.sums);
      block.each([&](int thread) {
        if (first + thread <= tiles)
          counts[first + thread] = before[thread] + shared.sums[thread + 1];
        before[thread] += shared.sums[kThreads];
      });
    }
  }
};

// One block per lattice tile.
struct NumberVertices {
  struct Shared {
    uint32_t sums[kThreads + 1];
  };
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared& shared) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    // Blocks of other tiles may have numbered a vertex already; what they write is no claim of
    // ours.
    const auto is_ours = [&](int piece) {
      return piece < tile.pieces() &&
             atomic_read(&tile.lattice.owners[tile.piece_vertices()[piece]]) == tile.claim(piece);
    };
    block.each([&](int thread) {
      uint32_t ours = 0;
      for (int i = 0; i < kMaxCorners; ++i) ours += is_ours(kMaxCorners * thread + i);
      shared.sums[thread + 1] = ours;
    });
    add_up(block, shared.sums);
    block.each([&](int thread) {
      uint32_t number = tile.lattice.tile_vertices[tile.number] + shared.sums[thread];
      for (int i = 0; i < kMaxCorners; ++i) {
        const int piece = kMaxCorners * thread + i;
        if (is_ours(piece))
          atomic_write(&tile.lattice.owners[tile.piece_vertices()[piece]], kNumbered | number++);
      }
    });
  }
};

// One block per lattice tile.
struct LinkVertices {
  using Shared = Nothing;
  BatchView batch;

  template <class Block>
  WEAKTR_MEMBER void operator()(const Block& block, Shared&) const {
    const LatticeTile tile = lattice_tile(batch, block.index);
    const LatticeView& lattice = tile.lattice;
    const uint32_t first = lattice.tile_vertices[tile.number];
    const uint32_t end = lattice.tile_vertices[tile.number + 1];
    uint32_t* const slots = tile.piece_vertices();  // become vertices
    block.each([&](int thread) {
      for (int piece = thread; piece < tile.pieces(); piece += kThreads) {
        if (piece > 0 && slots[piece - 1] == slots[piece]) continue;  // the same vertex
        const uint32_t vertex = lattice.owners[slots[piece]] ^ kNumbered;
        if (first <= vertex && vertex < end) link(lattice, vertex, lattice.keys[slots[piece]]);
      }
    });
    block.each([&](int thread) {
      for (int piece = thread; piece < tile.pieces(); piece += kThreads)
        slots[piece] = lattice.owners[slots[piece]] ^ kNumbered;
    });
  }

  WEAKTR_MEMBER static void link(const LatticeView& lattice, uint32_t vertex, uint64_t key) {
    for (int axis = 0; axis < lattice.axes(); ++axis) {
      const uint64_t step = lattice.packing.axis_step(axis);
      lattice.neighbours[static_cast<size_t>(axis) * lattice.most_vertices + vertex] = {
          number_of(lattice, key - step), number_of(lattice, key + step)};
    }
  }

  WEAKTR_MEMBER static int32_t number_of(const LatticeView& lattice, uint64_t key) {
    const uint32_t slot = find(lattice.keys, lattice.slots, key);
    return slot == kNowhere ? -1 : static_cast<int32_t>(lattice.owners[slot] ^ kNumbered);
  }
};

// One block. Rows are worked on in chunks of `kChunk` quads of one lattice; for each kind of round
// (mean field, ones) and step: chunks of the lattices before.
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
