// Solves a mixed batch with the code for GPUs; the exit status says whether all is well.
//
//   emulated:  g++ -std=c++17 -O1 -fsanitize=thread -ffp-contract=off -Icsrc -Itests/native
//              tests/native/sanitizers/check_blocks.cpp tests/native/emulation/emulation.cpp
//              -pthread Two blocks at a time, each on several of the CPU's threads: ThreadSanitizer
//              reports what would be a race on a GPU (test_no_races.py).
//   on a GPU:  nvcc -std=c++17 -O3 -arch=native -fmad=false -DWEAKTR_WITH_CUDA -Icsrc
//              -Itests/native tests/native/sanitizers/check_blocks.cpp
//              tests/native/emulation/emulation.cpp csrc/dense_crf/cuda/launch.cu
//              Compares with the emulation, and two runs with each other. Small, and without torch,
//              so that it runs under compute-sanitizer (bench/gpu.sh).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>

#include "emulation/emulation.hpp"
#if defined(WEAKTR_WITH_CUDA)
#include <cuda_runtime.h>

#include "dense_crf/cuda/launch.hpp"
#endif

namespace {

using weaktr::Kernel;
using weaktr::Normalization;
using weaktr::Problem;

constexpr int kIterations = 3;

// Inputs and marginals of one image.
struct Image {
  std::vector<uint8_t> colours, label_map;
  std::vector<float> unary, table, marginals;
  Problem problem;
};

Kernel kernel(const std::vector<float>& deviations, int labels, bool matrix, Normalization where) {
  Kernel kernel;
  kernel.dimensions = static_cast<int>(deviations.size());
  std::copy(deviations.begin(), deviations.end(), kernel.deviations);
  kernel.normalization = where;
  kernel.compat.assign(matrix ? labels * labels : labels,
                       where == Normalization::none ? -0.1f : -2);
  for (int i = 0; matrix && i < labels; ++i) kernel.compat[i * labels + i] *= 2;
  return kernel;
}

// `smooth`: few different colours, so that many pixels share a vertex. `labelled`: labels and a
// table instead of unary.
Image image(int height, int width, int labels, bool smooth, bool labelled, uint32_t seed) {
  std::mt19937 random(seed);
  Image image;
  const int pixels = height * width;
  image.colours.resize(3 * pixels);
  for (uint8_t& colour : image.colours) colour = smooth ? 100 + random() % 3 : random() % 256;
  for (int i = 0; i < (labelled ? 0 : labels * pixels); ++i)
    image.unary.push_back(static_cast<float>(random() % 1000) / 300);
  for (int i = 0; i < (labelled ? pixels : 0); ++i)
    image.label_map.push_back(static_cast<uint8_t>(random() % labels));
  for (int i = 0; i < (labelled ? labels * labels : 0); ++i)
    image.table.push_back(i % (labels + 1) == 0 ? 0.4f : 1.6f);
  image.marginals.resize(labels * pixels);
  Problem& problem = image.problem;
  problem.pixels = pixels;
  problem.height = height;
  problem.width = width;
  problem.labels = labels;
  problem.table_rows = labelled ? labels : 0;
  return image;
}

std::vector<Image> mixed_batch() {
  std::vector<Image> images;
  images.push_back(image(17, 33, 5, false, false, 1));
  images.push_back(image(1, 1, 2, false, false, 2));
  images.push_back(image(40, 49, 3, true, true, 3));
  images.push_back(image(20, 19, 40, false, false, 4));
  const Normalization all[] = {Normalization::symmetric, Normalization::before,
                               Normalization::after, Normalization::none};
  for (size_t i = 0; i < images.size(); ++i) {
    Problem& problem = images[i].problem;
    problem.kernels = {kernel({3, 2}, problem.labels, i == 0, all[i % 4]),
                       kernel({30, 40, 8, 9, 7}, problem.labels, i == 2, all[(i + 1) % 4])};
  }
  return images;
}

using Solve = void (*)(std::vector<Image>&, weaktr::Schedule);

void emulate(std::vector<Image>& images, weaktr::Schedule schedule) {
  std::vector<Problem> problems;
  for (Image& image : images) {
    Problem problem = image.problem;
    problem.image = image.colours.data();
    problem.unary = image.unary.empty() ? nullptr : image.unary.data();
    problem.label_map = image.label_map.empty() ? nullptr : image.label_map.data();
    problem.table = image.table.empty() ? nullptr : image.table.data();
    problem.marginals = image.marginals.data();
    problems.push_back(problem);
  }
  weaktr::dense_crf_emulated(problems, kIterations, schedule);
}

#if defined(WEAKTR_WITH_CUDA)

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

// The device's memory of one run.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() {
    for (void* place : places_) cudaFree(place);
  }
  void* allocate(size_t bytes) {
    void* place = nullptr;
    check(cudaMalloc(&place, bytes));
    places_.push_back(place);
    return place;
  }
  template <class T>
  T* copy(const std::vector<T>& values) {
    if (values.empty()) return nullptr;
    T* const place = static_cast<T*>(allocate(values.size() * sizeof(T)));
    check(cudaMemcpy(place, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return place;
  }

 private:
  std::vector<void*> places_;
};

void solve_on_gpu(std::vector<Image>& images, weaktr::Schedule) {
  DeviceMemory memory;
  std::vector<Problem> problems;
  for (const Image& image : images) {
    Problem problem = image.problem;
    problem.image = memory.copy(image.colours);
    problem.unary = memory.copy(image.unary);
    problem.label_map = memory.copy(image.label_map);
    problem.table = memory.copy(image.table);
    problem.marginals =
        static_cast<float*>(memory.allocate(image.marginals.size() * sizeof(float)));
    problems.push_back(problem);
  }
  weaktr::dense_crf_cuda(problems, kIterations, nullptr,
                         [&](size_t bytes) { return memory.allocate(bytes); });
  for (size_t i = 0; i < images.size(); ++i)
    check(cudaMemcpy(images[i].marginals.data(), problems[i].marginals,
                     images[i].marginals.size() * sizeof(float), cudaMemcpyDeviceToHost));
}

constexpr Solve kSolve = solve_on_gpu;

#else

constexpr Solve kSolve = emulate;

#endif

std::vector<float> solved(Solve solve, weaktr::Schedule schedule) {
  std::vector<Image> images = mixed_batch();
  solve(images, schedule);
  std::vector<float> all;
  for (const Image& image : images)
    all.insert(all.end(), image.marginals.begin(), image.marginals.end());
  return all;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

// Whether the results are what they should be.
bool check_all() {
  const std::vector<float> expected = solved(emulate, {});
  const std::vector<float> once = solved(kSolve, {1, 3});
  const std::vector<float> again = solved(kSolve, {2, 2});
  const bool same = std::memcmp(once.data(), again.data(), once.size() * sizeof(float)) == 0;
  const float error = largest_difference(once, expected);
  std::printf("runs equal: %s, largest error: %.2g\n", same ? "yes" : "no", error);
  return same && error < 1e-5f;
}

}  // namespace

int main() {
  try {
    return check_all() ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
