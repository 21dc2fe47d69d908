// Images on threads, each with the work space of a call before; the choice of an instruction set.
#include "dense_crf/cpu/driver.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>

#include "common/denormals.hpp"
#include "common/isa.hpp"
#include "common/threads.hpp"
#include "dense_crf/check.hpp"
#include "dense_crf/cpu/isa.hpp"

namespace weaktr {

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

constexpr int kMostThreads = 256;  // more only wait for each other

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
    if (!workspace_ || !workspace_->worth_keeping()) return;
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
