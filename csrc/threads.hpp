// Work on threads, item by item.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace weaktr {

// How many of `threads` there is work for.
inline int64_t count_workers(int64_t items, int threads) {
  return std::max<int64_t>(1, std::min<int64_t>(items, threads));
}

// work(item, worker) of every item, each taken by the next worker that is free; workers are
// numbered from 0. `work` must not throw.
template <class Work>
void share_out(int64_t items, int64_t workers, const Work& work) {
  std::atomic<int64_t> next{0};
  auto work_on = [&](int64_t worker) {
    for (int64_t item; (item = next++) < items;) work(item, worker);
  };
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(workers));
  try {
    for (int64_t worker = 1; worker < workers; ++worker) helpers.emplace_back(work_on, worker);
  } catch (const std::system_error&) {  // no more threads to be had: those there are do the work
  }
  work_on(0);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace weaktr
