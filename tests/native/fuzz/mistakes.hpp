// Calls with one mistake in them, each of which has to be refused by name.
#pragma once

#include "random_case.hpp"

namespace fuzz {

typedef bool (*Spoil)(Random&, Case&,
                      Image&);  // false: nothing here can be spoilt so; all is as it was

struct Mistake {
  const char* name;  // what is wrong
  Spoil spoil;
};

inline float draw_not_finite(Random& random) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  return random.one_of({std::numeric_limits<float>::quiet_NaN(), infinity, -infinity});
}

inline bool spoil_one(Random& random, std::vector<float>& values) {
  if (values.empty()) return false;
  values[static_cast<size_t>(random.below(static_cast<int64_t>(values.size())))] =
      draw_not_finite(random);
  return true;
}

inline Kernel* any_kernel(Random& random, Image& image) {
  std::vector<Kernel>& kernels = image.problem.kernels;
  if (kernels.empty()) return nullptr;
  return &kernels[static_cast<size_t>(random.below(static_cast<int64_t>(kernels.size())))];
}

inline bool spoil_energies(Random& random, Case&, Image& image) {
  return spoil_one(random, image.unary) || spoil_one(random, image.table);
}

inline bool spoil_label_map(Random& random, Case&, Image& image) {
  if (image.label_map.empty() || image.problem.table_rows > 255) return false;
  const auto at = static_cast<size_t>(random.below(image.problem.pixels));
  image.label_map[at] = static_cast<uint8_t>(random.whole(image.problem.table_rows, 255));
  return true;
}

inline bool spoil_label_count(Random& random, Case&, Image& image) {
  image.problem.labels = random.one_of({-1, 0, 256, 1 << 20, std::numeric_limits<int>::max()});
  return true;
}

inline bool spoil_pixel_count(Random& random, Case&, Image& image) {
  image.problem.pixels =
      random.one_of({int64_t{-1}, int64_t{0}, int64_t{1} << 31, int64_t{1} << 62});
  return true;
}

inline bool spoil_sources(Random& random, Case&, Image& image) {
  Problem& problem = image.problem;
  if (random.once_in(2)) {
    problem.unary = nullptr;
    problem.label_map = nullptr;
    return true;
  }
  if (!problem.unary) return false;
  image.label_map.resize(static_cast<size_t>(problem.pixels));
  image.table.resize(static_cast<size_t>(problem.labels));
  problem.table_rows = 1;
  problem.label_map = image.label_map.data();
  problem.table = image.table.data();
  return true;
}

inline bool spoil_features(Random& random, Case&, Image& image) {
  return !image.features.empty() && spoil_one(random, image.features.front());
}

inline bool spoil_deviation(Random& random, Case&, Image& image) {
  Kernel* kernel = any_kernel(random, image);
  if (!kernel || kernel->features) return false;
  float& deviation = kernel->deviations[random.below(kernel->dimensions)];
  deviation = random.once_in(2) ? draw_not_finite(random) : random.one_of({0.0f, -0.0f, -3.0f});
  return true;
}

inline bool spoil_dimensions(Random& random, Case&, Image& image) {
  Kernel* kernel = any_kernel(random, image);
  if (!kernel) return false;
  kernel->dimensions =
      kernel->features ? random.one_of({-1, 0, 9, 99}) : random.one_of({0, 1, 3, 4, 6});
  return true;
}

inline bool spoil_compat(Random& random, Case&, Image& image) {
  Kernel* kernel = any_kernel(random, image);
  if (!kernel) return false;
  if (random.once_in(2)) return spoil_one(random, kernel->compat);
  const size_t labels = static_cast<size_t>(image.problem.labels);
  kernel->compat.resize(random.one_of({size_t{0}, labels + 1, labels * labels + 1}));
  return true;
}

inline bool spoil_grid(Random&, Case&, Image& image) {
  bool needed = false;
  for (const Kernel& kernel : image.problem.kernels) needed |= !kernel.features;
  if (needed) image.problem.height = image.problem.width = 0;
  return needed;
}

inline bool spoil_colours(Random&, Case&, Image& image) {
  if (!image.problem.image) return false;
  image.problem.image = nullptr;
  return true;
}

inline bool spoil_numbers(Random& random, Case& spoilt, Image&) {
  if (random.once_in(2))
    spoilt.iterations = static_cast<int>(-random.size(1, 1 << 30));
  else
    spoilt.threads = static_cast<int>(-random.below(1 << 30));
  return true;
}

inline bool spoil_isa(Random& random, Case& spoilt, Image&) {
  spoilt.isa = random.one_of({"", "AVX2", "avx", "best", "auto ", "scalar\n"});
  return true;
}

constexpr Mistake kMistakes[] = {
    {"energies that are not finite", spoil_energies},
    {"a label beyond the table", spoil_label_map},
    {"a label count out of range", spoil_label_count},
    {"a pixel count out of range", spoil_pixel_count},
    {"no energies, or two kinds of them", spoil_sources},
    {"features that are not finite", spoil_features},
    {"a deviation that is not a positive number", spoil_deviation},
    {"dimensions out of range", spoil_dimensions},
    {"compat of the wrong size or not finite", spoil_compat},
    {"deviations without a grid", spoil_grid},
    {"deviations of colours without an image", spoil_colours},
    {"a negative number of iterations or threads", spoil_numbers},
    {"an unknown instruction set", spoil_isa},
};

// Puts one mistake into one image of a good case.
inline void make_mistake(Random& random, Case& spoilt) {
  for (;;) {
    const Mistake mistake = random.one_of(kMistakes);
    const auto images = static_cast<int64_t>(spoilt.images.size());
    Image& image = spoilt.images[static_cast<size_t>(random.below(images))];
    if (!mistake.spoil(random, spoilt, image)) continue;
    spoilt.mistake = mistake.name;
    return;
  }
}

}  // namespace fuzz
