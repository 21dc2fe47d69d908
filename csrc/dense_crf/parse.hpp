// From Python's problems to those of problem.hpp: one parser for the CPU, for CUDA and for CUDA's
// emulation in the tests.
//
// A problem is a dict: shape, image, unary or labels and table, kernels. A kernel is a dict:
// deviations or features, compat, normalization. What stands for an array, a `Source` knows:
//   images_only            whether it is for images and kernels of their pixels and colours alone
//   take<T>(name, value)   the memory of an array of T
// `compat` is always an array of NumPy.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "common/binding.hpp"
#include "common/check.hpp"
#include "dense_crf/problem.hpp"

namespace weaktr {

using Shape = std::vector<int64_t>;

// Where a C-contiguous array lies; nullptr: there is none.
template <class T>
struct Memory {
  T* address = nullptr;
  Shape shape;
};

// ---- sources

// Arrays of NumPy, of exactly this type and layout.
struct NumpyArrays {
  static constexpr bool images_only = false;

  template <class T>
  static Memory<T> take(const char* name, const py::object& value) {
    using Array = py::array_t<T, py::array::c_style>;
    const bool aligned =
        py::isinstance<py::array>(value) &&
        (py::cast<py::array>(value).flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_);
    if (!aligned || !Array::check_(value))
      refuse(std::string(name) + ": expected an aligned C-contiguous array of " +
             std::string(py::str(py::dtype::of<T>())) + ", got " +
             std::string(py::repr(py::type::of(value))));
    const auto array = py::cast<Array>(value);
    return {const_cast<T*>(array.data()), Shape(array.shape(), array.shape() + array.ndim())};
  }
};

// (address, shape) of memory on a GPU.
struct DeviceMemory {
  static constexpr bool images_only = true;

