// The mean field of a list of problems on the CPU.
#pragma once

#include <string>
#include <vector>

#include "dense_crf/problem.hpp"

namespace weaktr {

// Solves all problems, images side by side on `threads` threads; where there are fewer images, one
// image on several. The results do not depend on `threads`. `isa`: "auto" or one of `isa_levels`.
// Throws std::invalid_argument for what `dense_crf/check.hpp` refuses, std::bad_alloc.
void dense_crf_cpu(const std::vector<Problem>& problems, int iterations, int threads,
                   const std::string& isa);

// Frees what is kept from call to call: work space and lattices of positions.
void release_memory();

}  // namespace weaktr
