// Mean-field inference on built lattices: one pass over the pixels and one blur per iteration.
// Included once per instruction set.
//
// Where every compatibility is Potts (w >= 0) and normalised alike on both sides, w goes into the
// weights and messages are added as they are sliced (`folded`). Then differences to label 0 can be
// filtered instead of all labels: one channel less, where that makes the rows shorter.
#pragma once

#include "dense_crf/cpu/pixel_strips.hpp"

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

// What a thread needs for a strip of pixels: rows of `width` floats.
struct StripRows {
  float* z;         // scores
  float* q;         // probabilities, or their differences
  float* received;  // a message or, where these are folded, scores by label
  float* first;     // [kStrip] label 0's probability
};

struct MeanField {
  const Problem& problem;
  Team& team;
  bool folded = true;
  Channels channels = Channels::all;
  int width = 0;  // floats in a row
  RowsInVectors vectors = {};
  Message* messages = nullptr;
  int message_count = 0;
  const Pixel* order = nullptr;         // nullptr: as given
  const float* scores = nullptr;        // [N, width], or:
  const uint8_t* labels = nullptr;      // [N] in order, with
  const float* label_scores = nullptr;  // [V, width]
  StripRows* strips = nullptr;          // [team]
  float* marginals = nullptr;           // [N, width] q of all pixels, where several threads work

  int64_t index_of(int64_t p) const { return order ? order[p].y * problem.width + order[p].x : p; }
  // Pixels in the strip that starts at `at`.
  int count_at(int64_t at) const {
    return static_cast<int>(problem.pixels - at < kStrip ? problem.pixels - at : kStrip);
  }
  StripPlace place_of(int64_t at) const {
    StripPlace place;
    place.count = count_at(at);
    for (int p = 0; p < place.count; ++p) place.index[p] = index_of(at + p);
    place.run = place.index[place.count - 1] - place.index[0] == place.count - 1;
    return place;
  }

  void run(int iterations) {
    for (int m = 0; m < message_count; ++m) {
      LatticeMemory& memory = *messages[m].memory;
      for (Buffer& rows : memory.rows)
        rows.reserve<float>((memory.lattice.vertices + kLookAhead) * width);
    }
    if (team.size() > 1) sort_by_vertex();
    pass(true, iterations == 0, 0);
    for (int i = 0; i < iterations; ++i) {
      const int from = i & 1;
      for (int m = 0; m < message_count; ++m) blur(*messages[m].memory, from);
      pass(false, i + 1 == iterations, 1 - from);
    }
  }

 private:
  // The rows of one side of a lattice.
  Planes rows_of(LatticeMemory& memory, int side) const {
    const int64_t columns = width < kPlane ? width : kPlane;
    return Planes{memory.rows[side].as<float>(), (memory.lattice.vertices + kLookAhead) * columns};
  }
  // job(plane, its first column, its rows) for every plane of one side of a lattice.
  template <class Job>
  WEAKTR_MEMBER void for_each_plane(LatticeMemory& memory, int side, const Job& job) const {
    float* rows = rows_of(memory, side).first;
    for (int column = 0; column < width; column += kPlane) {
      const Plane& plane = plane_for(width - column);
      job(plane, column, rows);
      rows += rows_of(memory, side).size;
    }
  }

  void blur(LatticeMemory& memory, int side) const {
    const Lattice& lattice = memory.lattice;
    for_each_plane(memory, side, [&](const Plane& plane, int, float* rows) {
      if (lattice.dense) return blur_grid(lattice.grid, rows, plane.width, memory.scratch);
      for (int round = 0; round < lattice.round_count; ++round)
        in_parallel(team, [&](int part) {
          const Chains& chains = lattice.rounds[round];
          plane.blur(chains, chain_boundary(chains, part, team.size()),
                     chain_boundary(chains, part + 1, team.size()), rows);
        });
    });
  }

