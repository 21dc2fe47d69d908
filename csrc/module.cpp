// weaktr._native, the Python module of the compiled ops: NumPy arrays in and out, the GIL released
// during the work.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/isa.hpp"
#include "common/threads.hpp"

namespace weaktr {

void bind_attention(pybind11::module_& module);   // attention/binding.cpp
void bind_dense_crf(pybind11::module_& module);   // dense_crf/binding.cpp
void bind_fuse_heads(pybind11::module_& module);  // fuse_heads/binding.cpp

}  // namespace weaktr

PYBIND11_MODULE(_native, module) {
  module.doc() = "weaktr's compiled ops; cpu.py and cuda.py of weaktr.ops wrap them";
  module.def("isa_levels", &weaktr::isa_levels,
             "Instruction sets that this processor can run, best first.");
  module.def("has_bfloat16", &weaktr::has_bfloat16, "Whether this processor multiplies bfloat16.");
  module.def(
      "use_openmp", &weaktr::use_openmp, pybind11::arg("gomp_parallel"),
      "Threads of the OpenMP runtime with this GOMP_parallel for all but the CRF; 0: our own.");
  weaktr::bind_attention(module);
  weaktr::bind_fuse_heads(module);
  weaktr::bind_dense_crf(module);
}
