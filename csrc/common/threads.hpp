// Work on threads, item by item.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace weaktr {

// Starts job(0) ... job(count - 1), or as many of them as the system has threads for.
template <class Job>
void start_threads(std::vector<std::thread>& threads, int count, const Job& job) {
  threads.reserve(static_cast<size_t>(count));
  try {
    for (int number = 0; number < count; ++number) threads.emplace_back(job, number);
  } catch (const std::system_error&) {
  }
}

// From now on uses the threads of an OpenMP runtime, by the address of its GOMP_parallel: while
// they wait for work they keep the cores busy, and threads of our own would wait for them. 0: our
// own.
void use_openmp(uintptr_t gomp_parallel);

// job(context) on up to `threads` threads at once, at least on the caller's.
void run_on_threads(void (*job)(void*), void* context, unsigned threads);

// How many of `threads` there is work for.
inline int64_t count_workers(int64_t items, int threads) {
  return std::max<int64_t>(1, std::min<int64_t>(items, threads));
}

// work(item, worker) of every item, each taken by the next worker that is free; workers are
// numbered from 0. `work` must not throw.
template <class Work>
void share_out(int64_t items, int64_t workers, const Work& work) {
  struct Shared {
    const Work& work;
    int64_t items;
    std::atomic<int64_t> worker{0}, item{0};
  } shared{work, items};
  const auto job = [](void* context) {
    Shared& all = *static_cast<Shared*>(context);
    const int64_t worker = all.worker++;
    for (int64_t item; (item = all.item++) < all.items;) all.work(item, worker);
  };
  run_on_threads(job, &shared, static_cast<unsigned>(workers));
}

}  // namespace weaktr
