// A batch on its way through a device: checks, memory, the order of programs. The host never waits:
// how many vertices there are is known to the device alone, so memory is laid out for the most that
// there can be, d + 1 per pixel (fewer where the lattice itself has fewer).
//
// A device (CUDA's, or the emulation's) has
//   launch(program, blocks)     runs a program of `mean_field.cuh`
//   upload(to, from, bytes)     copies from the host, which may forget `from` afterwards
//   fill(to, byte, bytes)
// and does all of this in order.
#pragma once

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "dense_crf/check.hpp"
#include "dense_crf/cuda/mean_field.cuh"

namespace weaktr {
namespace blocks {

// Bytes between the arrays of a workspace that nothing may write, besides what alignment leaves:
// none but in tests, as one allocation hides what is written past an array's end.
#if defined(WEAKTR_RED_ZONES)
constexpr size_t kRedZone = 256;
#else
constexpr size_t kRedZone = 0;
#endif

// Hands out parts of a workspace, aligned to 256 bytes. Starting at 0 it only counts.
class Arena {
 public:
  explicit Arena(uintptr_t base) : base_(base) {}
  template <class T>
  T* take(size_t count) {
    T* const place = reinterpret_cast<T*>(base_ + used_);
    const size_t end = used_ + count * sizeof(T);
    used_ = (end + 255) / 256 * 256 + kRedZone;
    if (kRedZone) gaps_.push_back({end, used_});
    return place;
  }
  size_t used() const { return used_; }
  // From where to where they are, from the base on; without red zones they are not noted.
  const std::vector<std::pair<size_t, size_t>>& gaps() const { return gaps_; }

 private:
  uintptr_t base_;
  size_t used_ = 0;
  std::vector<std::pair<size_t, size_t>> gaps_;
};

class Batch {
 public:
  // Throws std::invalid_argument, with the reason, for what the CUDA code does not take.
  Batch(const std::vector<Problem>& problems, int iterations, uint32_t multiprocessors);

  // Of the workspace: device memory aligned to 256 bytes, whatever it holds.
  size_t bytes() const { return bytes_; }

  // Whether the gaps between arrays, but those between what the host lays out, have kept a byte.
  bool gaps_are(uint8_t byte) const;

  template <class Device>
  void solve(Device& device, void* workspace);

 private:
  void add_image(const Problem& problem);
  void add_lattice(const Problem& problem, const Kernel& kernel, size_t number);
  size_t add_compat(const Problem& problem, const Kernel& kernel, float alpha);
  void pair_up(size_t first);
  void lay_out(uintptr_t workspace);
  void lay_out_lattice(Arena& arena, size_t number);
  std::vector<uint8_t> description() const;
  // Blocks that run at once, of a program that any number can run.
  template <class Program>
  uint32_t blocks_of() const {
    return multiprocessors_ * Program::kBlocksPerMultiprocessor;
  }
  // Launches it for the quads of all vertices.
  template <class Operation, class Device>
  void for_quads(Device& device, Round round, int step, bool backwards);

  template <class Device>
  void build(Device& device);
  template <class Device>
  void normalize(Device& device);
  template <class Device>
  void blur(Device& device, Round round);
  template <class Device>
  void pass(Device& device, int iteration);
  template <int Quads, class Device>
  void pass_of(Device& device, int iteration, int least, int most);

