// Which instruction sets this processor runs, of those that the hot code is compiled for.
#pragma once

#include <string>
#include <vector>

namespace weaktr {

// Best first; the last is "scalar".
std::vector<std::string> isa_levels();

// The one meant by "auto" or by its name. Throws std::invalid_argument for any other.
std::string chosen_isa(const std::string& wanted);

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
