// fuse_heads on the CPU: instruction set, threads, work space.
#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "check.hpp"
#include "fuse_heads.hpp"

namespace weaktr {
namespace {

typedef void (*FuseRows)(const FusedMaps&, int64_t, float*);

FuseRows choose_isa(const std::string& wanted) {
  const std::vector<std::string> levels = isa_levels();
  const std::string& name = wanted == "auto" ? levels.front() : wanted;
  check(std::find(levels.begin(), levels.end(), name) != levels.end(),
        "isa: expected auto or one of isa_levels(), got " + wanted);
#if defined(__x86_64__)
  if (name == "avx512") return avx512::fuse_rows;
  if (name == "avx2") return avx2::fuse_rows;
#elif defined(__aarch64__)
  if (name == "neon") return neon::fuse_rows;
#endif
  return scalar::fuse_rows;
}

}  // namespace

void fuse_heads_cpu(const FusedMaps& maps, int threads, const std::string& isa) {
  check(threads >= 1, "num_threads: expected at least 1, got " + std::to_string(threads));
  const FuseRows fuse_rows = choose_isa(isa);
  const int64_t blocks = (maps.patches + kQueries - 1) / kQueries;
  const int64_t workers = std::min<int64_t>(threads, blocks);
  const int64_t size = fuse_workspace(maps);
  std::vector<float> workspace(static_cast<size_t>(size * workers));
  std::atomic<int64_t> next{0};
  auto work = [&](int64_t worker) {
    for (int64_t block; (block = next++) < blocks;)
      fuse_rows(maps, block * kQueries, workspace.data() + worker * size);
  };
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(workers));
  try {
    for (int64_t worker = 1; worker < workers; ++worker) helpers.emplace_back(work, worker);
  } catch (const std::system_error&) {  // no more threads to be had: those there are do the work
  }
  if (workers) work(0);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace weaktr
