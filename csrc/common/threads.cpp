#include "common/threads.hpp"

namespace weaktr {
namespace {

// Part of the interface between GCC and its OpenMP runtime, which other runtimes offer too.
typedef void (*GompParallel)(void (*)(void*), void*, unsigned threads, unsigned flags);
std::atomic<GompParallel> openmp{nullptr};

}  // namespace

void use_openmp(uintptr_t gomp_parallel) { openmp = reinterpret_cast<GompParallel>(gomp_parallel); }

void run_on_threads(void (*job)(void*), void* context, unsigned threads) {
  if (threads <= 1) return job(context);
  if (const GompParallel parallel = openmp) return parallel(job, context, threads, 0);
  std::vector<std::thread> helpers;
  start_threads(helpers, static_cast<int>(threads) - 1, [=](int) { job(context); });
  job(context);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace weaktr
