// The CUDA code on the CPU, thread by thread: slow, for tests where there is no GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "dense_crf/problem.hpp"

namespace weaktr {

// In which order a device might do what it may do in any order.
struct Schedule {
  uint32_t seed = 0;  // 0: blocks and threads one after the other; else shuffled
  int threads = 1;    // of the CPU, for each of two blocks at a time; 1: one block at a time. With
                      // more, ThreadSanitizer sees the races that there would be on a GPU.
};

// Like `dense_crf_cuda`, on the host's memory. Throws std::invalid_argument for what that does not
// take.
void dense_crf_emulated(const std::vector<Problem>& problems, int iterations,
                        const Schedule& schedule);

}  // namespace weaktr
