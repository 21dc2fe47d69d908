// What the bindings share: entries of dicts, and NumPy arrays that are read where they lie.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "common/check.hpp"

namespace weaktr {

namespace py = pybind11;

inline void check_shape(const char* name, const py::array& array,
                        const std::vector<py::ssize_t>& shape) {
  if (std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim())) return;
  std::string expected;
  for (const py::ssize_t side : shape)
    expected += (expected.empty() ? "" : ", ") + std::to_string(side);
  refuse(std::string(name) + ": expected [" + expected + "], got " +
         std::string(py::str(array.attr("shape"))));
}

// Distance along an axis, in numbers.
inline int64_t step(const char* name, const py::array& array, int axis) {
  if (array.strides(axis) % array.itemsize())
    refuse(std::string(name) + ": expected strides of whole numbers, got " +
           std::to_string(array.strides(axis)) + " bytes");
  return array.strides(axis) / array.itemsize();
}

// An entry of a dict that has to be there.
inline py::object entry(const py::dict& from, const char* name) {
  if (!from.contains(name)) refuse(std::string(name) + ": expected in the dict, found nothing");
  return from[name];
}

// `value` as a C++ type, or what was expected instead.
template <class T>
T converted(const py::handle& value, const char* name, const char* expected) {
  try {
    return py::cast<T>(value);
  } catch (const py::cast_error&) {
    refuse(std::string(name) + ": expected " + expected + ", got " +
           std::string(py::repr(py::type::of(value))));
  }
}

}  // namespace weaktr