  // Slices what was blurred (unless `opening`), takes the softmax, and splats it onto the rows of
  // `side` or, `closing`, hands it out.
  void pass(bool opening, bool closing, int side) {
    const int64_t count = (problem.pixels + kStrip - 1) / kStrip;
    if (team.size() == 1) {
      for (int m = 0; m < message_count && !closing; ++m) clear_dense(*messages[m].memory, side);
      for (int64_t strip = 0; strip < count; ++strip)
        work(strip * kStrip, opening, closing, side, strips[0]);
      for (int m = 0; m < message_count && !closing; ++m) clear_rest(*messages[m].memory, side);
    } else {
      in_parallel(team, [&](int part) {
        const int64_t end = count * (part + 1) / team.size();
        for (int64_t strip = count * part / team.size(); strip < end; ++strip)
          work(strip * kStrip, opening, closing, side, strips[part]);
      });
      for (int m = 0; m < message_count && !closing; ++m) gather_all(messages[m], side);
    }
    for (int m = 0; m < message_count; ++m) messages[m].memory->lattice.folded = true;
  }

  // One strip of a pass.
  void work(int64_t at, bool opening, bool closing, int side, const StripRows& strip) {
    const int count = count_at(at);
    const bool splatting = !closing && team.size() == 1;
    fetch_ahead(at + kStrip);
    for (int m = 0; m < message_count; ++m) {
      if (opening) fold(messages[m], at, count);
      if (splatting) clear_touched(*messages[m].memory, at, side);
    }
    receive(opening ? 0 : message_count, at, count, 1 - side, strip);
    softmax(count, closing ? 0.0f : 1.0f, strip);
    if (closing) return hand_out(at, count, strip);
    if (splatting)
      for (int m = 0; m < message_count; ++m) splat_strip(messages[m], at, count, side, strip);
    else
      copy_rows(strip.q, count, marginals + at * width);
  }

  void copy_rows(const float* from, int count, float* to) const {
    std::memcpy(to, from, sizeof(float) * static_cast<size_t>(count) * width);
  }

  // ---- several threads: vertices gather from pixels, so that no two threads write to one row

