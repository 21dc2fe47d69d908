// The mean field of a batch on a GPU.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "dense_crf/problem.hpp"

namespace weaktr {

// Bytes of device memory that each problem needs, besides what it points to. Those of a call add
// up.
std::vector<size_t> dense_crf_cuda_bytes(const std::vector<Problem>& problems);

// Solves all problems together. They may differ in size and labels, and point to memory of one
// device, except `Kernel::compat`. Everything is enqueued on `stream`, a cudaStream_t; the host
// does not wait. `allocate(bytes)` returns device memory, aligned to 256 bytes, that stays reserved
// until the stream has come here. The results of an image are the same bits in every
// run, whatever other images there are.
//
// Throws std::invalid_argument, with the reason, for what it does not take (features, keys of more
// than 63 bits), and std::runtime_error where CUDA reports an error. Energies are not looked at:
// NaN stays NaN, and so becomes the pixel of a label that the table lacks.
void dense_crf_cuda(const std::vector<Problem>& problems, int iterations, void* stream,
                    const std::function<void*(size_t)>& allocate);

}  // namespace weaktr
