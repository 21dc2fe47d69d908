// Random calls of `weaktr::dense_crf_cpu`, to be compiled with sanitizers (see run.py).
//
// fuzz_dense_crf SEED FIRST CASES ISA...: cases FIRST, FIRST + 1, ... of a seed on these
// instruction sets. Prints what came of them; stops with status 1 at the first failure and says how
// to repeat it.
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "check_call.hpp"
#include "mistakes.hpp"

// Of the sanitizers, where they are linked: called before they end the process.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

// Stands before the C library's: lets memory run out after so many more allocations.
static std::atomic<int64_t> allocations_left{std::numeric_limits<int64_t>::max()};

extern "C" void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  void* memory = nullptr;
  if (allocations_left.fetch_sub(1) <= 0 || posix_memalign(&memory, alignment, bytes)) {
    errno = ENOMEM;
    return nullptr;
  }
  return memory;
}

namespace fuzz {
namespace {

constexpr unsigned kCasesPerLine = 10000;  // of progress
constexpr unsigned kSecondsPerCase = 120;  // a case takes milliseconds; longer: it hangs

unsigned long long seed, number;  // the case that runs

void say_which() { std::fprintf(stderr, "fuzz_dense_crf: case %llu of seed %llu\n", number, seed); }

void stop_hanging(int) {
  std::fprintf(stderr, "fuzz_dense_crf: no end after %u seconds\n", kSecondsPerCase);
  say_which();
  std::_Exit(1);
}

struct Tally {
  int64_t solved = 0, refused = 0, too_wide = 0, out_of_memory = 0;
};

void print(const Tally& tally) {
  std::printf(
      "%lld solved, %lld mistakes refused, %lld lattices too wide, %lld times out of memory\n",
      static_cast<long long>(tally.solved), static_cast<long long>(tally.refused),
      static_cast<long long>(tally.too_wide), static_cast<long long>(tally.out_of_memory));
  std::fflush(stdout);
}

float largest_energy(const Image& image) {
  float largest = 0;
  for (const float value : image.unary) largest = std::max(largest, std::abs(value));
  for (const float value : image.table) largest = std::max(largest, std::abs(value));
  return largest;
}

std::string describe(const Case& given) {
  std::ostringstream out;
  out << given.isa << ", " << given.iterations << " iterations, " << given.threads << " threads";
  if (!given.mistake.empty()) out << ", with a mistake: " << given.mistake;
  for (const Image& image : given.images) {
    const Problem& problem = image.problem;
    out << "\n  image: " << problem.pixels << " pixels, [" << problem.height << ", "
        << problem.width << "], " << problem.labels << " labels, ";
    if (problem.unary)
      out << "unary";
    else
      out << "table of " << problem.table_rows;
    out << " up to " << largest_energy(image);
    for (const Kernel& kernel : problem.kernels) {
      out << "\n    kernel: " << kernel.dimensions
          << (kernel.features ? " features" : " deviations");
      for (int i = 0; !kernel.features && i < std::min(kernel.dimensions, 5); ++i)
        out << " " << kernel.deviations[i];
      out << ", normalization " << static_cast<int>(kernel.normalization) << ", "
          << kernel.compat.size() << " compat";
      if (!kernel.compat.empty()) out << " from " << kernel.compat.front();
    }
  }
  return out.str();
}

// What a call was asked for and which memory it found must not change what it finds.
void compare_calls(Random& random, const Case& given, const std::vector<std::string>& levels,
                   const Results& results) {
  if (random.once_in(2)) weaktr::release_memory();
  const auto outputs = static_cast<int>(random.below(kEverything + 1));
  const int threads = given.threads == 3 ? 1 : 3;
  check_same(results, call(given, outputs, threads, given.isa), "threads, outputs or kept memory");
  if (!results.solved() || !is_moderate(given)) return;
  const std::string isa =
      levels[static_cast<size_t>(random.below(static_cast<int64_t>(levels.size())))];
  check_close(results, call(given, kMarginals, 1, isa), isa);
}

// Memory runs out somewhere on the way: std::bad_alloc, or the results as ever; nothing leaks.
void run_out_of_memory(Random& random, const Case& given, const Results& results, Tally& tally) {
  if (random.once_in(2)) weaktr::release_memory();
  allocations_left = random.below(40);
  const Results other = call(given, kEverything, given.threads, given.isa);
  allocations_left = std::numeric_limits<int64_t>::max();
  check_same(results, other, "allocations that might have failed");
  tally.out_of_memory += other.out_of_memory;
}

void run_case(Random& random, Case& given, const std::vector<std::string>& levels, Tally& tally) {
  if (random.once_in(8)) make_mistake(random, given);
  if (random.once_in(8)) weaktr::release_memory();
  const Results results = call(given, kEverything, given.threads, given.isa);
  if (!given.mistake.empty()) {
    expect(!results.refusal.empty(), "not refused");
    ++tally.refused;
    return;
  }
  expect(!results.out_of_memory, "out of memory");
  if (results.refusal.empty()) {
    check_marginals(given, results);
    ++tally.solved;
  } else {
    check_refusal(given, results.refusal);
    ++tally.too_wide;
  }
  if (random.once_in(8)) run_out_of_memory(random, given, results, tally);
  if (random.once_in(2)) compare_calls(random, given, levels, results);
}

int run(unsigned long long first, unsigned long long cases,
        const std::vector<std::string>& levels) {
  Tally tally;
  for (number = first; number < first + cases; ++number) {
    Random random(seed, number);
    Case given = draw_case(random, levels);
    alarm(kSecondsPerCase);
    if (number > first && (number - first) % kCasesPerLine == 0) print(tally);
    try {
      run_case(random, given, levels, tally);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "fuzz_dense_crf: %s\n%s\n", error.what(), describe(given).c_str());
      say_which();
      return 1;
    }
  }
  print(tally);
  return 0;
}

}  // namespace
}  // namespace fuzz

int main(int count, char** arguments) {
  if (count < 5) {
    std::fprintf(stderr, "usage: %s SEED FIRST CASES ISA...\n", arguments[0]);
    return 2;
  }
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(fuzz::say_which);
  std::signal(SIGALRM, fuzz::stop_hanging);
  fuzz::seed = std::strtoull(arguments[1], nullptr, 10);
  const unsigned long long first = std::strtoull(arguments[2], nullptr, 10);
  const unsigned long long cases = std::strtoull(arguments[3], nullptr, 10);
  return fuzz::run(first, cases, std::vector<std::string>(arguments + 4, arguments + count));
}
