// Launches the programs of `batch.cuh` on a GPU. Compile with -fmad=false
// (dense_crf/permutohedral.hpp).
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "dense_crf/cuda/batch.cuh"
#include "dense_crf/cuda/launch.hpp"

namespace weaktr {
namespace {

void check_cuda(cudaError_t status, const std::string& where) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // the next call starts afresh
  throw std::runtime_error("CUDA: " + where + ": " + cudaGetErrorString(status));
}

// The running block, as each of its threads sees it.
struct CudaBlock {
  uint32_t index, count;

  template <class T>
  class Private {
   public:
    WEAKTR_MEMBER T& operator[](int) { return value_; }

   private:
    T value_;
  };

  template <class Phase>
  WEAKTR_MEMBER void each(const Phase& phase) const {
#if defined(__CUDA_ARCH__)
    phase(static_cast<int>(threadIdx.x));
    __syncthreads();
#endif
  }
};

// Blocks of a program that are to share a multiprocessor; 1: it does not say.
template <class Program, class = void>
constexpr int kBlocksTogether = 1;
template <class Program>
constexpr int kBlocksTogether<Program, std::void_t<decltype(Program::kBlocksPerMultiprocessor)>> =
    Program::kBlocksPerMultiprocessor;

template <class Program>
__global__ void __launch_bounds__(blocks::kThreads, kBlocksTogether<Program>)
    run_program(const __grid_constant__ Program program) {
  __shared__ typename Program::Shared shared;
  program(CudaBlock{blockIdx.x, gridDim.x}, shared);
}

// Carries data from the host as a program's argument: it is copied at the launch, so that nobody
// waits for the stream, and no memory has to outlive the call.
struct Packet {
  static constexpr size_t kBytes = 3840;  // arguments may have 4096
  struct Shared {};
  uint32_t* to;
  uint32_t words;
  uint32_t data[kBytes / sizeof(uint32_t)];

  WEAKTR_MEMBER void operator()(const CudaBlock& block, Shared&) const {
    block.each([&](int thread) {
      for (uint32_t i = thread; i < words; i += blocks::kThreads) to[i] = data[i];
    });
  }
};

class CudaDevice {
 public:
  explicit CudaDevice(cudaStream_t stream) : stream_(stream) {}

  void upload(void* to, const void* from, size_t bytes) {
    for (size_t sent = 0; sent < bytes; sent += Packet::kBytes) {
      Packet packet;
      const size_t size = std::min(Packet::kBytes, bytes - sent);  // a multiple of 256
      packet.to = static_cast<uint32_t*>(to) + sent / sizeof(uint32_t);
      packet.words = static_cast<uint32_t>(size / sizeof(uint32_t));
      std::memcpy(packet.data, static_cast<const uint8_t*>(from) + sent, size);
      launch(packet, 1);
    }
  }

  void fill(void* to, int byte, size_t bytes) {
    check_cuda(cudaMemsetAsync(to, byte, bytes, stream_), "clearing memory");
  }

  template <class Program>
  void launch(const Program& program, uint32_t count) {
    run_program<<<count, blocks::kThreads, 0, stream_>>>(program);
    check_cuda(cudaGetLastError(), "launching a program");
  }

 private:
  const cudaStream_t stream_;
};

// Makes the device current that memory belongs to, for as long as it lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(const void* memory) {
    cudaPointerAttributes attributes;
    check_cuda(cudaPointerGetAttributes(&attributes, memory), "looking at unary");
    check(attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged,
          "unary: expected memory of a CUDA device, got memory of the host");
    check_cuda(cudaGetDevice(&before_), "asking for the current device");
    check_cuda(cudaSetDevice(attributes.device), "choosing the device");
    device_ = attributes.device;
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice() { cudaSetDevice(before_); }

  int multiprocessors() const {
    int count = 0;
    check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_),
               "counting multiprocessors");
    return count;
  }

 private:
  int before_ = 0, device_ = 0;
};

// Of the device that holds this problem.
uint32_t multiprocessors(const Problem& problem) {
  const CurrentDevice device(problem.unary ? static_cast<const void*>(problem.unary)
                                           : problem.label_map);
  return static_cast<uint32_t>(device.multiprocessors());
}

}  // namespace

std::vector<size_t> dense_crf_cuda_bytes(const std::vector<Problem>& problems) {
  std::vector<size_t> bytes;
  const uint32_t count = problems.empty() ? 0 : multiprocessors(problems.front());
  for (const Problem& problem : problems)
    bytes.push_back(blocks::Batch({problem}, 1, count).bytes());
  return bytes;
}

void dense_crf_cuda(const std::vector<Problem>& problems, int iterations, void* stream,
                    const std::function<void*(size_t)>& allocate) {
  if (problems.empty()) return;
  blocks::Batch batch(problems, iterations, multiprocessors(problems.front()));
  void* const workspace = allocate(batch.bytes());
  check(workspace && reinterpret_cast<uintptr_t>(workspace) % 256 == 0,
        "allocate: expected device memory aligned to 256 bytes");
  const Problem& first = problems.front();
  const CurrentDevice device(first.unary ? static_cast<const void*>(first.unary) : first.label_map);
  CudaDevice queue(static_cast<cudaStream_t>(stream));
  batch.solve(queue, workspace);
}

}  // namespace weaktr
