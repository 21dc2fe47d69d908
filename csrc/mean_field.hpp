// Mean-field inference on built lattices: one pass over the pixels and one blur per iteration.
// Included once per instruction set.
//
// Where every compatibility is Potts (w >= 0) and normalised alike on both sides, w goes into the
// weights and messages are added as they are sliced (`folded`). Then differences to label 0 can be
// filtered instead of all labels: one channel less, where that makes the rows shorter.
#pragma once

#include "blocks_of_pixels.hpp"

namespace weaktr {
namespace WEAKTR_ISA {

// One kernel in use.
struct Message {
  LatticeMemory* memory;
  const float* compat = nullptr;  // [L] or, if `matrix`, [L, row width]; unused where folded
  bool matrix = false;
  Normalization normalization;
  float strength;  // what both weights are multiplied with
};

struct MeanField {
  const Problem& problem;
  Workspace& workspace;
  bool folded = true;
  Channels channels = Channels::all;
  int width = 0;    // floats in a row
  int stride = 0;   // floats from row to row of z and q
  Message* messages = nullptr;
  int message_count = 0;
  const Pixel* order = nullptr;  // nullptr: as given
  const float* scores = nullptr;       // [N, width], or:
  const uint8_t* labels = nullptr;     // [N] in order, with
  const float* label_scores = nullptr;  // [V, width]
  float *z = nullptr, *q = nullptr, *first = nullptr, *received = nullptr;  // a block's

  void run(int iterations) {
    for (int i = 0; i < message_count; ++i) {
      LatticeMemory& memory = *messages[i].memory;
      for (Buffer& rows : memory.rows)
        rows.reserve<float>((memory.lattice.vertices + kLookAhead) * width);
    }
    if (!iterations) return pass(true, true, 0);
    pass(true, false, 0);
    for (int i = 0; i < iterations; ++i) {
      const int from = i & 1;
      for (int m = 0; m < message_count; ++m) blur(*messages[m].memory, from);
      pass(false, i + 1 == iterations, 1 - from);
    }
  }

 private:
  static float* rows_of(LatticeMemory& memory, int side) {
    return memory.rows[side].as<float>();
  }

  void blur(LatticeMemory& memory, int side) const {
    float* rows = rows_of(memory, side);
    const Lattice& lattice = memory.lattice;
    if (lattice.dense) return blur_grid(lattice.grid, rows, width, memory.scratch);
    for (int axis = 0; axis < lattice.corners; ++axis)
      for (int column = 0; column < width;) {
        const Columns& columns = columns_for(width - column);
        columns.blur(lattice.chains[axis], rows + column, width);
        column += columns.width;
      }
  }

  // Slices what was blurred (unless `opening`), takes the softmax, and splats it onto the rows of
  // `side` or, `closing`, hands it out.
  void pass(bool opening, bool closing, int side) {
    if (!closing)
      for (int m = 0; m < message_count; ++m) clear_dense(*messages[m].memory, side);
    for (int64_t at = 0; at < problem.pixels; at += kBlock) {
      const int count = static_cast<int>(problem.pixels - at < kBlock ? problem.pixels - at : kBlock);
      fetch_ahead(at + 2 * kBlock);
      const float* from = load_scores(at, count);
      int64_t from_stride = from == z ? stride : width;
      for (int m = 0; m < message_count; ++m) {
        Message& message = messages[m];
        if (opening && !message.memory->lattice.folded) fold(message, at, count);
        if (!closing) clear_touched(*message.memory, at, side);
        if (opening) continue;
        if (folded)
          slice_block(message, at, count, from, from_stride, z, closing ? -1 : side, 1 - side);
        else
          subtract_message(message, at, count, from, from_stride, 1 - side);
        from = z;
        from_stride = stride;
      }
      if (from != z)
        for (int p = 0; p < count; ++p)
          std::memcpy(z + p * stride, from + p * width, sizeof(float) * static_cast<size_t>(width));
      softmax(count, closing ? 0.0f : 1.0f);
      if (closing) hand_out(at, count);
      for (int m = 0; m < message_count && !closing; ++m) splat_block(messages[m], at, count, side);
    }
    for (int m = 0; m < message_count; ++m) {
      if (!closing) clear_rest(*messages[m].memory, side);
      messages[m].memory->lattice.folded = true;
    }
  }

