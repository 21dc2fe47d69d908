// Python binding of the emulation; a problem is the dict of `dense_crf_cuda`, or of
// `dense_crf_cpu` as far as CUDA takes it.
#include "dense_crf/parse.hpp"
#include "emulation/emulation.hpp"

namespace weaktr {
namespace {

// Of the host: arrays, or (address, shape) as CUDA takes them.
struct EmulatedMemory {
  static constexpr bool images_only = true;

  template <class T>
  static Memory<T> take(const char* name, const py::object& value) {
    if (py::isinstance<py::tuple>(value)) return DeviceMemory::take<T>(name, value);
    return NumpyArrays::take<T>(name, value);
  }
};

// Fills the arrays marginals, argmax and confidence of the dicts, where they are. Returns the
// marginals of each, None where there was an array for them.
py::list emulate(const py::list& given, int iterations, uint32_t seed) {
  std::vector<Parsed> parsed = parse_list(given, parse_problem_with_outputs<EmulatedMemory>);
  py::list results;
  for (Parsed& each : parsed) {
    if (each.problem.marginals) {
      results.append(py::none());
      continue;
    }
    py::array_t<float> marginals(maps_shape(each));
    each.problem.marginals = marginals.mutable_data();
    results.append(marginals);
  }
  const py::gil_scoped_release release;
  dense_crf_emulated(problems_of(parsed), iterations, Schedule{seed, 1});
  return results;
}

}  // namespace
}  // namespace weaktr

PYBIND11_MODULE(weaktr_emulation, module) {
  module.doc() = "weaktr's CUDA code on the CPU, for tests";
  module.def("dense_crf_emulated", &weaktr::emulate, pybind11::arg("problems"),
             pybind11::arg("iterations"), pybind11::arg("seed") = 0,
             "The CUDA code on the CPU, thread by thread: marginals of a list of problems.");
}
