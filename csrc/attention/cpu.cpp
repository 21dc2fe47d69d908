// attention on the CPU: instruction set, threads, work space.
#include <memory>
#include <vector>

#include "attention/attention.hpp"
#include "common/check.hpp"
#include "common/isa.hpp"
#include "common/threads.hpp"

namespace weaktr {
namespace {

template <class Number, class Attend>
void run(Attention<Number> maps, float* column_means, int threads, Attend attend) {
  check(threads >= 1, "num_threads: expected at least 1, got " + std::to_string(threads));
  const int64_t groups = blocks_of(kGroupQueries, maps.tokens), count = maps.images * maps.heads;
  const int64_t items = count * groups, workers = count_workers(items, threads);
  const int64_t size = attention_workspace(maps);
  const std::unique_ptr<float[]> workspace(new float[static_cast<size_t>(size * workers)]);
  std::vector<float> sums(static_cast<size_t>(column_means ? items * maps.patches : 0));
  maps.column_sums = column_means ? sums.data() : nullptr;
  share_out(items, workers, [&](int64_t item, int64_t worker) {
    attend(maps, item / groups, item % groups, workspace.get() + worker * size);
  });
  if (!column_means) return;
  for (int64_t map = 0; map < count; ++map)
    for (int64_t j = 0; j < maps.patches; ++j) {
      float sum = 0;
      for (int64_t group = 0; group < groups; ++group)
        sum += sums[static_cast<size_t>((map * groups + group) * maps.patches + j)];
      column_means[map * maps.patches + j] = sum / static_cast<float>(maps.patches);
    }
}

}  // namespace

void attention_cpu(Attention<float> maps, float* column_means, int threads,
                   const std::string& isa) {
  const std::string name = chosen_isa(isa);
  run(maps, column_means, threads, WEAKTR_CODE_FOR(name, attend));
}

void attention_cpu(Attention<Bfloat16> maps, float* column_means, int threads) {
  require_bfloat16();
#if defined(WEAKTR_WITH_BF16)
  run(maps, column_means, threads, avx512bf16::attend);
#else
  (void)maps, (void)column_means, (void)threads;
#endif
}

}  // namespace weaktr
