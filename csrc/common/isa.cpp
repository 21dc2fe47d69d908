#include "common/isa.hpp"

#include "common/check.hpp"

namespace weaktr {

std::vector<std::string> isa_levels() {
  std::vector<std::string> levels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    levels.emplace_back("avx512");
  if (avx2) levels.emplace_back("avx2");
#elif defined(__aarch64__)
  levels.emplace_back("neon");
#endif
  levels.emplace_back("scalar");
  return levels;
}

std::string chosen_isa(const std::string& wanted) {
  const std::vector<std::string> levels = isa_levels();
  if (wanted == "auto") return levels.front();
  std::string names;
  for (const std::string& name : levels) {
    if (wanted == name) return name;
    names += (names.empty() ? "" : ", ") + name;
  }
  refuse("isa: expected auto or one of isa_levels(): " + names + ", got " + wanted);
}

bool has_bfloat16() {
#if defined(WEAKTR_WITH_BF16)
  return isa_levels().front() == "avx512" && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

void require_bfloat16() {
  check(has_bfloat16(), "bfloat16: this processor does not multiply it (AVX-512 BF16)");
}

}  // namespace weaktr