  // Starts fetching what streams through the pass, so that it does so while the block is computed.
  void fetch_ahead(int64_t at) const {
    if (at + kBlock > problem.pixels) return;
    if (!labels) fetch(scores + at * width, kBlock * width);
    for (int m = 0; m < message_count; ++m) {
      const int64_t words = 2 * messages[m].memory->lattice.corners;
      fetch(messages[m].memory->lattice.records + at * words, kBlock * words);
    }
  }
  static void fetch(const void* from, int64_t words) {
    for (int64_t i = 0; i < words; i += 16)
      __builtin_prefetch(static_cast<const uint32_t*>(from) + i);
  }

  // -U of a block's pixels, in rows.
  const float* load_scores(int64_t at, int count) {
    if (!labels) return scores + at * width;
    for (int p = 0; p < count; ++p)
      std::memcpy(z + p * stride, label_scores + labels[at + p] * width,
                  sizeof(float) * static_cast<size_t>(width));
    return z;
  }

  // Rows are cleared just before they are touched for the first time.
  void clear_rows(LatticeMemory& memory, int64_t begin, int64_t end, int side) const {
    std::memset(rows_of(memory, side) + begin * width, 0,
                sizeof(float) * static_cast<size_t>((end - begin) * width));
  }
  void clear_touched(LatticeMemory& memory, int64_t at, int side) const {
    const Lattice& lattice = memory.lattice;
    if (lattice.dense) return;
    const uint32_t* touched = lattice.first_touch + at / kBlock;
    if (touched[1] > touched[0]) clear_rows(memory, touched[0], touched[1], side);
  }
  void clear_rest(LatticeMemory& memory, int side) const {  // vertices of the padding
    const Lattice& lattice = memory.lattice;
    if (lattice.dense) return;
    const int64_t blocks = (problem.pixels + kBlock - 1) / kBlock;
    clear_rows(memory, lattice.first_touch[blocks], lattice.vertices, side);
  }
  void clear_dense(LatticeMemory& memory, int side) const {
    if (memory.lattice.dense) clear_rows(memory, 0, memory.lattice.vertices, side);
  }

  // Puts the normalisation, alpha and w into the weights, and scales vertices to offsets.
  void fold(Message& message, int64_t at, int count) const {
    LatticeMemory& memory = *message.memory;
    const int corners = memory.lattice.corners;
    const float alpha = 1.0f / (1.0f + 1.0f / static_cast<float>(1 << (corners - 1)));
    const uint32_t unit = width == 1 ? 1 : static_cast<uint32_t>(width) / 2;
    for (int p = 0; p < count; ++p) {
      uint32_t* offset = memory.lattice.records + (at + p) * 2 * corners;
      float* weight = reinterpret_cast<float*>(offset + corners);
      float norm = 0;
      for (int r = 0; r < corners; ++r) norm = fused(weight[r], memory.lattice.ones[offset[r]], norm);
      norm = norm * alpha + 1e-20f;
      float scale = message.strength;
      if (message.normalization == Normalization::symmetric) scale /= __builtin_sqrtf(norm);
      if (message.normalization == Normalization::before) memory.before.as<float>()[at + p] = 1 / norm;
      if (message.normalization == Normalization::after) memory.after.as<float>()[at + p] = 1 / norm;
      for (int r = 0; r < corners; ++r) {
        weight[r] *= scale;
        offset[r] *= unit;
      }
    }
  }

