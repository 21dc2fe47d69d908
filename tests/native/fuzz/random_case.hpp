// Random calls of `dense_crf_cpu`: what a caller may pass, and what only a mistaken one would.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "dense_crf/problem.hpp"
#include "random.hpp"

namespace fuzz {

using weaktr::Kernel;
using weaktr::Normalization;
using weaktr::Problem;

// One image with the memory that its pointers look into: each array on its own and exactly as long
// as it has to be, so that AddressSanitizer sees a step beyond its end.
struct Image {
  Problem problem;
  std::vector<uint8_t> pixels, label_map;
  std::vector<float> unary, table;
  std::vector<std::vector<float>> features;
};

// One call. `mistake` says what is wrong with it; empty: nothing is.
struct Case {
  std::vector<Image> images;
  int iterations = 0, threads = 1;
  std::string isa, mistake;
};

// How large the numbers of an array are, and how they are spread.
struct Values {
  enum class Spread { normal, constant, whole, ramp, steps } spread;
  double scale;
};

inline std::vector<float> draw_values(Random& random, int64_t count, Values values) {
  std::vector<float> drawn(static_cast<size_t>(count));
  const auto scale = static_cast<float>(values.scale);
  const float level = random.normal();
  for (int64_t i = 0; i < count; ++i) {
    float value = level;
    switch (values.spread) {
      case Values::Spread::normal:
        value = random.normal();
        break;
      case Values::Spread::constant:
        break;
      case Values::Spread::whole:
        value = std::floor(2 * random.normal());
        break;
      case Values::Spread::ramp:
        value = static_cast<float>(i) / static_cast<float>(count);
        break;
      case Values::Spread::steps:
        value = random.once_in(2) ? -1.0f : 1.0f;
        break;
    }
    drawn[static_cast<size_t>(i)] = value * scale;
  }
  return drawn;
}

inline Values::Spread draw_spread(Random& random) {
  using Spread = Values::Spread;
  return random.one_of({Spread::normal, Spread::normal, Spread::constant, Spread::whole,
                        Spread::ramp, Spread::steps});
}

// ---- shapes -------------------------------------------------------------------------------------

inline int draw_label_count(Random& random) {
  if (random.once_in(20)) return 1;
  if (random.once_in(8)) return static_cast<int>(random.whole(41, weaktr::kMaxLabels));
  return static_cast<int>(random.size(2, 40));
}

// Most images are small, one in some hundreds is larger than a tile, a block and a huge page.
inline int64_t most_pixels(Random& random, int labels) {
  if (random.once_in(400)) return 100000 / labels;
  const int64_t most = 10000 / labels;
  return most < 1500 ? most : 1500;
}

// [H, W] with all proportions; or, with height 0, the pixels of a signal or a volume.
inline void draw_shape(Random& random, Problem& problem) {
  const int64_t most = most_pixels(random, problem.labels);
  const int64_t along = random.size(1, most), across = random.size(1, most / along);
  problem.pixels = along * across;
  if (random.once_in(6)) return;
  const bool upright = random.once_in(2);
  problem.height = upright ? along : across;
  problem.width = upright ? across : along;
}

inline void draw_image(Random& random, Image& image) {
  image.pixels.resize(static_cast<size_t>(3 * image.problem.pixels));
  const int64_t range = random.one_of({1, 2, 16, 256});
  const auto lowest = static_cast<uint8_t>(random.below(257 - range));
  for (uint8_t& level : image.pixels) level = static_cast<uint8_t>(lowest + random.below(range));
  image.problem.image = image.pixels.data();
}

// ---- kernels ------------------------------------------------------------------------------------

inline void draw_compat(Random& random, int labels, Kernel& kernel) {
  const double strength =
      random.once_in(50) ? random.magnitude(1e2, 1e6) : random.magnitude(1e-3, 1e2);
  const auto weight = static_cast<float>(random.one_of({-1.0, -1.0, -1.0, 0.0, 1.0}) * strength);
  const Values values{draw_spread(random), strength};
  const int64_t form = random.below(4);
  if (form < 2) kernel.compat.assign(static_cast<size_t>(labels), weight);  // Potts
  if (form == 2) kernel.compat = draw_values(random, labels, values);
  if (form == 3) kernel.compat = draw_values(random, int64_t{labels} * labels, values);
}

// Standard deviations mostly of the picture's order of size.
inline float draw_deviation(Random& random) {
  if (random.once_in(4)) return static_cast<float>(random.magnitude(1e-4, 1e4));
  if (random.once_in(4)) return static_cast<float>(random.whole(1, 5));
  return static_cast<float>(random.magnitude(0.3, 100));
}

inline void draw_features(Random& random, Image& image, Kernel& kernel) {
  kernel.dimensions = static_cast<int>(random.whole(1, weaktr::kMaxDimensions));
  const double scale = random.once_in(4) ? random.magnitude(1e-4, 1e7) : random.magnitude(0.1, 30);
  std::vector<float> features;
  for (int i = 0; i < kernel.dimensions; ++i) {
    const Values values{draw_spread(random), scale};
    const std::vector<float> row = draw_values(random, image.problem.pixels, values);
    features.insert(features.end(), row.begin(), row.end());
  }
  features.shrink_to_fit();
  image.features.push_back(std::move(features));
  kernel.features = image.features.back().data();
}

inline void draw_kernel(Random& random, Image& image) {
  Kernel kernel;
  const bool grid = image.problem.height > 0;
  const int64_t kind = grid ? random.below(3) : 2;
  if (kind == 2) {
    draw_features(random, image, kernel);
  } else {
    kernel.dimensions = kind ? 5 : 2;
    for (int i = 0; i < kernel.dimensions; ++i) kernel.deviations[i] = draw_deviation(random);
    if (random.once_in(2)) kernel.deviations[1] = kernel.deviations[0];
    if (kind && !image.problem.image) draw_image(random, image);
  }
  draw_compat(random, image.problem.labels, kernel);
  kernel.normalization =
      random.one_of({Normalization::symmetric, Normalization::symmetric, Normalization::before,
                     Normalization::after, Normalization::none});
  image.problem.kernels.push_back(std::move(kernel));
}

// ---- energies -----------------------------------------------------------------------------------

inline double draw_energy_scale(Random& random) {
  if (random.once_in(100)) return random.magnitude(1e4, 2e37);
  return random.once_in(8) ? random.magnitude(1e-6, 1e4) : random.magnitude(0.1, 30);
}

inline void draw_energies(Random& random, Image& image) {
  Problem& problem = image.problem;
  const Values values{draw_spread(random), draw_energy_scale(random)};
  if (!random.once_in(3)) {
    image.unary = draw_values(random, problem.labels * problem.pixels, values);
    problem.unary = image.unary.data();
    return;
  }
  problem.table_rows =
      static_cast<int>(random.one_of({random.size(1, 256), int64_t{problem.labels}}));
  image.table = draw_values(random, int64_t{problem.table_rows} * problem.labels, values);
  image.label_map.resize(static_cast<size_t>(problem.pixels));
  for (uint8_t& value : image.label_map)
    value = static_cast<uint8_t>(random.below(problem.table_rows));
  problem.table = image.table.data();
  problem.label_map = image.label_map.data();
}

// ---- calls --------------------------------------------------------------------------------------

inline Image draw_problem(Random& random) {
  Image image;
  image.problem.labels = draw_label_count(random);
  draw_shape(random, image.problem);
  draw_energies(random, image);
  const int64_t kernels = random.one_of({0, 1, 1, 1, 2, 2, 2, 3, 4});
  image.features.reserve(static_cast<size_t>(kernels));  // so that pointers stay
  for (int64_t i = 0; i < kernels; ++i) draw_kernel(random, image);
  return image;
}

inline Case draw_case(Random& random, const std::vector<std::string>& levels) {
  Case drawn;
  const int64_t images = random.once_in(4) ? random.whole(2, 4) : 1;
  for (int64_t i = 0; i < images; ++i) drawn.images.push_back(draw_problem(random));
  drawn.iterations = static_cast<int>(random.below(5));
  drawn.threads = static_cast<int>(random.whole(1, 3));
  drawn.isa = levels[static_cast<size_t>(random.below(static_cast<int64_t>(levels.size())))];
  return drawn;
}

}  // namespace fuzz