  // Lists the pixels of every vertex, in their order, with folded weights.
  void sort_by_vertex() {
    const int64_t strips = (problem.pixels + kStrip - 1) / kStrip;
    for (int m = 0; m < message_count; ++m) {
      for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t at = strip * kStrip;
        fold(messages[m], at, count_at(at));
      }
      messages[m].memory->lattice.folded = true;
      list_pixels(*messages[m].memory, problem.pixels, offset_unit(width));
    }
  }

  void gather_all(const Message& message, int side) const {
    LatticeMemory& memory = *message.memory;
    const float* before =
        message.normalization == Normalization::before ? memory.before.as<float>() : nullptr;
    in_parallel(team, [&](int part) {
      const int64_t begin = memory.lattice.vertices * part / team.size();
      const int64_t end = memory.lattice.vertices * (part + 1) / team.size();
      for_each_plane(memory, side, [&](const Plane& plane, int column, float* rows) {
        plane.gather(memory.lattice, begin, end, marginals + column, width, before, rows);
      });
    });
  }

  // Starts fetching what streams through the pass, so that it does so while the strip is computed.
  void fetch_ahead(int64_t at) const {
    if (at + kStrip > problem.pixels) return;
    if (!labels) fetch(scores + at * width, kStrip * width);
    for (int m = 0; m < message_count; ++m) {
      const int64_t words = 2 * messages[m].memory->lattice.corners;
      fetch(messages[m].memory->lattice.records + at * words, kStrip * words);
    }
  }
  static void fetch(const void* from, int64_t words) {
    for (int64_t i = 0; i < words; i += 16)
      __builtin_prefetch(static_cast<const uint32_t*>(from) + i);
  }

  // -U of a strip's pixels.
  void load_scores(int64_t at, int count, float* to) const {
    if (!labels) return copy_rows(scores + at * width, count, to);
    for (int p = 0; p < count; ++p)
      copy_rows(label_scores + labels[at + p] * width, 1, to + p * width);
  }

  // Rows are cleared just before they are touched for the first time.
  void clear_rows(LatticeMemory& memory, int64_t begin, int64_t end, int side) const {
    for_each_plane(memory, side, [&](const Plane& plane, int, float* rows) {
      std::memset(rows + begin * plane.width, 0,
                  sizeof(float) * static_cast<size_t>((end - begin) * plane.width));
    });
  }
  void clear_touched(LatticeMemory& memory, int64_t at, int side) const {
    const Lattice& lattice = memory.lattice;
    if (lattice.dense) return;
    const uint32_t* touched = lattice.first_touch + at / kStrip;
    if (touched[1] > touched[0]) clear_rows(memory, touched[0], touched[1], side);
  }
  void clear_rest(LatticeMemory& memory, int side) const {  // vertices of the padding
    const Lattice& lattice = memory.lattice;
    if (lattice.dense) return;
    const int64_t strips = (problem.pixels + kStrip - 1) / kStrip;
    clear_rows(memory, lattice.first_touch[strips], lattice.vertices, side);
  }
  void clear_dense(LatticeMemory& memory, int side) const {
    if (memory.lattice.dense) clear_rows(memory, 0, memory.lattice.vertices, side);
  }

  // Puts the normalisation, alpha and w into the weights, and scales vertices to offsets.
  void fold(const Message& message, int64_t at, int count) const {
    LatticeMemory& memory = *message.memory;
    if (memory.lattice.folded) return;
    const int corners = memory.lattice.corners;
    const float alpha = 1.0f / (1.0f + 1.0f / static_cast<float>(1 << (corners - 1)));
    const uint32_t unit = offset_unit(width);
    uint32_t* records = memory.lattice.records + at * 2 * corners;
    alignas(64) float norm[kStrip] = {}, scale[kStrip];
    const float* ones = memory.lattice.ones;
    if (corners == 6)
      sum_ones<6>(records, corners, count, ones, norm);
    else if (corners == 3)
      sum_ones<3>(records, corners, count, ones, norm);
    else
      sum_ones<0>(records, corners, count, ones, norm);
    const bool symmetric = message.normalization == Normalization::symmetric;
    for (int p = 0; p < kStrip; ++p) {
      norm[p] = norm[p] * alpha + 1e-20f;
      scale[p] = symmetric ? message.strength / __builtin_sqrtf(norm[p]) : message.strength;
    }
    if (corners == 6)
      scale_records<6>(records, corners, count, unit, scale);
    else if (corners == 3)
      scale_records<3>(records, corners, count, unit, scale);
    else
      scale_records<0>(records, corners, count, unit, scale);
    if (message.normalization == Normalization::before)
      invert(norm, count, memory.before.as<float>() + at);
    if (message.normalization == Normalization::after)
      invert(norm, count, memory.after.as<float>() + at);
  }
  static void invert(const float* norm, int count, float* to) {
    for (int p = 0; p < count; ++p) to[p] = 1.0f / norm[p];
  }

  // The rows from `column` on, which a plane starts with.
  Planes rows_from(LatticeMemory& memory, int side, int column) const {
    const Planes rows = rows_of(memory, side);
    return Planes{rows.first + column / kPlane * rows.size, rows.size};
  }

  // z = -U - sum over some messages of compat(K~ Q)
  void receive(int received, int64_t at, int count, int side, const StripRows& strip) const {
    if (folded && received) return add_messages(at, count, side, strip);
    load_scores(at, count, strip.z);
    for (int m = 0; m < received; ++m) subtract_message(messages[m], at, count, side, strip);
  }

  // The same where messages are folded. They meet the scores last: these are larger as a rule, so
  // that each sum with them loses digits.
  void add_messages(int64_t at, int count, int side, const StripRows& strip) const {
    if (labels) load_scores(at, count, strip.received);
    const float* minus_unary = labels ? strip.received : scores + at * width;
    for (int m = 0; m < message_count; ++m)
      slice_strip(messages[m], at, count, side, m ? strip.z : nullptr,
                  m + 1 == message_count ? minus_unary : nullptr, strip.z);
  }

  void slice_strip(const Message& message, int64_t at, int count, int side, const float* before,
                   const float* after, float* to) const {
    LatticeMemory& memory = *message.memory;
    const int corners = memory.lattice.corners;
    const uint32_t* records = memory.lattice.records + at * 2 * corners;
    for (int column = 0; column < width;) {
      const Columns& columns = columns_for(width - column);
      columns.slice[variant(corners)](records, corners, count, rows_from(memory, side, column),
                                      before ? before + column : nullptr,
                                      after ? after + column : nullptr, to + column, width);
      column += columns.width;
    }
  }

  void splat_strip(const Message& message, int64_t at, int count, int side,
                   const StripRows& strip) const {
    LatticeMemory& memory = *message.memory;
    const int corners = memory.lattice.corners;
    const uint32_t* records = memory.lattice.records + at * 2 * corners;
    const float* value = strip.q;
    if (message.normalization == Normalization::before) {
      const float* before = memory.before.as<float>() + at;
      for (int p = 0; p < count; ++p)
        for (int i = 0; i < width; ++i)
          strip.received[p * width + i] = strip.q[p * width + i] * before[p];
      value = strip.received;
    }
    for (int column = 0; column < width;) {
      const Columns& columns = columns_for(width - column);
      columns.splat[variant(corners)](records, corners, count, value + column,
                                      rows_from(memory, side, column), width);
      column += columns.width;
    }
  }

  // z -= compat(K~ Q)
  void subtract_message(const Message& message, int64_t at, int count, int side,
                        const StripRows& strip) const {
    LatticeMemory& memory = *message.memory;
    float* received = strip.received;
    slice_strip(message, at, count, side, nullptr, nullptr, received);
    if (message.normalization == Normalization::after) {
      const float* after = memory.after.as<float>() + at;
      for (int p = 0; p < count; ++p)
        for (int i = 0; i < width; ++i) received[p * width + i] *= after[p];
    }
    for (int p = 0; p < count; ++p) {
      float* to = strip.z + p * width;
      const float* in = received + p * width;
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

  // [kStrip, width] -> [kLanes, pixels], of kLanes channels.
  void write_square(const float* q, float* to) const {
    for (int p = 0; p < kStrip; p += kLanes) {
      Wide rows[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) rows[lane] = load<Wide>(q + (p + lane) * width);
      transpose(rows);
      for (int lane = 0; lane < kLanes; ++lane) store(to + lane * problem.pixels + p, rows[lane]);
    }
  }

  void softmax(int count, float minus, const StripRows& strip) const {
    const auto [z, q, received, first] = strip;
    // Rows that fill the last group hold what another strip left: how a group is computed, and so
    // its last digits, must not depend on it.
    const int whole_groups = (count + kLanes - 1) / kLanes * kLanes;
    std::fill(z + count * width, z + whole_groups * width, kNever);
    if (channels == Channels::all) minus = 0;
    if (width == 1)
      softmax_ones(z, q, first, count, minus);
    else if (width == 4)
      softmax_fours(z, q, first, count, channels, minus);
    else
      softmax_rows(z, q, first, count, vectors, channels, minus);
  }

  // Writes a strip's probabilities, most probable labels and their probabilities.
  void hand_out(int64_t at, int count, const StripRows& strip) const {
    const int skip = channels == Channels::differences;
    const StripPlace place = place_of(at);
    if (problem.marginals) {
      int l = 0;
      for (; l < skip; ++l) place.write(strip.first, 1, problem.marginals);
      if (place.whole())
        for (; l + kLanes <= problem.labels; l += kLanes)
          write_square(strip.q + l - skip, problem.marginals + l * problem.pixels + place.index[0]);
      for (; l < problem.labels; ++l)
        place.write(strip.q + l - skip, width, problem.marginals + l * problem.pixels);
    }
    if (!problem.argmax && !problem.confidence) return;
    auto probability = [&](int p, int label) {
      return label < skip ? strip.first[p] : strip.q[p * width + label - skip];
    };
    for (int p = 0; p < count; ++p) {
      int best = 0;
      for (int l = 1; l < problem.labels; ++l)
        if (probability(p, l) > probability(p, best)) best = l;
      if (problem.argmax) problem.argmax[place.index[p]] = static_cast<uint8_t>(best);
      if (problem.confidence) problem.confidence[place.index[p]] = probability(p, best);
    }
  }
};

}  // namespace WEAKTR_ISA
}  // namespace weaktr
