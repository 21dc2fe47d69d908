// Python binding of fuse_heads: NumPy arrays of float32, q and k also of bfloat16 as uint16, read
// where they lie.
#include "common/binding.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "common/isa.hpp"
#include "fuse_heads/fuse_heads.hpp"

namespace py = pybind11;

namespace weaktr {
namespace {

typedef py::array_t<float> Array;
typedef py::array_t<float, py::array::c_style> Dense;

template <class Number>
Rows<Number> rows_of(const char* name, const py::array_t<Number>& array) {
  const Rows<Number> rows{array.data(), step(name, array, 0), step(name, array, 1)};
  if (array.ndim() == 3 && array.size() && array.shape(2) > 1 && step(name, array, 2) != 1)
    refuse(std::string(name) + ": expected the numbers of a row side by side");
  if (sizeof(Number) == 2 &&
      (reinterpret_cast<uintptr_t>(rows.data) % 4 || rows.map_stride % 2 || rows.row_stride % 2))
    refuse(std::string(name) + ": expected rows that begin at multiples of four bytes");
  return rows;
}

template <class Number, class Run>
Dense fuse(const py::array_t<Number>& q, const py::array_t<Number>& k, const Array& lse,
           const Dense& weights, const Dense& values, float scale, const Run& run) {
  if (q.ndim() != 3) refuse("q: expected [M, P, d], got " + std::to_string(q.ndim()) + " axes");
  if (values.ndim() != 2)
    refuse("values: expected [P, C'], got " + std::to_string(values.ndim()) + " axes");
  FusedMaps<Number> maps;
  maps.maps = q.shape(0), maps.patches = q.shape(1), maps.width = q.shape(2);
  maps.channels = values.shape(1);
  if (sizeof(Number) == 2 && maps.width % 2)
    refuse("q: expected an even d in bfloat16, got " + std::to_string(maps.width));
  check_shape("k", k, {maps.maps, maps.patches, maps.width});
  check_shape("lse", lse, {maps.maps, maps.patches});
  check_shape("weights", weights, {maps.maps});
  check_shape("values", values, {maps.patches, maps.channels});
  Dense fine({maps.patches, maps.channels});
  maps.q = rows_of("q", q), maps.k = rows_of("k", k), maps.lse = rows_of("lse", lse);
  maps.weights = weights.data(), maps.values = values.data(), maps.fine = fine.mutable_data();
  maps.scale = scale;
  const py::gil_scoped_release release;
  run(maps);
  return fine;
}

}  // namespace

void bind_fuse_heads(py::module_& module) {
  const char* text =
      "All maps of an image, weighted and multiplied by values; see weaktr.ops.fuse_heads.";
  module.def(
      "fuse_heads_cpu",
      [](const Array& q, const Array& k, const Array& lse, const Dense& weights,
         const Dense& values, float scale, int threads, const std::string& isa) {
        return fuse(q, k, lse, weights, values, scale,
                    [&](const FusedMaps<float>& maps) { fuse_heads_cpu(maps, threads, isa); });
      },
      py::arg("q").noconvert(), py::arg("k").noconvert(), py::arg("lse").noconvert(),
      py::arg("weights").noconvert(), py::arg("values").noconvert(), py::arg("scale"),
      py::arg("num_threads"), py::arg("isa") = "auto", text);
  module.def(
      "fuse_heads_cpu_bfloat16",
      [](const py::array_t<Bfloat16>& q, const py::array_t<Bfloat16>& k, const Array& lse,
         const Dense& weights, const Dense& values, float scale, int threads) {
        return fuse(q, k, lse, weights, values, scale,
                    [&](const FusedMaps<Bfloat16>& maps) { fuse_heads_cpu(maps, threads); });
      },
      py::arg("q").noconvert(), py::arg("k").noconvert(), py::arg("lse").noconvert(),
      py::arg("weights").noconvert(), py::arg("values").noconvert(), py::arg("scale"),
      py::arg("num_threads"), text);
}

}  // namespace weaktr
