// Which instruction sets this processor runs, of those that the hot code is compiled for.
#pragma once

#include <string>
#include <vector>

namespace weaktr {

// Best first; the last is "scalar".
std::vector<std::string> isa_levels();

// The one meant by "auto" or by its name. Throws std::invalid_argument for any other.
std::string chosen_isa(const std::string& wanted);

// Whether this processor multiplies bfloat16 and this library has code for it (AVX-512 BF16).
bool has_bfloat16();

// Throws std::invalid_argument where `has_bfloat16` is false.
void require_bfloat16();

}  // namespace weaktr

// `function` in the code for the instruction set called `name`.
#if defined(__x86_64__)
#define WEAKTR_CODE_FOR(name, function) \
  ((name) == "avx512" ? avx512::function : (name) == "avx2" ? avx2::function : scalar::function)
#elif defined(__aarch64__)
#define WEAKTR_CODE_FOR(name, function) ((name) == "neon" ? neon::function : scalar::function)
#else
#define WEAKTR_CODE_FOR(name, function) (scalar::function)
#endif
