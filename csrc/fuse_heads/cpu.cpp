// fuse_heads on the CPU: instruction set, threads, work space.
#include <memory>

#include "common/check.hpp"
#include "common/isa.hpp"
#include "common/threads.hpp"
#include "fuse_heads/fuse_heads.hpp"

namespace weaktr {

namespace {

template <class Number, class FuseRows>
void run(const FusedMaps<Number>& maps, int threads, FuseRows fuse_rows) {
  check(threads >= 1, "num_threads: expected at least 1, got " + std::to_string(threads));
  const int64_t blocks = blocks_of(kQueries, maps.patches),
                workers = count_workers(blocks, threads);
  const int64_t size = fuse_workspace(maps);
  const std::unique_ptr<float[]> workspace(new float[static_cast<size_t>(size * workers)]);
  share_out(blocks, workers, [&](int64_t block, int64_t worker) {
    fuse_rows(maps, block * kQueries, workspace.get() + worker * size);
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
