// One call of `dense_crf_cpu` and what has to hold of its results, whatever went in.
#pragma once

#include <algorithm>
#include <new>
#include <sstream>
#include <stdexcept>

#include "dense_crf/cpu/driver.hpp"
#include "random_case.hpp"

namespace fuzz {

constexpr double kSumTolerance = 1e-4;     // of the marginals of a pixel
constexpr double kLevelsTolerance = 1e-3;  // between instruction sets, where messages are moderate
constexpr double kModerateStrength = 5;    // sum of a case's largest compatibilities
constexpr double kCertainlyFits = 4096;    // lattice cells: 8 dimensions of these fit 128-bit keys

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The message is put together from `parts` only where it is needed.
template <class... Parts>
void expect(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw Failure(message.str());
}

// ---- a call -------------------------------------------------------------------------------------

// Which arrays a call writes, as a sum of these.
enum Outputs { kMarginals = 1, kArgmax = 2, kConfidence = 4, kEverything = 7 };

// What a call wrote for one image; full of NaN and 255 before.
struct Written {
  std::vector<float> marginals, confidence;
  std::vector<uint8_t> argmax;
};

struct Results {
  std::vector<Written> images;
  std::string refusal;         // what() of std::invalid_argument, or empty
  bool out_of_memory = false;  // std::bad_alloc

  bool solved() const { return refusal.empty() && !out_of_memory; }
};

inline Written make_room(Problem& problem, int outputs) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const auto pixels = static_cast<size_t>(problem.pixels);
  Written written;
  if (outputs & kMarginals)
    written.marginals.assign(pixels * static_cast<size_t>(problem.labels), nan);
  if (outputs & kArgmax) written.argmax.assign(pixels, 255);
  if (outputs & kConfidence) written.confidence.assign(pixels, nan);
  problem.marginals = outputs & kMarginals ? written.marginals.data() : nullptr;
  problem.argmax = outputs & kArgmax ? written.argmax.data() : nullptr;
  problem.confidence = outputs & kConfidence ? written.confidence.data() : nullptr;
  return written;
}

// Solves the case. Denormal numbers, which the call flushes to zero, must live on after it.
inline Results call(const Case& given, int outputs, int threads, const std::string& isa) {
  std::vector<Problem> problems;
  Results results;
  for (const Image& image : given.images) {
    problems.push_back(image.problem);
    if (given.mistake.empty()) results.images.push_back(make_room(problems.back(), outputs));
  }
  try {
    weaktr::dense_crf_cpu(problems, given.iterations, threads, isa);
  } catch (const std::invalid_argument& error) {
    results.refusal = error.what();
    expect(!results.refusal.empty(), "a refusal without a message");
  } catch (const std::bad_alloc&) {
    results.out_of_memory = true;
  }
  const volatile float denormal = 1e-40f;
  expect(denormal * 1.0f > 0, "denormal numbers are still flushed to zero after the call");
  return results;
}

// ---- what has to hold ---------------------------------------------------------------------------

inline void check_pixel(const Problem& problem, const Written& written, int64_t pixel) {
  double sum = 0;
  int best = 0;
  auto marginal = [&](int label) {
    return written.marginals[static_cast<size_t>(label * problem.pixels + pixel)];
  };
  for (int label = 0; label < problem.labels; ++label) {
    const float value = marginal(label);
    expect(std::isfinite(value) && value >= 0, "pixel ", pixel, ": marginal ", value, " of label ",
           label);
    if (value > marginal(best)) best = label;
    sum += value;
  }
  const int argmax = written.argmax[static_cast<size_t>(pixel)];
  const float confidence = written.confidence[static_cast<size_t>(pixel)];
  expect(std::abs(sum - 1) <= kSumTolerance, "pixel ", pixel, ": marginals sum to ", sum);
  expect(argmax == best, "pixel ", pixel, ": argmax is ", argmax, ", expected ", best);
  expect(confidence == marginal(best), "pixel ", pixel, ": confidence ", confidence,
         " is not the largest marginal ", marginal(best));
}

inline void check_marginals(const Case& given, const Results& results) {
  for (size_t i = 0; i < given.images.size(); ++i) {
    const Problem& problem = given.images[i].problem;
    for (int64_t pixel = 0; pixel < problem.pixels; ++pixel)
      check_pixel(problem, results.images[i], pixel);
  }
}

// Bit for bit, as far as `other` was asked for.
inline void check_same(const Results& results, const Results& other, const std::string& change) {
  if (results.out_of_memory || other.out_of_memory) return;
  expect(results.refusal.empty() == other.refusal.empty(), "refused or not depends on ", change,
         ": ", results.refusal, other.refusal);
  for (size_t i = 0; other.solved() && i < other.images.size(); ++i) {
    const Written &a = results.images[i], &b = other.images[i];
    expect(b.marginals.empty() || a.marginals == b.marginals, "marginals depend on ", change);
    expect(b.argmax.empty() || a.argmax == b.argmax, "argmax depends on ", change);
    expect(b.confidence.empty() || a.confidence == b.confidence, "confidence depends on ", change);
  }
}

// Sum over the dimensions of how far a kernel's features reach, in standard deviations and from 0.
inline double reach(const Problem& problem, const Kernel& kernel) {
  double total = 0;
  const auto height = static_cast<double>(problem.height),
             width = static_cast<double>(problem.width);
  const double sides[] = {width, height, 256, 256, 256};
  for (int i = 0; i < kernel.dimensions; ++i) {
    if (!kernel.features) {
      total += sides[i] / kernel.deviations[i];
      continue;
    }
    const float* feature = kernel.features + i * problem.pixels;
    const auto ends = std::minmax_element(feature, feature + problem.pixels);
    total += std::max(*ends.second, 0.0f) - std::min(*ends.first, 0.0f);
  }
  return total;
}

// A good case is refused only for lattices that may be too large to be numbered.
inline void check_refusal(const Case& given, const std::string& refusal) {
  bool fits = true;
  for (const Image& image : given.images)
    for (const Kernel& kernel : image.problem.kernels)
      fits &= 2 * (kernel.dimensions + 1) * reach(image.problem, kernel) < kCertainlyFits;
  expect(!fits, "refused: ", refusal);
}

// Whether small differences in rounding stay small through the iterations.
inline bool is_moderate(const Case& given) {
  for (const Image& image : given.images) {
    double strength = 0;
    for (const Kernel& kernel : image.problem.kernels) {
      if (kernel.normalization != Normalization::symmetric) return false;
      float largest = 0;
      for (const float value : kernel.compat) largest = std::max(largest, std::abs(value));
      const bool matrix = static_cast<int>(kernel.compat.size()) != image.problem.labels;
      strength += largest * static_cast<double>(matrix ? image.problem.labels : 1);
    }
    if (strength > kModerateStrength) return false;
  }
  return true;
}

inline void check_close(const Results& results, const Results& other, const std::string& isa) {
  for (size_t i = 0; other.solved() && i < other.images.size(); ++i) {
    const std::vector<float>&a = results.images[i].marginals, &b = other.images[i].marginals;
    for (size_t k = 0; k < a.size(); ++k)
      expect(std::abs(a[k] - b[k]) <= kLevelsTolerance, isa, " differs: ", b[k], ", not ", a[k]);
  }
}

}  // namespace fuzz
