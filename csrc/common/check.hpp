// Argument checks: what was expected, what came.
#pragma once

#include <stdexcept>
#include <string>

namespace weaktr {

[[noreturn]] inline void refuse(const std::string& message) {
  throw std::invalid_argument(message);
}

inline void check(bool holds, const std::string& message) {
  if (!holds) refuse(message);
}

}  // namespace weaktr
