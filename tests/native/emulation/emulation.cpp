#include "emulation/emulation.hpp"

#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>

#define WEAKTR_RED_ZONES
#include "dense_crf/cuda/batch.cuh"

namespace weaktr {
namespace {

using blocks::kThreads;

// Makes threads wait until all have come.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait() {
    if (threads_ == 1) return;
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t round = round_;
    if (++waiting_ == threads_) {
      waiting_ = 0;
      ++round_;
      all_here_.notify_all();
    } else {
      all_here_.wait(lock, [&] { return round_ != round; });
    }
  }

 private:
  const int threads_;
  int waiting_ = 0;
  int64_t round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_here_;
};

// A block, as one of the CPU's threads that run it sees it. Each has its part of the block's
// threads.
class EmulatedBlock {
 public:
  template <class T>
  class Private {
   public:
    T& operator[](int thread) { return values_[thread]; }

   private:
    T values_[kThreads];
  };

  EmulatedBlock(uint32_t index, uint32_t count, int part, int parts, uint32_t seed,
                Barrier& barrier)
      : index(index), count(count), part_(part), parts_(parts), seed_(seed), barrier_(&barrier) {}

  template <class Phase>
  void each(const Phase& phase) const {
    seed_ = seed_ * 1664525u + (seed_ ? 1013904223u : 0);
    const int stride = static_cast<int>(seed_ >> 16 | 1),
              start = static_cast<int>(seed_ >> 8 & 255);
    for (int i = 0; i < kThreads; ++i) {
      const int thread = (i * stride + start) % kThreads;
      if (thread % parts_ == part_) phase(thread);
    }
    barrier_->wait();
  }

  const uint32_t index, count;

 private:
  const int part_, parts_;
  mutable uint32_t seed_;
  Barrier* const barrier_;
};

class EmulatedDevice {
 public:
  static constexpr uint32_t kMultiprocessors = 1;  // blocks get more than one piece of work

  explicit EmulatedDevice(const Schedule& schedule) : schedule_(schedule), random_(schedule.seed) {}

  void upload(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
  void fill(void* to, int byte, size_t bytes) { std::memset(to, byte, bytes); }

  template <class Program>
  void launch(const Program& program, uint32_t count) {
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    if (schedule_.seed) std::shuffle(order.begin(), order.end(), random_);
    if (schedule_.threads == 1) return run(program, order, 0, 1);
    std::thread other([&] { run(program, order, 1, 2); });
    run(program, order, 0, 2);
    other.join();
  }

 private:
  // Every `stride`th block, one after the other.
  template <class Program>
  void run(const Program& program, const std::vector<uint32_t>& order, size_t first,
           size_t stride) {
    const auto shared = std::make_unique<typename Program::Shared>();
    for (size_t i = first; i < order.size(); i += stride) {
      std::memset(static_cast<void*>(shared.get()), kGarbage, sizeof(*shared));
      Barrier barrier(schedule_.threads);
      std::vector<std::thread> others;
      const auto part = [&](int number) {
        const EmulatedBlock block(order[i], static_cast<uint32_t>(order.size()), number,
                                  schedule_.threads, schedule_.seed ? order[i] + 1 : 0, barrier);
        program(block, *shared);
      };
      for (int number = 1; number < schedule_.threads; ++number) others.emplace_back(part, number);
      part(0);
      for (std::thread& other : others) other.join();
    }
  }

  static constexpr int kGarbage = 0xcd;  // in shared memory before a block has written it
  const Schedule schedule_;
  std::mt19937 random_;
};

}  // namespace

void dense_crf_emulated(const std::vector<Problem>& problems, int iterations,
                        const Schedule& schedule) {
  check(schedule.threads >= 1,
        "threads: expected at least 1, got " + std::to_string(schedule.threads));
  blocks::Batch batch(problems, iterations, EmulatedDevice::kMultiprocessors);
  // Like device memory: never cleared; all bits are NaN as float.
  constexpr uint8_t never_cleared = 0xff;
  std::vector<uint8_t> memory(batch.bytes() + 256, never_cleared);
  void* workspace = memory.data();
  size_t room = memory.size();
  EmulatedDevice device(schedule);
  batch.solve(device, std::align(256, batch.bytes(), workspace, room));
  if (!batch.gaps_are(never_cleared))
    throw std::logic_error("something was written between two arrays of the workspace");
}

}  // namespace weaktr
