// fuse_heads on the CPU: instruction set, threads, work space.
#include <memory>
#include <vector>

#include "common/check.hpp"
#include "common/isa.hpp"
#include "common/threads.hpp"
#include "fuse_heads/fuse_heads.hpp"

namespace weaktr {

namespace {

// The keys whose values are not all zero: CAMs are ReLUs, so that many are.
template <class Number>
std::vector<int32_t> used_keys(const FusedMaps<Number>& maps) {
  std::vector<int32_t> used;
  for (int64_t j = 0; j < maps.patches; ++j) {
    const float* const values = maps.values + j * maps.channels;
    bool any = false;
    for (int64_t c = 0; c < maps.channels; ++c) any |= values[c] != 0;  // NaN is not 0
    if (any) used.push_back(static_cast<int32_t>(j));
  }
  return used;
}

template <class Number, class FuseRows>
void run(FusedMaps<Number> maps, int threads, FuseRows fuse_rows) {
  const std::vector<int32_t> used = used_keys(maps);
  maps.used = used.data(), maps.keys = static_cast<int64_t>(used.size());
  check(threads >= 1, "num_threads: expected at least 1, got " + std::to_string(threads));
  const int64_t items = divide_up(maps.patches, kQueries), workers = count_workers(items, threads);
  const int64_t size = fuse_workspace(maps);
  const std::unique_ptr<float[]> workspace(new float[static_cast<size_t>(size * workers)]);
  share_out(items, workers, [&](int64_t item, int64_t worker) {
    fuse_rows(maps, item * kQueries, workspace.get() + worker * size);
  });
}

}  // namespace

void fuse_heads_cpu(const FusedMaps<float>& maps, int threads, const std::string& isa) {
  const std::string name = chosen_isa(isa);
  run(maps, threads, WEAKTR_CODE_FOR(name, fuse_rows));
}

void fuse_heads_cpu(const FusedMaps<Bfloat16>& maps, int threads) {
  require_bfloat16();
#if defined(WEAKTR_WITH_BF16)
  run(maps, threads, avx512bf16::fuse_rows);
#else
  (void)maps, (void)threads;
#endif
}

}  // namespace weaktr
