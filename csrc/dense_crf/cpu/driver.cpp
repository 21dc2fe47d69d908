// The CPU driver of the dense CRF: memory, the choice of an instruction set, images on threads.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/isa.hpp"
#include "dense_crf/check.hpp"
#include "dense_crf/cpu/memory.hpp"

namespace weaktr {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2}
                             << 20;  // rows are read in no order: fewer pages, fewer misses
constexpr size_t kPage = 4096;
constexpr size_t kWorthAsking = size_t{64} << 20;  // smaller blocks are not checked against memory
constexpr int kMostThreads = 256;                  // more only wait for each other
constexpr size_t kShareKept = 8;                   // above 1/8 of free memory: freed after use

// Says what was missing.
class TooLarge : public std::bad_alloc {
 public:
  TooLarge(size_t wanted, size_t available)
      : message_("dense_crf: a block of " + std::to_string(wanted >> 20) +
                 " MiB does not fit the " + std::to_string(available >> 20) +
                 " MiB of memory that are left; use a smaller image, fewer labels or fewer images "
                 "at once") {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// Bytes that the system can still give, or the largest number where it does not tell.
size_t available_memory() {
  size_t kilobytes = 0;
  if (std::FILE* file = std::fopen("/proc/meminfo", "r")) {
    char line[128];
    while (std::fgets(line, sizeof line, file))
      if (std::sscanf(line, "MemAvailable: %zu kB", &kilobytes) == 1) break;
    std::fclose(file);
  }
  return kilobytes ? kilobytes << 10 : ~size_t{0};
}

}  // namespace

void* Buffer::grow(size_t bytes, size_t kept) {
  if (bytes <= bytes_) return data_;
  const bool large = bytes > kWorthAsking;
  if (large && bytes > available_memory()) throw TooLarge(bytes, available_memory());
  const size_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  const size_t rounded = (bytes + kAlignment + alignment - 1) / alignment * alignment;
  void* fresh = std::aligned_alloc(alignment, rounded);
  if (!fresh) throw TooLarge(bytes, available_memory());
#if defined(__linux__)
  if (alignment == kHugePage) madvise(fresh, rounded, MADV_HUGEPAGE);  // a wish; may be ignored
#endif
  if (large)  // take hold of it now, so that the next question about memory gets a true answer
    for (size_t at = 0; at < rounded; at += kPage) static_cast<volatile char*>(fresh)[at] = 0;
  if (kept) std::memcpy(fresh, data_, std::min(kept, bytes_));
  std::free(data_);
  data_ = fresh;
  bytes_ = rounded - kAlignment;
  return data_;
}

void Buffer::release() {
  std::free(data_);
  data_ = nullptr;
  bytes_ = 0;
}

void Workspace::need_kernels(int count) {
  if (count <= kernel_count) return;
  delete[] kernels;
  kernels = nullptr;
  kernel_count = 0;
  kernels = new LatticeMemory[static_cast<size_t>(count)];
  kernel_count = count;
}

size_t Workspace::bytes() const {
  size_t total = order.bytes() + scores.bytes() + labels.bytes() + marginals.bytes();
  for (int i = 0; i < kernel_count; ++i) {
    const LatticeMemory& kernel = kernels[i];
    total += kernel.records.bytes() + kernel.keys.bytes() + kernel.table.bytes() +
             kernel.rows[0].bytes() + kernel.rows[1].bytes() + kernel.merged.bytes() +
             kernel.scratch.bytes() + kernel.by_vertex.bytes();
    for (const Buffer& chains : kernel.chains) total += chains.bytes();
  }
  return total;
}

void fail_range(int kernel) {
  refuse("kernel " + std::to_string(kernel) +
         ": the features spread too wide for the lattice (2^22 cells or 128-bit keys); use larger "
         "standard deviations (sxy, srgb) or a smaller image");
}

void fail_vertices(int kernel) {
  refuse("kernel " + std::to_string(kernel) +
         ": the lattice may have 2^31 vertices or more; use larger standard deviations, "
         "or cut the image into parts");
}

namespace {

// Lets this thread treat denormal numbers as zero: they cost a hundred times as much.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// Starts job(0) ... job(count - 1), or as many of them as the system has threads for.
template <class Job>
void start_threads(std::vector<std::thread>& threads, int count, const Job& job) {
  threads.reserve(static_cast<size_t>(count));
  try {
    for (int number = 0; number < count; ++number) threads.emplace_back(job, number);
  } catch (const std::system_error&) {
  }
}

}  // namespace

// The threads of a team wait for a round to begin and report when they have done their part.
struct Team::Threads {
  std::mutex mutex;
  std::condition_variable begin, done;
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
      if (--running == 0) done.notify_one();
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
  threads_->done.wait(lock, [&] { return threads_->running == 0; });
}

namespace {

// Work spaces that wait for the next call.
std::mutex pool_mutex;
std::vector<std::unique_ptr<Workspace>> pool;

// Borrows a work space from the pool.
class Borrowed {
 public:
  Borrowed() {
    const std::lock_guard<std::mutex> lock(pool_mutex);
    if (pool.empty()) {
      workspace_ = std::make_unique<Workspace>();
    } else {
      workspace_ = std::move(pool.back());
      pool.pop_back();
    }
  }
  ~Borrowed() {
    if (!workspace_) return;
    const size_t bytes = workspace_->bytes();
    if (bytes > kWorthAsking && bytes > available_memory() / kShareKept) return;
    const std::lock_guard<std::mutex> lock(pool_mutex);
    pool.push_back(std::move(workspace_));
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  Workspace& operator*() { return *workspace_; }
  void discard() { workspace_.reset(); }  // after an error its contents are of no use

 private:
  std::unique_ptr<Workspace> workspace_;
};

}  // namespace

void release_memory() {
  const std::lock_guard<std::mutex> lock(pool_mutex);
  pool.clear();
}

void dense_crf_cpu(const std::vector<Problem>& problems, int iterations, int threads,
                   const std::string& isa) {
  check(iterations >= 0, "iterations: expected 0 or more, got " + std::to_string(iterations));
  check(threads >= 1, "num_threads: expected at least 1, got " + std::to_string(threads));
  const std::string name = chosen_isa(isa);
  const auto solve = WEAKTR_CODE_FOR(name, solve);
  std::atomic<size_t> next{0};
  std::vector<std::exception_ptr> errors(problems.size());
  threads = std::min(threads, kMostThreads);
  const int workers = static_cast<int>(std::min(static_cast<size_t>(threads), problems.size()));
  auto work = [&](int worker) {
    [[maybe_unused]] const FlushDenormals flush;
    Borrowed workspace;
    // threads that have no image of their own help with one
    Team team(threads / workers + (threads % workers > worker));
    for (size_t i; (i = next++) < problems.size();) {
      try {
        const Problem& problem = problems[i];
        check_problem(problem);
        solve(problem, problem.kernels.data(), static_cast<int>(problem.kernels.size()), iterations,
              *workspace, team);
      } catch (...) {
        errors[i] = std::current_exception();
        workspace.discard();
        next = problems.size();
        return;
      }
    }
  };
  std::vector<std::thread> helpers;
  if (workers) {
    start_threads(helpers, workers - 1, [&](int number) { work(number + 1); });
    work(0);
  }
  for (std::thread& helper : helpers) helper.join();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

}  // namespace weaktr
