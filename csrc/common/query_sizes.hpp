// How attention maps are cut into pieces on the CPU: the sizes that all instruction sets share.
#pragma once

#include <cstdint>

#include "common/compiler.hpp"

namespace weaktr {

typedef uint16_t Bfloat16;  // the upper half of a float32

// Queries that are computed side by side.
constexpr int64_t kQueries = 64;
// Keys of a tile.
constexpr int64_t kKeys = 6;

// Blocks of `size` that hold `count`.
WEAKTR_INLINE int64_t blocks_of(int64_t size, int64_t count) { return (count + size - 1) / size; }

}  // namespace weaktr
