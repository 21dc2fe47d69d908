// attention: softmax attention of many maps and, where they are asked for, the statistics of
// head_stats, which cost next to nothing here.
//
//   A[i, j] = exp(q_i . k_j scale - lse_i)
//   out[i] = sum over j of A[i, j] v_j
//   class_rows[c, j] = A[c, N - P + j]
//   column_means[j] = 1/P sum over i of A[N - P + i, N - P + j]
//
// 64 queries at a time see all keys: [N, 64] scores are in memory, of a map no more.
//
// Source: arXiv 2304.01184, section 3.2 (the statistics).
#pragma once

#include <cstdint>
#include <string>

#include "common/query_sizes.hpp"

namespace weaktr {

// Vectors of the heads' width, numbers side by side; images, heads and tokens at any distance.
template <class Number>
struct HeadRows {
  Number* data = nullptr;
  int64_t image = 0, head = 0, token = 0;  // distances, in numbers
};

// B x H maps of N tokens: C class tokens at the front, P patches at the end.
template <class Number>
struct Attention {
  HeadRows<const Number> q, k, v;  // [B, H, N, d]
  HeadRows<Number> out;            // [B, H, N, d], the result
  float* lse = nullptr;            // [B, H, N], the result
  float* class_rows = nullptr;     // [B, H, C, P], the result
  float* column_sums = nullptr;    // [B, H, groups, P]: of each group of queries, from zero
  int64_t images = 0, heads = 0, tokens = 0, width = 0;  // B, H, N, d
  int64_t classes = 0, patches = 0;                      // C, P; 0 where there are no statistics
  float scale = 0;
};

// Queries of a group: a thread's piece of work, for which keys and values are packed once.
constexpr int64_t kGroupQueries = 4 * kQueries;

// Floats of work space that a thread needs.
template <class Number>
WEAKTR_INLINE int64_t attention_workspace(const Attention<Number>& maps) {
  const int64_t keys = blocks_of(kKeys, maps.tokens) * kKeys;
  return kQueries * (2 * maps.width + keys + 3) + 2 * keys * maps.width;
}

// Group `group` of map `map`, in code for one instruction set.
#define WEAKTR_ATTEND(isa, Number)                                                          \
  namespace isa {                                                                           \
  void attend(const Attention<Number>& maps, int64_t map, int64_t group, float* workspace); \
  }
WEAKTR_ATTEND(scalar, float)
WEAKTR_ATTEND(avx2, float)
WEAKTR_ATTEND(avx512, float)
WEAKTR_ATTEND(neon, float)
WEAKTR_ATTEND(avx512bf16, Bfloat16)
#undef WEAKTR_ATTEND

// Computes the results on `threads` threads; they do not depend on how many. column_means
// [B, H, P] may be null. `isa`: "auto" or one of `isa_levels`.
// Throws std::invalid_argument for an unknown `isa`, std::bad_alloc.
void attention_cpu(Attention<float> maps, float* column_means, int threads, const std::string& isa);
// The same in bfloat16, with sums in float32. Throws std::invalid_argument where `has_bfloat16` is
// false.
void attention_cpu(Attention<Bfloat16> maps, float* column_means, int threads);

}  // namespace weaktr
