// The hot code of the dense CRF, compiled once for each instruction set (-DWEAKTR_ISA=name).
// From here on: problem -> lattices -> mean field.
//
// This object must not define symbols that others could pick up (an inline function of the standard
// library, say, compiled for AVX-512): everything lives in the namespace of its instruction set.

#include "dense_crf/cpu/isa.hpp"

#include "dense_crf/cpu/mean_field.hpp"

namespace weaktr {
namespace WEAKTR_ISA {
namespace {

constexpr int64_t kTile = 64;

// The x and y of step `i` along a Hilbert curve through a square of `side` (a power of two) cells.
void hilbert(int64_t side, int64_t i, int64_t& x, int64_t& y) {
  x = y = 0;
  for (int64_t s = 1; s < side; s *= 2, i /= 4) {
    const int64_t right = 1 & (i / 2), up = 1 & (i ^ right);
    if (!up) {
      if (right) {
        x = s - 1 - x;
        y = s - 1 - y;
      }
      const int64_t swapped = x;
      x = y;
      y = swapped;
    }
    x += s * right;
    y += s * up;
  }
}

// Pixels of a grid tile by tile, tiles along a Hilbert curve: what is close in the image is close
// in memory, on every scale from the registers to the last cache. The tile in the corner comes
// last, whose pixels may not be a multiple of `kStrip`: all other strips start where a row of a
// tile does.
const Pixel* tile_order(const Problem& problem, Workspace& workspace) {
  if (!problem.height) return nullptr;
  Pixel* order = workspace.order.reserve<Pixel>(problem.pixels);
  if (workspace.order_height == problem.height && workspace.order_width == problem.width)
    return order;
  const auto add_tile = [&](int64_t left, int64_t top) {
    for (int64_t y = top; y < top + kTile && y < problem.height; ++y)
      for (int64_t x = left; x < left + kTile && x < problem.width; ++x)
        *order++ = Pixel{static_cast<uint32_t>(x), static_cast<uint32_t>(y)};
  };
  const int64_t across = (problem.width - 1) / kTile, down = (problem.height - 1) / kTile;
  int64_t side = 1;
  while (side <= across || side <= down) side *= 2;
  for (int64_t i = 0; i < side * side; ++i) {
    int64_t x, y;
    hilbert(side, i, x, y);
    if (x != across || y != down) add_tile(x * kTile, y * kTile);
  }
  add_tile(across * kTile, down * kTile);
  workspace.order_height = problem.height;
  workspace.order_width = problem.width;
  return workspace.order.as<Pixel>();
}

template <int D>
void scaled_ramp(float* to, int64_t count, float deviation, int i) {
  const float scale = position_scale<D>(i);
  for (int64_t v = 0; v < count; ++v) to[v] = (static_cast<float>(v) / deviation) * scale;
}

// The norm's numerator: blurs `ones` and leaves them ready to be sliced.
void blur_ones(LatticeMemory& memory) {
  Lattice& lattice = memory.lattice;
  float* ones = memory.ones.as<float>();
  if (lattice.dense)
    blur_grid(lattice.grid, ones, 1, memory.scratch);
  else
    for (int round = 0; round < lattice.round_count; ++round)
      blur_chains<1>(lattice.rounds[round], 0, lattice.rounds[round].count, ones);
  lattice.ones = ones;
}

// Builds with keys of 64 bits if they suffice, else of 128. `width`: floats in a row.
template <int D, class Points>
void build_hashed(LatticeMemory& memory, const Points& points, int64_t pixels, int number,
                  const float (&low)[D], const float (&high)[D], int width, Team& team) {
  const double most = static_cast<double>(pixels + kPadding) * (D + 1);
  if (most >= 4294967295.0) fail_vertices(number);
  const int index_bits = bits_for(static_cast<int64_t>(most));
  KeyPacking<uint64_t> narrow;
  if (!make_packing<D>(low, high, narrow)) fail_range(number);
  memory.lattice.corners = D + 1;
  const auto make = [&](auto& builder) {
    builder.table.index_bits = index_bits;
    builder.build(points, pixels);
    builder.link(team);
    memory.lattice.vertices = builder.vertices;
    if (worth_scheduling(builder.vertices, width, team.size())) builder.schedule_by_sum();
  };
  if (narrow.bits + index_bits < 64) {
    HashedBuilder<D, uint64_t> builder{memory, narrow, {}};
    return make(builder);
  }
  KeyPacking<unsigned __int128> broad;
  make_packing<D>(low, high, broad);
  if (broad.bits + index_bits >= 128) fail_range(number);
  HashedBuilder<D, unsigned __int128> builder{memory, broad, {}};
  make(builder);
}

void build_position(const Problem& problem, const Kernel& kernel, int number, const Pixel* order,
                    int width, LatticeMemory& memory, Team& team) {
  float* xs = memory.rows[0].reserve<float>(problem.width + problem.height);
  float* ys = xs + problem.width;
  scaled_ramp<2>(xs, problem.width, kernel.deviations[0], 0);
  scaled_ramp<2>(ys, problem.height, kernel.deviations[1], 1);
  const float right = xs[problem.width - 1], bottom = ys[problem.height - 1];
  if (!(2 * right + 2 * bottom < kLargestCoordinate)) fail_range(number);
  memory.lattice.corners = 3;
  const GridShape shape = grid_shape(right, bottom);
  if (static_cast<double>(shape.rows) * shape.columns < 4.0 * problem.pixels + 4096) {
    GridBuilder{memory, shape}.build(xs, ys, order, problem.pixels);
    return;
  }
  const float low[2] = {}, high[2] = {right, bottom};
  auto points = [&](int64_t first, int count, float (&position)[2][kLanes]) {
    for (int lane = 0; lane < count; ++lane) {
      position[0][lane] = xs[order[first + lane].x];
      position[1][lane] = ys[order[first + lane].y];
    }
  };
  build_hashed<2>(memory, points, problem.pixels, number, low, high, width, team);
}

void build_colour(const Problem& problem, const Kernel& kernel, int number, const Pixel* order,
                  int width, LatticeMemory& memory, Team& team) {
  float* xs = memory.rows[0].reserve<float>(problem.width + problem.height + 3 * 256);
  float* ys = xs + problem.width;
  float* colours = ys + problem.height;
  scaled_ramp<5>(xs, problem.width, kernel.deviations[0], 0);
  scaled_ramp<5>(ys, problem.height, kernel.deviations[1], 1);
  for (int c = 0; c < 3; ++c)
    scaled_ramp<5>(colours + 256 * c, 256, kernel.deviations[2 + c], 2 + c);
  const float low[5] = {};
  const float high[5] = {xs[problem.width - 1], ys[problem.height - 1], colours[255], colours[511],
                         colours[767]};
  auto points = [&](int64_t first, int count, float (&position)[5][kLanes]) {
    for (int lane = 0; lane < count; ++lane) {
      const Pixel at = order[first + lane];
      const uint8_t* rgb = problem.image + 3 * (at.y * problem.width + at.x);
      position[0][lane] = xs[at.x];
      position[1][lane] = ys[at.y];
      for (int c = 0; c < 3; ++c) position[2 + c][lane] = colours[256 * c + rgb[c]];
    }
  };
  build_hashed<5>(memory, points, problem.pixels, number, low, high, width, team);
}

template <int D>
void build_features(const Problem& problem, const Kernel& kernel, int number, const Pixel* order,
                    int width, LatticeMemory& memory, Team& team) {
  float scale[D], low[D], high[D];
  for (int i = 0; i < D; ++i) {
    scale[i] = position_scale<D>(i);
    const float* feature = kernel.features + i * problem.pixels;
    low[i] = high[i] = feature[0];
    for (int64_t p = 1; p < problem.pixels; ++p) {
      low[i] = feature[p] < low[i] ? feature[p] : low[i];
      high[i] = feature[p] > high[i] ? feature[p] : high[i];
    }
    low[i] *= scale[i];
    high[i] *= scale[i];
  }
  auto points = [&](int64_t first, int count, float (&position)[D][kLanes]) {
    for (int lane = 0; lane < count; ++lane) {
      int64_t p = first + lane;
      if (order) p = order[p].y * problem.width + order[p].x;
      for (int i = 0; i < D; ++i)
        position[i][lane] = kernel.features[i * problem.pixels + p] * scale[i];
    }
  };
  build_hashed<D>(memory, points, problem.pixels, number, low, high, width, team);
}

// `build_features` for as many dimensions as the kernel has, at least D.
template <int D = 1>
void build_any_features(const Problem& problem, const Kernel& kernel, int number,
                        const Pixel* order, int width, LatticeMemory& memory, Team& team) {
  if (kernel.dimensions == D)
    build_features<D>(problem, kernel, number, order, width, memory, team);
  else if constexpr (D < kMaxDimensions)
    build_any_features<D + 1>(problem, kernel, number, order, width, memory, team);
}

// Whether `memory` still holds this very lattice of positions.
bool reusable(const LatticeMemory& memory, const Problem& problem, const Kernel& kernel,
              float strength, int width) {
  return memory.height == problem.height && memory.width == problem.width &&
         memory.deviations[0] == kernel.deviations[0] &&
         memory.deviations[1] == kernel.deviations[1] &&
         memory.normalization == kernel.normalization && memory.strength == strength &&
         memory.row_width == width && memory.lanes == kLanes;
}

void build(const Problem& problem, const Kernel& kernel, int number, const Pixel* order,
           float strength, int width, LatticeMemory& memory, Team& team) {
  const bool position = !kernel.features && kernel.dimensions == 2;
  if (position && memory.height && reusable(memory, problem, kernel, strength, width)) return;
  memory.height = 0;
  memory.lattice = Lattice{};
  if (kernel.features)
    build_any_features(problem, kernel, number, order, width, memory, team);
  else if (position)
    build_position(problem, kernel, number, order, width, memory, team);
  else
    build_colour(problem, kernel, number, order, width, memory, team);
  if (memory.lattice.vertices >= kContinues) fail_vertices(number);
  if (kernel.normalization == Normalization::before) memory.before.reserve<float>(problem.pixels);
  if (kernel.normalization == Normalization::after) memory.after.reserve<float>(problem.pixels);
  blur_ones(memory);
  if (!position) return;
  memory.height = problem.height;
  memory.width = problem.width;
  for (int i = 0; i < 2; ++i) memory.deviations[i] = kernel.deviations[i];
  memory.normalization = kernel.normalization;
  memory.strength = strength;
  memory.row_width = width;
  memory.lanes = kLanes;
}

// w of a Potts compatibility with w >= 0 that is normalised alike on both sides, else -1.
float potts_weight(const Kernel& kernel, int labels) {
  if (kernel.normalization == Normalization::before ||
      kernel.normalization == Normalization::after ||
      static_cast<int>(kernel.compat.size()) != labels)
    return -1;
  const float* compat = kernel.compat.data();
  for (int l = 1; l < labels; ++l)
    if (compat[l] != compat[0]) return -1;
  return compat[0] <= 0 ? -compat[0] : -1;
}

// Scores of ever larger energies are as certain, but must stay above kNever.
WEAKTR_INLINE float bounded(float score) {
  return score < -kSurest ? -kSurest : score > kSurest ? kSurest : score;
}
WEAKTR_INLINE Wide bounded(Wide score) {
  return -larger(-larger(score, filled<Wide>(-kSurest)), filled<Wide>(-kSurest));
}

// Scores from a pixel's energies: -U, or the differences to label 0.
void write_scores(const float* energies, const MeanField& field, float* row) {
  const bool differences = field.channels == Channels::differences;
  const float zero = differences ? energies[0] : 0.0f;
  const int used = field.problem.labels - differences;
  for (int i = 0; i < used; ++i) row[i] = bounded(zero - energies[i + differences]);
  for (int i = used; i < field.width; ++i) row[i] = kNever;
}

// Starts fetching the energies of a strip of pixels, most often side by side.
WEAKTR_INLINE void fetch_unary(const Problem& problem, int64_t first, int64_t last) {
  for (int l = 0; l < problem.labels; ++l) {
    const float* energies = problem.unary + l * problem.pixels;
    for (int64_t p = first; p < first + kStrip && p < last; p += 16)
      __builtin_prefetch(energies + p);
    __builtin_prefetch(energies + last);
  }
}

// Energies of kLanes labels and a whole strip of pixels -> scores. `zero`: what they are taken
// from.
void load_square(const float* energies, int64_t pixels, const float* zero, float* scores,
                 int width) {
  for (int p = 0; p < kStrip; p += kLanes) {
    Wide rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      rows[lane] = bounded(load<Wide>(zero + p) - load<Wide>(energies + lane * pixels + p));
    transpose(rows);
    for (int lane = 0; lane < kLanes; ++lane) store(scores + (p + lane) * width, rows[lane]);
  }
}

// [L, N] -> [N, width], some labels of a strip of pixels at a time.
void load_unary(Workspace& workspace, MeanField& field) {
  const Problem& problem = field.problem;
  const int width = field.width, differences = field.channels == Channels::differences;
  float* scores = workspace.scores.reserve<float>((problem.pixels + kStrip) * width);
  field.scores = scores;
  alignas(64) float zero[kStrip] = {}, energy[kStrip] = {};
  for (int64_t at = 0; at < problem.pixels; at += kStrip, scores += kStrip * width) {
    const StripPlace place = field.place_of(at);
    if (at + 2 * kStrip <= problem.pixels)
      fetch_unary(problem, field.index_of(at + kStrip), field.index_of(at + 2 * kStrip - 1));
    if (differences) place.read(problem.unary, zero);
    int i = 0;
    if (place.whole())
      for (; i + kLanes <= problem.labels - differences; i += kLanes)
        load_square(problem.unary + (i + differences) * problem.pixels + place.index[0],
                    problem.pixels, zero, scores + i, width);
    for (; i < problem.labels - differences; ++i) {
      place.read(problem.unary + (i + differences) * problem.pixels, energy);
      for (int p = 0; p < kStrip; ++p) energy[p] = bounded(zero[p] - energy[p]);
      for (int p = 0; p < place.count; ++p) scores[p * width + i] = energy[p];
    }
    for (; i < width; ++i)
      for (int p = 0; p < place.count; ++p) scores[p * width + i] = kNever;
  }
}

void load_labels(Workspace& workspace, MeanField& field) {
  const Problem& problem = field.problem;
  float* rows = workspace.scores.reserve<float>(int64_t{problem.table_rows} * field.width);
  for (int v = 0; v < problem.table_rows; ++v)
    write_scores(problem.table + v * problem.labels, field, rows + v * field.width);
  uint8_t* labels = workspace.labels.reserve<uint8_t>(problem.pixels);
  for (int64_t p = 0; p < problem.pixels; ++p) labels[p] = problem.label_map[field.index_of(p)];
  field.labels = labels;
  field.label_scores = rows;
}

// Compatibility of each message in rows as wide as the field's.
const float* spread_compat(const Kernel& kernel, int labels, int width, float* to) {
  const bool matrix = static_cast<int>(kernel.compat.size()) != labels;
  for (int row = 0; row < (matrix ? labels : 1); ++row)
    for (int l = 0; l < width; ++l)
      to[row * width + l] = l < labels ? kernel.compat.data()[row * labels + l] : 0.0f;
  return to;
}

StripRows* make_strips(const MeanField& field, Workspace& workspace) {
  const int parts = field.team.size();
  const int64_t rows = int64_t{kStrip} * field.width, share = 3 * rows + kStrip;
  float* memory = workspace.strips.reserve<float>(share * parts);
  StripRows* strips = workspace.parts.reserve<StripRows>(parts);
  for (int part = 0; part < parts; ++part, memory += share) {
    strips[part] = StripRows{memory, memory + rows, memory + 2 * rows, memory + 3 * rows};
    for (int64_t i = 0; i < rows; ++i) memory[i] = kNever;
  }
  return strips;
}

void only_one_label(const Problem& problem) {
  for (int64_t p = 0; p < problem.pixels; ++p) {
    if (problem.marginals) problem.marginals[p] = 1.0f;
    if (problem.argmax) problem.argmax[p] = 0;
    if (problem.confidence) problem.confidence[p] = 1.0f;
  }
}

}  // namespace

void solve(const Problem& problem, const Kernel* kernels, int count, int iterations,
           Workspace& workspace, Team& team) {
  if (problem.labels == 1) return only_one_label(problem);
  if (iterations == 0) count = 0;
  workspace.need_kernels(count);
  MeanField field{problem, team};
  for (int i = 0; i < count; ++i) field.folded &= potts_weight(kernels[i], problem.labels) >= 0;
  field.width = row_width(problem.labels);
  if (field.folded && row_width(problem.labels - 1) < field.width) {
    field.channels = Channels::differences;
    field.width = row_width(problem.labels - 1);
  }
  field.vectors.lay_out(field.width);
  field.order = tile_order(problem, workspace);

  field.strips = make_strips(field, workspace);
  if (team.size() > 1)
    field.marginals = workspace.marginals.reserve<float>(problem.pixels * field.width);
  const int64_t compat_size = int64_t{problem.labels} * field.width;
  Message* messages = workspace.messages.reserve<Message>(count);
  float* compat = workspace.compat.reserve<float>(compat_size * count);
  for (int i = 0; i < count; ++i) {
    const float weight = field.folded ? potts_weight(kernels[i], problem.labels) : 1.0f;
    if (weight == 0) continue;
    const int corners = kernels[i].dimensions + 1;
    const float alpha = 1.0f / (1.0f + 1.0f / static_cast<float>(1 << (corners - 1)));
    Message message{&workspace.kernels[i], nullptr, false, kernels[i].normalization, 0};
    message.strength = __builtin_sqrtf(alpha * weight);
    message.matrix = static_cast<int>(kernels[i].compat.size()) != problem.labels;
    message.compat =
        spread_compat(kernels[i], problem.labels, field.width, compat + i * compat_size);
    build(problem, kernels[i], i, field.order, message.strength, field.width, *message.memory,
          team);
    messages[field.message_count++] = message;
  }
  field.messages = messages;
  if (problem.unary)
    load_unary(workspace, field);
  else
    load_labels(workspace, field);
  field.run(iterations);
}

}  // namespace WEAKTR_ISA
}  // namespace weaktr
