// Python bindings of the CUDA code and of its emulation. A problem is the dict of `dense_crf_cpu`;
// for CUDA its arrays are (address, shape) of device memory, compat excepted.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "dense_crf/check.hpp"
#include "dense_crf/cuda/emulation.hpp"
#if defined(WEAKTR_WITH_CUDA)
#include "dense_crf/cuda/launch.hpp"
#endif

namespace py = pybind11;

namespace weaktr {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Shape = std::vector<int64_t>;

std::string text(const Shape& shape) { return py::str(py::tuple(py::cast(shape))); }

template <class T>
struct Memory {
  T* address = nullptr;
  Shape shape;
};

// What a dict's entry points to: (address, shape), or an array of exactly this type and layout.
template <class T>
Memory<T> memory_in(const py::dict& from, const char* name) {
  if (!from.contains(name) || from[name].is_none()) return {};
  const py::object value = from[name];
  if (py::isinstance<py::tuple>(value)) {
    const auto [address, shape] = value.cast<std::pair<uintptr_t, Shape>>();
    return {reinterpret_cast<T*>(address), shape};
  }
  if (!Array<T>::check_(value))
    refuse(std::string(name) + ": expected a C-contiguous array of " +
           std::string(py::str(py::dtype::of<T>())) + ", got " +
           std::string(py::repr(py::type::of(value))));
  const auto array = py::cast<Array<T>>(value);
  return {const_cast<T*>(array.data()), Shape(array.shape(), array.shape() + array.ndim())};
}

template <class T>
T* memory_in(const py::dict& from, const char* name, const Shape& expected) {
  const Memory<T> memory = memory_in<T>(from, name);
  check(!memory.address || memory.shape == expected,
        std::string(name) + ": expected shape " + text(expected) + ", got " + text(memory.shape));
  return memory.address;
}

Normalization normalization_from(const std::string& name) {
  if (name == "symmetric") return Normalization::symmetric;
  if (name == "before") return Normalization::before;
  if (name == "after") return Normalization::after;
  if (name == "none") return Normalization::none;
  refuse("normalization: expected symmetric, before, after or none, got " + name);
}

Kernel read_kernel(const py::dict& given, const Problem& problem) {
  Kernel kernel;
  check(!given.contains("features") || given["features"].is_none(),
        "features: CUDA takes kernels of an image's pixels and colours; use backend 'torch'");
  const auto deviations = given["deviations"].cast<std::vector<float>>();
  check(deviations.size() == 2 || deviations.size() == 5,
        "deviations: expected 2 or 5 numbers, got " + std::to_string(deviations.size()));
  kernel.dimensions = static_cast<int>(deviations.size());
  std::copy(deviations.begin(), deviations.end(), kernel.deviations);
  const auto compat = py::cast<Array<float>>(given["compat"]);
  const py::ssize_t labels = problem.labels;
  const bool vector = compat.ndim() == 1 && compat.shape(0) == labels;
  const bool matrix = compat.ndim() == 2 && compat.shape(0) == labels && compat.shape(1) == labels;
  check(vector || matrix, "compat: expected [" + std::to_string(labels) +
                              "] or square, got shape " +
                              text(Shape(compat.shape(), compat.shape() + compat.ndim())));
  kernel.compat.assign(compat.data(), compat.data() + compat.size());
  kernel.normalization = normalization_from(given["normalization"].cast<std::string>());
  return kernel;
}

Problem read_problem(const py::dict& given) {
  Problem problem;
  const auto shape = given["shape"].cast<Shape>();
  check(shape.size() == 2 && shape[0] > 0 && shape[1] > 0,
        "shape: CUDA takes images (H, W) with at least one pixel, got " + text(shape) +
            "; use backend 'torch' for other shapes");
  problem.height = shape[0];
  problem.width = shape[1];
  problem.pixels = shape[0] * shape[1];
  problem.image = memory_in<uint8_t>(given, "image", {shape[0], shape[1], 3});
  const Memory<float> unary = memory_in<float>(given, "unary");
  const Memory<float> table = memory_in<float>(given, "table");
  problem.label_map = memory_in<uint8_t>(given, "labels", shape);
  check(unary.address ? !unary.shape.empty() : table.shape.size() == 2 && problem.label_map,
        "unary: expected unary, or labels and a table [V, L]");
  const int64_t labels = unary.address ? unary.shape[0] : table.shape[1];
  check(labels >= 1 && labels <= kMaxLabels,
        "labels: expected 1 to 255, got " + std::to_string(labels));
  problem.labels = static_cast<int>(labels);
  const Shape maps = {labels, shape[0], shape[1]};
  problem.unary = memory_in<float>(given, "unary", maps);
  problem.table = table.address;
  problem.table_rows = table.address ? static_cast<int>(std::min<int64_t>(table.shape[0], 256)) : 0;
  for (const py::handle& kernel : given["kernels"])
    problem.kernels.push_back(read_kernel(py::cast<py::dict>(kernel), problem));
  problem.marginals = memory_in<float>(given, "marginals", maps);
  problem.argmax = memory_in<uint8_t>(given, "argmax", shape);
  problem.confidence = memory_in<float>(given, "confidence", shape);
  return problem;
}

std::vector<Problem> read_problems(const py::list& given) {
  std::vector<Problem> problems;
  for (const py::handle& each : given) problems.push_back(read_problem(py::cast<py::dict>(each)));
  return problems;
}

// Emulates the GPU: fills the arrays marginals, argmax and confidence of the dicts, where they are.
// Returns the marginals of each, None where there was an array for them.
py::list emulate(const py::list& given, int iterations, bool deterministic, uint32_t seed) {
  std::vector<Problem> problems = read_problems(given);
  py::list results;
  for (Problem& problem : problems) {
    if (problem.marginals) {
      results.append(py::none());
      continue;
    }
    Array<float> marginals(Shape{problem.labels, problem.height, problem.width});
    problem.marginals = marginals.mutable_data();
    results.append(marginals);
  }
  const py::gil_scoped_release release;
  dense_crf_emulated(problems, iterations, deterministic, Schedule{seed, 1});
  return results;
}

#if defined(WEAKTR_WITH_CUDA)

void run(const py::list& given, int iterations, uintptr_t stream,
         const std::function<uintptr_t(size_t)>& allocate, bool deterministic) {
  const std::vector<Problem> problems = read_problems(given);
  const auto allocate_memory = [&](size_t bytes) {  // takes the GIL
    return reinterpret_cast<void*>(allocate(bytes));
  };
  const py::gil_scoped_release release;
  dense_crf_cuda(problems, iterations, reinterpret_cast<void*>(stream), allocate_memory,
                 deterministic);
}

#endif

}  // namespace

void bind_cuda(py::module_& module) {
  module.def("dense_crf_emulated", &emulate, py::arg("problems"), py::arg("iterations"),
             py::arg("deterministic"), py::arg("seed") = 0,
             "The CUDA code on the CPU, thread by thread: marginals of a list of problems.");
#if defined(WEAKTR_WITH_CUDA)
  module.def("dense_crf_cuda", &run, py::arg("problems"), py::arg("iterations"), py::arg("stream"),
             py::arg("allocate"), py::arg("deterministic"),
             "Mean-field inference of a list of problems on a GPU, enqueued on a stream; fills the "
             "problems' output arrays.");
  module.def(
      "dense_crf_cuda_bytes",
      [](const py::list& given, bool deterministic) {
        return dense_crf_cuda_bytes(read_problems(given), deterministic);
      },
      py::arg("problems"), py::arg("deterministic"),
      "Device memory that one call of dense_crf_cuda allocates, in bytes.");
  module.def("has_cuda", [] { return true; }, "Whether the CUDA code was built.");
#else
  module.def("has_cuda", [] { return false; }, "Whether the CUDA code was built.");
#endif
}

}  // namespace weaktr