  int iterations_;
  uint32_t multiprocessors_;
  std::vector<ImageView> images_;  // those with the fewest labels first
  std::vector<LatticeView> lattices_;
  std::vector<Pair> pairs_;
  std::vector<uint32_t> image_tiles_{0}, lattice_tiles_{0};
  std::vector<float> compats_;          // different ones, one after the other
  std::vector<size_t> compat_offsets_;  // per lattice
  std::map<std::vector<float>, size_t> known_compats_;
  bool normalizes_ = false, mixes_[kMaxSteps] = {};  // anywhere; [step]
  int axes_ = 0, most_quads_ = 1;                    // at most
  uint64_t most_chunks_ = 0;
  // of the device
  BatchView view_ = {};
  Quad *compats_place_ = nullptr, *scratch_ = nullptr;
  uint8_t *workspace_ = nullptr, *tables_ = nullptr;
  size_t description_bytes_ = 0, tables_bytes_ = 0, bytes_ = 0;
  std::vector<std::pair<size_t, size_t>> gaps_;
};

// ---- what is asked

inline Batch::Batch(const std::vector<Problem>& problems, int iterations, uint32_t multiprocessors)
    : iterations_(iterations), multiprocessors_(multiprocessors) {
  check(iterations >= 0, "iterations: expected 0 or more, got " + std::to_string(iterations));
  std::vector<const Problem*> sorted;
  for (const Problem& problem : problems) sorted.push_back(&problem);
  std::stable_sort(sorted.begin(), sorted.end(), [](const Problem* first, const Problem* second) {
    return first->labels < second->labels;
  });
  for (const Problem* problem : sorted) add_image(*problem);
  if (lattices_.empty()) iterations_ = 0;
  check(std::max(image_tiles_.back(), lattice_tiles_.back()) < uint32_t{1} << 31,
        "problems: expected fewer than 2^31 tiles of 16 x 16 pixels; solve them in parts");
  lay_out(0);
}

inline void Batch::add_image(const Problem& problem) {
  check(problem.height > 0 && problem.width > 0,
        "image: CUDA takes images [H, W] with at least one pixel; use backend 'torch' for others");
  check(problem.labels >= 1 && problem.labels <= kMaxLabels,
        "labels: expected 1 to 255, got " + std::to_string(problem.labels));
  check((problem.unary != nullptr) != (problem.label_map != nullptr && problem.table != nullptr),
        "unary: expected either unary or labels with a table");
  check(problem.unary || problem.table_rows > 0, "table: expected at least one row, got none");
  const int64_t across = (problem.width + kTileSide - 1) / kTileSide;
  const int64_t tiles = across * ((problem.height + kTileSide - 1) / kTileSide);
  check(tiles < (int64_t{1} << 31) / kMaxEntries,
        "image: expected at most 350 million pixels, got " + std::to_string(problem.pixels));
  ImageView image = {};
  image.height = static_cast<int>(problem.height);
  image.width = static_cast<int>(problem.width);
  image.labels = problem.labels;
  image.quads = (problem.labels + 3) / 4;
  image.tiles_across = static_cast<int>(across);
  image.first_pair = static_cast<int>(pairs_.size());
  image.colours = problem.image;
  image.unary = problem.unary;
  image.label_map = problem.label_map;
  image.table = problem.table;
  image.table_rows = problem.table_rows;
  image.marginals = problem.marginals;
  image.argmax = problem.argmax;
  image.confidence = problem.confidence;
  for (size_t i = 0; i < problem.kernels.size(); ++i) {
    add_lattice(problem, problem.kernels[i], i);
    lattice_tiles_.push_back(lattice_tiles_.back() + static_cast<uint32_t>(tiles));
    pair_up(image.first_pair);
  }
  image.pairs = static_cast<int>(pairs_.size()) - image.first_pair;
  images_.push_back(image);
  image_tiles_.push_back(image_tiles_.back() + static_cast<uint32_t>(tiles));
  most_quads_ = std::max(most_quads_, image.quads);
}

// Puts the last lattice beside one of the other kind, if its image has such a one left.
inline void Batch::pair_up(size_t first) {
  const int number = static_cast<int>(lattices_.size()) - 1;
  const auto member = lattices_.back().dimensions == 2 ? &Pair::position : &Pair::colour;
  while (first < pairs_.size() && pairs_[first].*member >= 0) ++first;
  if (first == pairs_.size()) pairs_.push_back({-1, -1});
  pairs_[first].*member = number;
}

// Scales and keys of a kernel. Throws std::invalid_argument where they do not fit.
template <int D>
void lay_out_keys(const Problem& problem, const Kernel& kernel, size_t number,
                  LatticeView& lattice) {
  float low[D] = {}, high[D];
  for (int i = 0; i < D; ++i) {
    lattice.deviations[i] = kernel.deviations[i];
    lattice.scales[i] = position_scale<D>(i);
    const int64_t last = i == 0 ? problem.width - 1 : i == 1 ? problem.height - 1 : 255;
    high[i] = static_cast<float>(last) / kernel.deviations[i] * lattice.scales[i];
  }
  check(make_packing<D>(low, high, lattice.packing) && lattice.packing.bits <= kMaxKeyBits,
        "kernel " + std::to_string(number) +
            ": the features spread too wide for CUDA's lattice (2^22 cells or 63 bits keys); use "
            "larger standard deviations (sxy, srgb) or a smaller image");
}

inline void Batch::add_lattice(const Problem& problem, const Kernel& kernel, size_t number) {
  check(!kernel.features, "kernel " + std::to_string(number) +
                              ": CUDA takes kernels of an image's pixels and colours; use backend "
                              "'torch' for features");
  check_kernel(problem, kernel, number);
  LatticeView lattice = {};
  lattice.image = static_cast<int>(images_.size());
  lattice.dimensions = kernel.dimensions;
  lattice.quads = (problem.labels + 3) / 4;
  lattice.mixes = problem.labels > 1 && kernel.compat.size() > static_cast<size_t>(problem.labels);
  lattice.normalization = kernel.normalization;
  if (kernel.dimensions == 2)
    lay_out_keys<2>(problem, kernel, number, lattice);
  else
    lay_out_keys<5>(problem, kernel, number, lattice);
  const int64_t padded = (problem.height * problem.width + kPadding - 1) / kPadding * kPadding;
  int64_t vertices = padded * lattice.axes();
  if (lattice.packing.bits < 31) vertices = std::min(vertices, int64_t{1} << lattice.packing.bits);
  lattice.most_vertices = static_cast<int32_t>(vertices);
  lattice.slots = static_cast<uint32_t>(vertices + vertices / 3 + 1);
  compat_offsets_.push_back(add_compat(problem, kernel, lattice.alpha()));
  lattices_.push_back(lattice);
  normalizes_ |= kernel.normalization != Normalization::none;
  mixes_[lattice.axes()] |= lattice.mixes;
  axes_ = std::max(axes_, lattice.axes());
  most_chunks_ += (static_cast<uint64_t>(vertices) * lattice.quads + kChunk - 1) / kChunk;
}

// Its place among the different ones, filled up with zeros to whole quads.
inline size_t Batch::add_compat(const Problem& problem, const Kernel& kernel, float alpha) {
  const size_t labels = problem.labels, padded = (labels + 3) / 4 * 4;
  const size_t rows = kernel.compat.size() / labels;
  std::vector<float> compat((rows > 1 ? padded : 1) * padded);
  for (size_t row = 0; row < rows; ++row)
    for (size_t i = 0; i < labels; ++i)
      compat[row * padded + i] = alpha * kernel.compat[row * labels + i];
  const auto known = known_compats_.emplace(compat, compats_.size() / 4);
  if (known.second) compats_.insert(compats_.end(), compat.begin(), compat.end());
  return known.first->second;
}

// ---- memory

inline void Batch::lay_out(uintptr_t workspace) {
  Arena arena(workspace);
  workspace_ = arena.take<uint8_t>(0);
  view_.image_count = static_cast<int>(images_.size());
  view_.lattice_count = static_cast<int>(lattices_.size());
  view_.images = arena.take<ImageView>(images_.size());
  view_.lattices = arena.take<LatticeView>(lattices_.size());
  view_.pairs = arena.take<Pair>(pairs_.size());
  view_.image_tiles = arena.take<uint32_t>(image_tiles_.size());
  view_.lattice_tiles = arena.take<uint32_t>(lattice_tiles_.size());
  compats_place_ = arena.take<Quad>(compats_.size() / 4);
  description_bytes_ = arena.used();

  tables_ = arena.take<uint8_t>(0);
  for (LatticeView& lattice : lattices_) {
    lattice.keys = arena.take<uint64_t>(lattice.slots);
    lattice.owners = arena.take<uint32_t>(lattice.slots);
  }
  tables_bytes_ = arena.used() - description_bytes_;
  for (size_t i = 0; i < lattices_.size(); ++i) lay_out_lattice(arena, i);
  view_.chunks = arena.take<uint32_t>(2 * kMaxSteps * (lattices_.size() + 1));
  scratch_ =
      arena.take<Quad>(most_quads_ > 8 ? size_t{blocks_of<Pass<0>>()} * most_quads_ * kThreads : 0);
  bytes_ = arena.used();
  gaps_ = arena.gaps();
}

inline bool Batch::gaps_are(uint8_t byte) const {
  for (const auto& [begin, end] : gaps_)
    if (begin >= description_bytes_ + tables_bytes_ &&
        !std::all_of(workspace_ + begin, workspace_ + end, [&](uint8_t b) { return b == byte; }))
      return false;
  return true;
}

inline void Batch::lay_out_lattice(Arena& arena, size_t number) {
  LatticeView& lattice = lattices_[number];
  const size_t tiles = lattice_tiles_[number + 1] - lattice_tiles_[number];
  const size_t entries = tiles * lattice.entries();
  const size_t vertices = lattice.most_vertices;
  lattice.corner_weights = arena.take<float>(entries);
  lattice.corner_runs = arena.take<uint32_t>(tiles * kThreads * lattice.words());
  lattice.ordered_entries = arena.take<uint32_t>(tiles * kThreads * lattice.words());
  lattice.parts = arena.take<Part>(tiles * kThreads);
  lattice.run_vertices = arena.take<uint32_t>(entries);
  lattice.arrivals = arena.take<uint32_t>(entries);
  lattice.run_sums = arena.take<Quad>(entries * lattice.quads);
  lattice.tile_runs = arena.take<uint16_t>(tiles);
  lattice.lists = arena.take<RunList>(vertices);
  lattice.listed = arena.take<uint32_t>(1);
  lattice.arrived = arena.take<uint32_t>(entries);
  lattice.listed_runs = arena.take<uint32_t>(entries);
  lattice.tile_vertices = arena.take<uint32_t>(tiles + 1);
  lattice.neighbours = arena.take<Neighbours>(lattice.axes() * vertices);
  for (Global<Quad>& values : lattice.values) values = arena.take<Quad>(vertices * lattice.quads);
  lattice.compat = compats_place_ + compat_offsets_[number];
}

// What goes to the beginning of the workspace.
inline std::vector<uint8_t> Batch::description() const {
  std::vector<uint8_t> bytes(description_bytes_);
  const auto put = [&](const void* place, const auto& values) {
    const uint8_t* const from = reinterpret_cast<const uint8_t*>(values.data());
    const size_t size = values.size() * sizeof(values[0]);
    std::copy_n(from, size, bytes.data() + (static_cast<const uint8_t*>(place) - workspace_));
  };
  put(view_.images, images_);
  put(view_.lattices, lattices_);
  put(view_.pairs, pairs_);
  put(view_.image_tiles, image_tiles_);
  put(view_.lattice_tiles, lattice_tiles_);
  put(compats_place_, compats_);
  return bytes;
}

// ---- the order of programs

template <class Device>
void Batch::solve(Device& device, void* workspace) {
  if (images_.empty()) return;
  lay_out(reinterpret_cast<uintptr_t>(workspace));
  const std::vector<uint8_t> bytes = description();
  device.upload(workspace, bytes.data(), bytes.size());
  if (!lattices_.empty()) {
    build(device);
    normalize(device);
  }
  for (int iteration = 0; iteration < iterations_; ++iteration) {
    pass(device, iteration);
    blur(device, Round{false, iteration});
  }
  pass(device, iterations_);
}

template <class Device>
void Batch::build(Device& device) {
  const uint32_t tiles = lattice_tiles_.back();
  device.fill(tables_, 0xff, tables_bytes_);
  device.launch(BuildTiles{view_}, tiles);
  device.launch(CountVertices{view_}, tiles);
  device.launch(AddUpVertices{view_}, static_cast<uint32_t>(lattices_.size()));
  device.launch(NumberVertices{view_}, tiles);
  device.launch(LinkVertices{view_}, tiles);
  device.launch(PlaceLists{view_}, tiles);
  device.launch(ForEachRun<FillLists>{view_}, tiles);
  device.launch(ForEachRun<SortLists>{view_}, tiles);
  device.launch(PlanChunks{view_}, 1);
}

template <class Device>
void Batch::blur(Device& device, Round round) {
  for_quads<Pull>(device, round, 0, false);
  for (int step = 0; step <= axes_; ++step) {
    const bool backwards = step % 2 == 0;
    if (step < axes_) for_quads<Blur>(device, round, step, backwards);
    if (!round.ones && mixes_[step]) for_quads<Mix>(device, round, step, backwards);
  }
}

template <class Operation, class Device>
void Batch::for_quads(Device& device, Round round, int step, bool backwards) {
  using Program = ForEachQuad<Operation>;
  const uint64_t blocks = std::min<uint64_t>(blocks_of<Program>(), most_chunks_);
  device.launch(Program{view_, round, step, backwards}, static_cast<uint32_t>(blocks));
}

template <class Device>
void Batch::normalize(Device& device) {
  if (!normalizes_) return;
  device.launch(SplatOnes{view_}, lattice_tiles_.back());
  blur(device, Round{true, 0});
  device.launch(Normalize{view_}, lattice_tiles_.back());
}

template <class Device>
void Batch::pass(Device& device, int iteration) {
  pass_of<0>(device, iteration, 9, kMaxQuads);
  pass_of<8>(device, iteration, 7, 8);
  pass_of<6>(device, iteration, 5, 6);
  pass_of<4>(device, iteration, 3, 4);
  pass_of<2>(device, iteration, 2, 2);
  pass_of<1>(device, iteration, 1, 1);
}

// Of the images with `least` to `most` quads of labels, which lie beside each other.
template <int Quads, class Device>
void Batch::pass_of(Device& device, int iteration, int least, int most) {
  const auto images_below = [&](int quads) {
    const auto has_fewer = [](const ImageView& image, int than) { return image.quads < than; };
    return std::lower_bound(images_.begin(), images_.end(), quads, has_fewer) - images_.begin();
  };
  const uint32_t first = image_tiles_[images_below(least)];
  const uint32_t tiles = image_tiles_[images_below(most + 1)] - first;
  if (!tiles) return;
  const bool last = iteration == iterations_;
  device.launch(Pass<Quads>{view_, iteration, last, scratch_, most_quads_, first, tiles},
                Quads ? tiles : std::min(tiles, blocks_of<Pass<Quads>>()));
}

}  // namespace blocks
}  // namespace weaktr
