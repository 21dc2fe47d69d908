// fuse_heads on the CPU: instruction set, threads, work space.
#include "check.hpp"
#include "fuse_heads.hpp"
#include "isa.hpp"
#include "threads.hpp"

namespace weaktr {

void fuse_heads_cpu(const FusedMaps& maps, int threads, const std::string& isa) {
  check(threads >= 1, "num_threads: expected at least 1, got " + std::to_string(threads));
  const std::string name = chosen_isa(isa);
  const auto fuse_rows = WEAKTR_CODE_FOR(name, fuse_rows);
  const int64_t blocks = blocks_of(kQueries, maps.patches),
                workers = count_workers(blocks, threads);
  const int64_t size = fuse_workspace(maps);
  std::vector<float> workspace(static_cast<size_t>(size * workers));
  share_out(blocks, workers, [&](int64_t block, int64_t worker) {
    fuse_rows(maps, block * kQueries, workspace.data() + worker * size);
  });
}

}  // namespace weaktr