  void slice_block(const Message& message, int64_t at, int count, const float* from,
                   int64_t from_stride, float* to, int splat_side, int side) const {
    LatticeMemory& memory = *message.memory;
    const int corners = memory.lattice.corners;
    const uint32_t* records = memory.lattice.records + at * 2 * corners;
    const float* rows = rows_of(memory, side);
    const float* splat_rows = splat_side < 0 ? nullptr : rows_of(memory, splat_side);
    for (int column = 0; column < width;) {
      const Columns& columns = columns_for(width - column);
      columns.slice[variant(corners)](records, corners, count, from + column, from_stride,
                                      rows + column, to + column, stride, splat_rows);
      column += columns.width;
    }
  }

  void splat_block(const Message& message, int64_t at, int count, int side) {
    LatticeMemory& memory = *message.memory;
    const int corners = memory.lattice.corners;
    const uint32_t* records = memory.lattice.records + at * 2 * corners;
    const float* value = q;
    if (message.normalization == Normalization::before) {
      const float* before = memory.before.as<float>() + at;
      for (int p = 0; p < count; ++p)
        for (int i = 0; i < width; ++i) received[p * stride + i] = q[p * stride + i] * before[p];
      value = received;
    }
    for (int column = 0; column < width;) {
      const Columns& columns = columns_for(width - column);
      columns.splat[variant(corners)](records, corners, count, value + column, stride,
                                      rows_of(memory, side) + column);
      column += columns.width;
    }
  }

  // z = from - compat(K~ Q)
  void subtract_message(const Message& message, int64_t at, int count, const float* from,
                        int64_t from_stride, int side) {
    LatticeMemory& memory = *message.memory;
    for (int i = 0; i < count * stride; ++i) received[i] = 0;
    slice_block(message, at, count, received, stride, received, -1, side);
    if (message.normalization == Normalization::after) {
      const float* after = memory.after.as<float>() + at;
      for (int p = 0; p < count; ++p)
        for (int i = 0; i < width; ++i) received[p * stride + i] *= after[p];
    }
    for (int p = 0; p < count; ++p) {
      float* to = z + p * stride;
      const float* in = received + p * stride;
      if (from != z) std::memcpy(to, from + p * from_stride, sizeof(float) * static_cast<size_t>(width));
      if (!message.matrix) {
        for (int l = 0; l < problem.labels; ++l) to[l] -= message.compat[l] * in[l];
        continue;
      }
      for (int other = 0; other < problem.labels; ++other) {
        const float* row = message.compat + other * width;
        for (int l = 0; l < problem.labels; ++l) to[l] -= row[l] * in[other];
      }
    }
  }

  void softmax(int count, float minus) {
    if (channels == Channels::all) minus = 0;
    if (width == 1) softmax_ones(z, q, first, count, minus);
    else if (width == 4) softmax_fours(z, q, first, count, channels, minus);
    else softmax_rows(z, q, first, count, stride, channels, minus);
  }

  // Writes a block's probabilities, most probable labels and their probabilities.
  void hand_out(int64_t at, int count) const {
    const int skip = channels == Channels::differences;
    int64_t index[kBlock];
    for (int p = 0; p < count; ++p)
      index[p] = order ? order[at + p].y * problem.width + order[at + p].x : at + p;
    auto probability = [&](int p, int label) {
      return label < skip ? first[p] : q[p * stride + label - skip];
    };
    if (problem.marginals)
      for (int l = 0; l < problem.labels; ++l)
        for (int p = 0; p < count; ++p)
          problem.marginals[l * problem.pixels + index[p]] = probability(p, l);
    if (!problem.argmax && !problem.confidence) return;
    for (int p = 0; p < count; ++p) {
      int best = 0;
      for (int l = 1; l < problem.labels; ++l)
        if (probability(p, l) > probability(p, best)) best = l;
      if (problem.argmax) problem.argmax[index[p]] = static_cast<uint8_t>(best);
      if (problem.confidence) problem.confidence[index[p]] = probability(p, best);
    }
  }
};

}  // namespace WEAKTR_ISA
}  // namespace weaktr
