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

// count / size, rounded up.
WEAKTR_INLINE int64_t divide_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace weaktr
