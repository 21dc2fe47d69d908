// Random numbers that are the same with every compiler and standard library.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace fuzz {

// Source: Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014
// (splitmix64).
class Random {
 public:
  // The stream of one case: it does not depend on the cases before it.
  Random(uint64_t seed, uint64_t stream) : state_(seed * 0x9E3779B97F4A7C15ull) {
    state_ = next() ^ stream;
    next();
  }

  uint64_t next() {
    uint64_t x = state_ += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
  }

  // A whole number from 0 to `count` - 1.
  int64_t below(int64_t count) {
    return static_cast<int64_t>(next() % static_cast<uint64_t>(count));
  }
  // A whole number from `low` to `high`, both included.
  int64_t whole(int64_t low, int64_t high) { return low + below(high - low + 1); }
  // Uniform.
  double between(double low, double high) {
    return low + (high - low) * static_cast<double>(next() >> 11) * 0x1p-53;
  }
  // Uniform in the logarithm: every order of magnitude is as likely as the next.
  double magnitude(double low, double high) {
    return std::exp(between(std::log(low), std::log(high)));
  }
  // The same, whole and with both ends.
  int64_t size(int64_t low, int64_t high) {
    const auto drawn =
        static_cast<int64_t>(magnitude(static_cast<double>(low), static_cast<double>(high) + 1));
    return drawn < high ? drawn : high;
  }
  // Normal enough: mean 0, deviation 1, at most 6.
  float normal() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += between(0, 1);
    return static_cast<float>(sum);
  }
  // True once in `n` times on average.
  bool once_in(int64_t n) { return below(n) == 0; }

  template <class T, size_t count>
  T one_of(const T (&choices)[count]) {
    return choices[below(static_cast<int64_t>(count))];
  }

 private:
  uint64_t state_;
};

}  // namespace fuzz