  template <class T>
  static Memory<T> take(const char* name, const py::object& value) {
    const auto [address, shape] =
        converted<std::pair<uintptr_t, Shape>>(value, name, "(address, shape) of memory on a GPU");
    return {reinterpret_cast<T*>(address), shape};
  }
};

// ---- the parser

// A problem with what keeps the memory that it points to.
struct Parsed {
  Problem problem;
  Shape shape;
  std::vector<py::object> arrays;
};

inline std::string text(const Shape& shape) { return py::str(py::tuple(py::cast(shape))); }

// Where an array lies, if there is one; it has to have the expected shape.
template <class T>
T* address_of(const char* name, const Memory<T>& memory, const Shape& expected) {
  if (memory.address && memory.shape != expected)
    refuse(std::string(name) + ": expected shape " + text(expected) + ", got " +
           text(memory.shape));
  return memory.address;
}

// The array under `name`, if there is one.
template <class Source, class T>
Memory<T> array_in(const py::dict& from, const char* name, Parsed& parsed) {
  if (!from.contains(name) || from[name].is_none()) return {};
  parsed.arrays.push_back(from[name]);
  return Source::template take<T>(name, parsed.arrays.back());
}

template <class Source, class T>
T* array_in(const py::dict& from, const char* name, Parsed& parsed, const Shape& expected) {
  return address_of(name, array_in<Source, T>(from, name, parsed), expected);
}

inline Shape maps_shape(const Parsed& parsed) {
  Shape shape = parsed.shape;
  shape.insert(shape.begin(), parsed.problem.labels);
  return shape;
}

// The shape, its pixels counted.
template <class Source>
void parse_shape(const py::dict& given, Parsed& parsed) {
  const auto shape = converted<Shape>(entry(given, "shape"), "shape", "whole numbers");
  if (Source::images_only && (shape.size() != 2 || shape[0] <= 0 || shape[1] <= 0))
    refuse("shape: CUDA takes images (H, W) with at least one pixel, got " + text(shape) +
           "; use backend 'torch' for other shapes");
  Problem& problem = parsed.problem;
  problem.pixels = 1;
  for (const int64_t side : shape)
    if (side <= 0 || __builtin_mul_overflow(problem.pixels, side, &problem.pixels))
      refuse("image: expected at least one pixel and fewer than 2^31, got shape " + text(shape));
  if (shape.size() == 2) problem.height = shape[0], problem.width = shape[1];
  parsed.shape = shape;
}

// The energies: unary, or labels with a table.
template <class Source>
void parse_energies(const py::dict& given, Parsed& parsed) {
  Problem& problem = parsed.problem;
  const Memory<float> unary = array_in<Source, float>(given, "unary", parsed);
  const Memory<float> table = array_in<Source, float>(given, "table", parsed);
  problem.label_map = array_in<Source, uint8_t>(given, "labels", parsed, parsed.shape);
  check(unary.address ? !unary.shape.empty() : table.shape.size() == 2 && problem.label_map,
        "unary: expected unary, or labels and a table [V, L]");
  const int64_t labels = unary.address ? unary.shape[0] : table.shape[1];
  check(labels >= 1 && labels <= kMaxLabels,
        "labels: expected 1 to 255, got " + std::to_string(labels));
  problem.labels = static_cast<int>(labels);
  problem.unary = address_of("unary", unary, maps_shape(parsed));
  problem.table = table.address;
  if (table.shape.size() == 2)
    problem.table_rows = static_cast<int>(std::min<int64_t>(table.shape[0], 256));
}

inline Normalization parse_normalization(const std::string& name) {
  if (name == "symmetric") return Normalization::symmetric;
  if (name == "before") return Normalization::before;
  if (name == "after") return Normalization::after;
  if (name == "none") return Normalization::none;
  refuse("normalization: expected symmetric, before, after or none, got " + name);
}

// The label compatibility, a vector or a matrix.
inline std::vector<float> parse_compat(const py::object& value, int64_t labels) {
  check(!value.is_none(), "compat: expected an array, got None");
  const Memory<float> compat = NumpyArrays::take<float>("compat", value);
  check(compat.shape == Shape{labels} || compat.shape == Shape{labels, labels},
        "compat: expected [" + std::to_string(labels) + "] or square, got shape " +
            text(compat.shape));
  const int64_t count = compat.shape.size() == 1 ? labels : labels * labels;
  return std::vector<float>(compat.address, compat.address + count);
}

template <class Source>
Kernel parse_kernel(const py::dict& given, Parsed& parsed) {
  Kernel kernel;
  const Problem& problem = parsed.problem;
  if (given.contains("features") && !given["features"].is_none()) {
    check(!Source::images_only,
          "features: CUDA takes kernels of an image's pixels and colours; use backend 'torch'");
    const Memory<float> features = array_in<Source, float>(given, "features", parsed);
    check(features.shape.size() == 2 && features.shape[1] == problem.pixels,
          "features: expected [d, " + std::to_string(problem.pixels) + "], got " +
              text(features.shape));
    kernel.dimensions = static_cast<int>(std::min<int64_t>(features.shape[0], 99));
    kernel.features = features.address;
  } else {
    const auto deviations = converted<std::vector<float>>(entry(given, "deviations"), "deviations",
                                                          "2 or 5 numbers, or features");
    check(deviations.size() == 2 || deviations.size() == 5,
          "deviations: expected 2 or 5 numbers, got " + std::to_string(deviations.size()));
    kernel.dimensions = static_cast<int>(deviations.size());
    std::copy(deviations.begin(), deviations.end(), kernel.deviations);
  }
  kernel.compat = parse_compat(entry(given, "compat"), problem.labels);
  kernel.normalization = parse_normalization(
      converted<std::string>(entry(given, "normalization"), "normalization", "a name"));
  return kernel;
}

template <class Source>
Parsed parse_problem(const py::dict& given) {
  Parsed parsed;
  parse_shape<Source>(given, parsed);
  Shape colours = parsed.shape;
  colours.push_back(3);
  parsed.problem.image = array_in<Source, uint8_t>(given, "image", parsed, colours);
  parse_energies<Source>(given, parsed);
  for (const py::handle& kernel : converted<py::list>(entry(given, "kernels"), "kernels", "a list"))
    parsed.problem.kernels.push_back(
        parse_kernel<Source>(converted<py::dict>(kernel, "kernels", "a dict for each"), parsed));
  return parsed;
}

// A problem whose dict says where the results go: marginals, argmax, confidence.
template <class Source>
Parsed parse_problem_with_outputs(const py::dict& given) {
  Parsed parsed = parse_problem<Source>(given);
  Problem& problem = parsed.problem;
  problem.marginals = array_in<Source, float>(given, "marginals", parsed, maps_shape(parsed));
  problem.argmax = array_in<Source, uint8_t>(given, "argmax", parsed, parsed.shape);
  problem.confidence = array_in<Source, float>(given, "confidence", parsed, parsed.shape);
  return parsed;
}

// parse(dict) of every dict of a list.
template <class Parse>
std::vector<Parsed> parse_list(const py::list& given, const Parse& parse) {
  std::vector<Parsed> parsed;
  for (const py::handle& problem : given)
    parsed.push_back(parse(converted<py::dict>(problem, "problems", "a dict for each")));
  return parsed;
}

inline std::vector<Problem> problems_of(const std::vector<Parsed>& parsed) {
  std::vector<Problem> problems;
  for (const Parsed& each : parsed) problems.push_back(each.problem);
  return problems;
}

}  // namespace weaktr
