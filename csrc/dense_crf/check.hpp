// What a problem of the dense CRF has to be.
#pragma once

#include <cmath>
#include <string>

#include "common/check.hpp"
#include "dense_crf/problem.hpp"

namespace weaktr {

// The number of values that are NaN or infinite.
inline int64_t count_not_finite(const float* values, int64_t count) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) wrong += !std::isfinite(values[i]);
  return wrong;
}

inline void check_finite(const char* name, const float* values, int64_t count) {
  const int64_t wrong = count_not_finite(values, count);
  if (wrong)
    refuse(std::string(name) + ": expected finite numbers, got NaN or infinity in " +
           std::to_string(wrong) + " of " + std::to_string(count) + " places");
}

inline void check_kernel(const Problem& problem, const Kernel& kernel, size_t number) {
  const std::string name = "kernel " + std::to_string(number);
  const bool grid = !kernel.features;
  check(kernel.dimensions >= 1 && kernel.dimensions <= kMaxDimensions,
        name + ": expected 1 to 8 feature dimensions, got " + std::to_string(kernel.dimensions));
  check(!grid || kernel.dimensions == 2 || kernel.dimensions == 5,
        name + ": expected 2 (x, y) or 5 (x, y, R, G, B) deviations, got " +
            std::to_string(kernel.dimensions));
  check(!grid || problem.height > 0,
        name + ": deviations of pixels need a 2-D image; give features for other shapes");
  check(!grid || kernel.dimensions == 2 || problem.image, name + ": five deviations need an image");
  for (int i = 0; grid && i < kernel.dimensions; ++i)
    check(std::isfinite(kernel.deviations[i]) && kernel.deviations[i] > 0,
          name + ": expected positive deviations, got " + std::to_string(kernel.deviations[i]));
  if (!grid) check_finite("features", kernel.features, kernel.dimensions * problem.pixels);
  const size_t labels = static_cast<size_t>(problem.labels);
  check(kernel.compat.size() == labels || kernel.compat.size() == labels * labels,
        name + ": expected compat [" + std::to_string(labels) + "] or square, got " +
            std::to_string(kernel.compat.size()) + " numbers");
  check_finite("compat", kernel.compat.data(), static_cast<int64_t>(kernel.compat.size()));
}

inline void check_problem(const Problem& problem) {
  check(problem.pixels > 0, "image: expected at least one pixel, got none");
  check(problem.pixels < int64_t{1} << 31,
        "image: expected fewer than 2^31 pixels, got " + std::to_string(problem.pixels));
  check(problem.labels >= 1 && problem.labels <= kMaxLabels,
        "labels: expected 1 to 255, got " + std::to_string(problem.labels));
  check((problem.unary != nullptr) != (problem.label_map != nullptr && problem.table != nullptr),
        "unary: expected either unary or labels with a table");
  if (problem.unary) {
    check_finite("unary", problem.unary, problem.pixels * problem.labels);
  } else {
    check_finite("table", problem.table, int64_t{problem.table_rows} * problem.labels);
    for (int64_t p = 0; p < problem.pixels; ++p)
      if (problem.label_map[p] >= problem.table_rows)
        refuse("labels: expected values below " + std::to_string(problem.table_rows) + ", got " +
               std::to_string(problem.label_map[p]));
  }
  for (size_t i = 0; i < problem.kernels.size(); ++i) check_kernel(problem, problem.kernels[i], i);
}

}  // namespace weaktr
