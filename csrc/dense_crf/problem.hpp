// Dense CRF: mean-field inference with Gaussian edge potentials over all pairs of pixels.
//
//   Q <- softmax(-U);   repeat:  Q <- softmax(-U - sum over kernels of compat(K~ Q))
//
// with K~ the Gaussian of a kernel's features, filtered on the permutohedral lattice and normalised
// by n = K 1. U: energies in nats. N pixels (of an image, a volume, a signal), L labels.
//
// Source: Kraehenbuehl, Koltun: "Efficient Inference in Fully Connected CRFs with Gaussian Edge
// Potentials", NeurIPS 2011, algorithm 1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dense_crf/permutohedral.hpp"

namespace weaktr {

constexpr int kMaxLabels = 255;

// Where 1/n goes: 1/sqrt(n) on both sides of K, 1/n on one, nowhere.
enum class Normalization { symmetric, before, after, none };

// One Gaussian edge potential.
struct Kernel {
  int dimensions = 0;               // d: 2 and 5 on the pixel grid, 1 ... 8 with features
  float deviations[5] = {};         // sx, sy in pixels, sr, sg, sb in grey levels
  const float* features = nullptr;  // [d, N], divided by the deviations; nullptr: pixel grid
  std::vector<float> compat;        // [L] or [L, L]; z -= compat(K~ Q), so Potts w is -w everywhere
  Normalization normalization = Normalization::symmetric;
};

// One image: what is given and where the results go. Everything is C-contiguous.
struct Problem {
  int64_t pixels = 0;                  // N
  int64_t height = 0, width = 0;       // of a 2-D grid, N = height * width; else 0
  int labels = 0;                      // L
  const uint8_t* image = nullptr;      // [height, width, 3], for kernels with colours
  const float* unary = nullptr;        // [L, N], or:
  const uint8_t* label_map = nullptr;  // [N] with
  const float* table = nullptr;        // [V, L], the unary of pixel p is table[label_map[p]]
  int table_rows = 0;                  // V
  std::vector<Kernel> kernels;
  float* marginals = nullptr;   // [L, N] or nullptr
  uint8_t* argmax = nullptr;    // [N] or nullptr; of equal marginals the first label wins
  float* confidence = nullptr;  // [N] or nullptr, the largest marginal
};

}  // namespace weaktr
