// Checks of NumPy arrays that are read where they lie.
#pragma once

#include <pybind11/numpy.h>

#include <string>
#include <vector>

#include "common/check.hpp"

namespace weaktr {

inline void check_shape(const char* name, const pybind11::array& array,
                        const std::vector<pybind11::ssize_t>& shape) {
  if (std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim())) return;
  std::string expected;
  for (const pybind11::ssize_t side : shape)
    expected += (expected.empty() ? "" : ", ") + std::to_string(side);
  refuse(std::string(name) + ": expected [" + expected + "], got " +
         std::string(pybind11::str(array.attr("shape"))));
}

// Distance along an axis, in numbers.
inline int64_t step(const char* name, const pybind11::array& array, int axis) {
  if (array.strides(axis) % array.itemsize())
    refuse(std::string(name) + ": expected strides of whole numbers, got " +
           std::to_string(array.strides(axis)) + " bytes");
  return array.strides(axis) / array.itemsize();
}

}  // namespace weaktr
