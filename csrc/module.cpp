// Python bindings of the compiled ops: NumPy arrays in and out, the GIL released during the work.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "common/isa.hpp"
#include "common/threads.hpp"
#include "dense_crf/check.hpp"
#include "dense_crf/cpu/driver.hpp"

namespace py = pybind11;

namespace weaktr {

void bind_cuda(py::module_& module);        // dense_crf/binding.cpp
void bind_attention(py::module_& module);   // attention/binding.cpp
void bind_fuse_heads(py::module_& module);  // fuse_heads/binding.cpp

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

// An entry of a dict that has to be there.
py::object entry(const py::dict& from, const char* name) {
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

// An entry of a dict as an array of exactly this type and layout; none where it is None.
template <class T>
std::optional<Array<T>> array_in(const py::dict& from, const char* name) {
  if (!from.contains(name) || from[name].is_none()) return std::nullopt;
  const py::object value = from[name];
  const bool aligned =
      py::isinstance<py::array>(value) &&
      (py::cast<py::array>(value).flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_);
  if (!aligned || !Array<T>::check_(value))
    refuse(std::string(name) + ": expected an aligned C-contiguous array of " +
           std::string(py::str(py::dtype::of<T>())) + ", got " +
           std::string(py::repr(py::type::of(value))));
  return py::cast<Array<T>>(value);
}

Normalization normalization_from(const std::string& name) {
  if (name == "symmetric") return Normalization::symmetric;
  if (name == "before") return Normalization::before;
  if (name == "after") return Normalization::after;
  if (name == "none") return Normalization::none;
  refuse("normalization: expected symmetric, before, after or none, got " + name);
}

// A problem and the arrays that its pointers look into.
struct Held {
  Problem problem;
  std::vector<py::object> inputs;
  std::vector<int64_t> shape;
  py::object marginals = py::none(), argmax = py::none(), confidence = py::none();

  template <class T>
  const T* hold(const std::optional<Array<T>>& array) {
    if (!array) return nullptr;
    inputs.push_back(*array);
    return array->data();
  }
};

void add_kernel(Held& held, const py::dict& given) {
  Kernel kernel;
  const auto features = array_in<float>(given, "features");
  if (features) {
    if (features->ndim() != 2 || features->shape(1) != held.problem.pixels)
      refuse("features: expected [d, " + std::to_string(held.problem.pixels) + "], got " +
             shape_of(*features));
    kernel.dimensions = static_cast<int>(std::min<py::ssize_t>(features->shape(0), 99));
    kernel.features = held.hold(features);
  } else {
    const auto deviations = converted<std::vector<float>>(entry(given, "deviations"), "deviations",
                                                          "2 or 5 numbers, or features");
    kernel.dimensions = static_cast<int>(deviations.size());
    if (deviations.size() != 2 && deviations.size() != 5)
      refuse("deviations: expected 2 or 5 numbers, got " + std::to_string(deviations.size()));
    std::copy(deviations.begin(), deviations.end(), kernel.deviations);
  }
  const auto compat = array_in<float>(given, "compat");
  if (!compat) refuse("compat: expected an array, got None");
  const py::ssize_t labels = held.problem.labels;
  const bool vector = compat->ndim() == 1 && compat->shape(0) == labels;
  const bool matrix =
      compat->ndim() == 2 && compat->shape(0) == labels && compat->shape(1) == labels;
  if (!vector && !matrix)
    refuse("compat: expected [" + std::to_string(labels) + "] or [" + std::to_string(labels) +
           ", " + std::to_string(labels) + "], got " + shape_of(*compat));
  kernel.compat.assign(compat->data(), compat->data() + compat->size());
  kernel.normalization = normalization_from(
      converted<std::string>(entry(given, "normalization"), "normalization", "a name"));
  held.problem.kernels.push_back(kernel);
}

// The energies: unary, or labels with a table.
void add_energies(Held& held, const py::dict& given) {
  Problem& problem = held.problem;
  const auto unary = array_in<float>(given, "unary");
  const auto table = array_in<float>(given, "table");
  const auto labels = array_in<uint8_t>(given, "labels");
  if (unary) {
    if (unary->ndim() < 1 || unary->shape(0) * problem.pixels != unary->size())
      refuse("unary: expected [L, ...] for " + std::to_string(problem.pixels) + " pixels, got " +
             shape_of(*unary));
    problem.labels = static_cast<int>(std::min<py::ssize_t>(unary->shape(0), 1 << 20));
  } else {
    if (!table || table->ndim() != 2 || !labels || labels->size() != problem.pixels)
      refuse("unary: expected unary, or labels for " + std::to_string(problem.pixels) +
             " pixels and a table [V, L]");
    problem.table_rows = static_cast<int>(std::min<py::ssize_t>(table->shape(0), 256));
    problem.labels = static_cast<int>(std::min<py::ssize_t>(table->shape(1), 1 << 20));
  }
  problem.unary = held.hold(unary);
  problem.table = held.hold(table);
  problem.label_map = held.hold(labels);
}

void add_outputs(Held& held, const std::string& output) {
  std::vector<py::ssize_t> shape(held.shape.begin(), held.shape.end());
  if (output == "marginals") {
    shape.insert(shape.begin(), held.problem.labels);
    Array<float> marginals(shape);
    held.problem.marginals = marginals.mutable_data();
    held.marginals = marginals;
    return;
  }
  Array<uint8_t> argmax(shape);
  held.problem.argmax = argmax.mutable_data();
  held.argmax = argmax;
  if (output == "labels") return;
  if (output != "labels+confidence")
    refuse("output: expected marginals, labels or labels+confidence, got " + output);
  Array<float> confidence(shape);
  held.problem.confidence = confidence.mutable_data();
  held.confidence = confidence;
}

// The shape of a problem, its pixels counted.
void add_shape(Held& held, const py::dict& given) {
  held.shape = converted<std::vector<int64_t>>(entry(given, "shape"), "shape", "whole numbers");
  Problem& problem = held.problem;
  problem.pixels = 1;
  for (const int64_t side : held.shape)
    if (side <= 0 || __builtin_mul_overflow(problem.pixels, side, &problem.pixels))
      refuse("image: expected at least one pixel and fewer than 2^31, got shape " +
             std::string(py::str(given["shape"])));
  if (held.shape.size() == 2) problem.height = held.shape[0], problem.width = held.shape[1];
}

Held read_problem(const py::dict& given, const std::string& output) {
  Held held;
  Problem& problem = held.problem;
  add_shape(held, given);
  const auto image = array_in<uint8_t>(given, "image");
  if (image && (image->ndim() != 3 || image->shape(0) != problem.height ||
                image->shape(1) != problem.width || image->shape(2) != 3))
    refuse("image: expected [" + std::to_string(problem.height) + ", " +
           std::to_string(problem.width) + ", 3], got " + shape_of(*image));
  problem.image = held.hold(image);
  add_energies(held, given);
  if (problem.labels < 1 || problem.labels > kMaxLabels)
    refuse("labels: expected 1 to 255, got " + std::to_string(problem.labels));
  for (const py::handle& kernel : converted<py::list>(entry(given, "kernels"), "kernels", "a list"))
    add_kernel(held, converted<py::dict>(kernel, "kernels", "a dict for each"));
  add_outputs(held, output);
  return held;
}

py::list run(const py::list& given, int iterations, int threads, const std::string& isa,
             const std::string& output) {
  std::vector<Held> held;
  for (const py::handle& problem : given)
    held.push_back(
        read_problem(converted<py::dict>(problem, "problems", "a dict for each"), output));
  std::vector<Problem> problems;
  for (const Held& each : held) problems.push_back(each.problem);
  {
    const py::gil_scoped_release release;
    dense_crf_cpu(problems, iterations, threads, isa);
  }
  py::list results;
  for (const Held& each : held) {
    if (output == "marginals")
      results.append(each.marginals);
    else if (output == "labels")
      results.append(each.argmax);
    else
      results.append(py::make_tuple(each.argmax, each.confidence));
  }
  return results;
}

}  // namespace
}  // namespace weaktr

PYBIND11_MODULE(_native, module) {
  module.doc() = "weaktr's compiled ops; weaktr.native wraps them";
  module.def("dense_crf_cpu", &weaktr::run, py::arg("problems"), py::arg("iterations"),
             py::arg("num_threads"), py::arg("isa") = "auto", py::arg("output") = "marginals",
             "Mean-field inference of a list of problems; see weaktr.ops.dense_crf.");
  module.def("isa_levels", &weaktr::isa_levels,
             "Instruction sets that this processor can run, best first.");
  module.def("has_bfloat16", &weaktr::has_bfloat16, "Whether this processor multiplies bfloat16.");
  module.def("release_memory", &weaktr::release_memory,
             "Free the work space that is kept from call to call.");
  module.def(
      "use_openmp", &weaktr::use_openmp, py::arg("gomp_parallel"),
      "Threads of the OpenMP runtime with this GOMP_parallel for all but the CRF; 0: our own.");
  weaktr::bind_attention(module);
  weaktr::bind_fuse_heads(module);
  weaktr::bind_cuda(module);
}
