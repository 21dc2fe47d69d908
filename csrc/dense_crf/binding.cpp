// Python bindings of the dense CRF, on the CPU and on a GPU: problems in (parse.hpp), the GIL
// released during the work.
#include <pybind11/functional.h>

#include "dense_crf/cpu/driver.hpp"
#include "dense_crf/parse.hpp"
#if defined(WEAKTR_WITH_CUDA)
#include "dense_crf/cuda/launch.hpp"
#endif

namespace weaktr {
namespace {

// New arrays for the results, into which the problem is solved: what the caller gets.
py::object make_results(Parsed& parsed, const std::string& output) {
  Problem& problem = parsed.problem;
  if (output == "marginals") {
    py::array_t<float> marginals(maps_shape(parsed));
    problem.marginals = marginals.mutable_data();
    return marginals;
  }
  py::array_t<uint8_t> labels(parsed.shape);
  problem.argmax = labels.mutable_data();
  if (output == "labels") return labels;
  check(output == "labels+confidence",
        "output: expected marginals, labels or labels+confidence, got " + output);
  py::array_t<float> confidence(parsed.shape);
  problem.confidence = confidence.mutable_data();
  return py::make_tuple(labels, confidence);
}

py::list solve(const py::list& given, int iterations, int threads, const std::string& isa,
               const std::string& output) {
  std::vector<Parsed> parsed = parse_list(given, parse_problem<NumpyArrays>);
  py::list results;
  for (Parsed& each : parsed) results.append(make_results(each, output));
  const py::gil_scoped_release release;
  dense_crf_cpu(problems_of(parsed), iterations, threads, isa);
  return results;
}

#if defined(WEAKTR_WITH_CUDA)

void solve_on_gpu(const py::list& given, int iterations, uintptr_t stream,
                  const std::function<uintptr_t(size_t)>& allocate) {
  const std::vector<Parsed> parsed = parse_list(given, parse_problem_with_outputs<DeviceMemory>);
  const auto allocate_memory = [&](size_t bytes) {  // takes the GIL
    return reinterpret_cast<void*>(allocate(bytes));
  };
  const py::gil_scoped_release release;
  dense_crf_cuda(problems_of(parsed), iterations, reinterpret_cast<void*>(stream), allocate_memory);
}

void bind_cuda(py::module_& module) {
  module.def("dense_crf_cuda", &solve_on_gpu, py::arg("problems"), py::arg("iterations"),
             py::arg("stream"), py::arg("allocate"),
             "Mean-field inference of a list of problems on a GPU, enqueued on a stream; fills the "
             "problems' output arrays.");
  module.def(
      "dense_crf_cuda_bytes",
      [](const py::list& given) {
        const std::vector<Parsed> parsed =
            parse_list(given, parse_problem_with_outputs<DeviceMemory>);
        return dense_crf_cuda_bytes(problems_of(parsed));
      },
      py::arg("problems"),
      "Device memory that dense_crf_cuda allocates for each problem, in bytes.");
  module.def("has_cuda", [] { return true; }, "Whether the CUDA code was built.");
}

#else

void bind_cuda(py::module_& module) {
  module.def("has_cuda", [] { return false; }, "Whether the CUDA code was built.");
}

#endif

}  // namespace

void bind_dense_crf(py::module_& module) {
  module.def("dense_crf_cpu", &solve, py::arg("problems"), py::arg("iterations"),
             py::arg("num_threads"), py::arg("isa") = "auto", py::arg("output") = "marginals",
             "Mean-field inference of a list of problems; see weaktr.ops.dense_crf.");
  module.def("release_memory", &release_memory,
             "Free the work space that is kept from call to call.");
  bind_cuda(module);
}

}  // namespace weaktr
