#include "dense_crf/cpu/team.hpp"

#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "common/denormals.hpp"
#include "common/threads.hpp"

namespace weaktr {

// The threads of a team wait for a round to begin and report when they have done their part.
struct Team::Threads {
  std::mutex mutex;
  std::condition_variable begin, all_finished;
  int64_t round = 0;
  int running = 0;
  bool leaving = false;
  void (*job)(const void*, int) = nullptr;
  const void* context = nullptr;
  std::vector<std::thread> threads;

  void serve(int part) {
    [[maybe_unused]] const FlushDenormals flush;
    std::unique_lock<std::mutex> lock(mutex);
    for (int64_t seen = 0;;) {
      begin.wait(lock, [&] { return leaving || round > seen; });
      if (leaving) return;
      seen = round;
      lock.unlock();
      job(context, part);
      lock.lock();
      if (--running == 0) all_finished.notify_one();
    }
  }
};

Team::Team(int size) : size_(size) {
  if (size < 2) return;
  threads_ = new Threads;
  start_threads(threads_->threads, size - 1, [this](int part) { threads_->serve(part + 1); });
  size_ = static_cast<int>(threads_->threads.size()) + 1;
}

Team::~Team() {
  if (!threads_) return;
  {
    const std::lock_guard<std::mutex> lock(threads_->mutex);
    threads_->leaving = true;
  }
  threads_->begin.notify_all();
  for (std::thread& thread : threads_->threads) thread.join();
  delete threads_;
}

void Team::run(void (*job)(const void*, int), const void* context) {
  if (!threads_) return job(context, 0);
  {
    const std::lock_guard<std::mutex> lock(threads_->mutex);
    threads_->job = job;
    threads_->context = context;
    threads_->running = size_ - 1;
    ++threads_->round;
  }
  threads_->begin.notify_all();
  job(context, 0);
  std::unique_lock<std::mutex> lock(threads_->mutex);
  threads_->all_finished.wait(lock, [&] { return threads_->running == 0; });
}

}  // namespace weaktr
