// Python binding of attention: NumPy arrays of float32, or of bfloat16 as uint16, read where they
// lie.
#include "common/binding.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "attention/attention.hpp"

namespace py = pybind11;

namespace weaktr {
namespace {

// [B, H, N, d] of any strides, but the numbers of a row side by side.
template <class Number>
HeadRows<Number> head_rows(const char* name, const py::array_t<std::remove_const_t<Number>>& array,
                           Number* data) {
  if (array.size() && array.shape(3) > 1 && step(name, array, 3) != 1)
    refuse(std::string(name) + ": expected the numbers of a row side by side");
  return {data, step(name, array, 0), step(name, array, 1), step(name, array, 2)};
}

template <class Number>
Attention<Number> maps_of(const py::array_t<Number>& q, const py::array_t<Number>& k,
                          const py::array_t<Number>& v) {
  if (q.ndim() != 4) refuse("q: expected [B, H, N, d], got " + std::to_string(q.ndim()) + " axes");
  const std::vector<py::ssize_t> shape(q.shape(), q.shape() + 4);
  check_shape("k", k, shape);
  check_shape("v", v, shape);
  Attention<Number> maps;
  maps.images = shape[0], maps.heads = shape[1], maps.tokens = shape[2], maps.width = shape[3];
  maps.q = head_rows<const Number>("q", q, q.data());
  maps.k = head_rows<const Number>("k", k, k.data());
  maps.v = head_rows<const Number>("v", v, v.data());
  return maps;
}

// out, lse and, of C classes and P patches, class rows and column means.
template <class Number, class Run>
py::tuple attend(const py::array_t<Number>& q, const py::array_t<Number>& k,
                 const py::array_t<Number>& v, float scale, int64_t classes, int64_t patches,
                 const Run& run) {
  Attention<Number> maps = maps_of(q, k, v);
  if (sizeof(Number) == 2 && maps.width % 2)
    refuse("q: expected an even d in bfloat16, got " + std::to_string(maps.width));
  if (classes < 0 || patches < 0 || classes + patches > maps.tokens)
    refuse("classes, patches: expected at most N = " + std::to_string(maps.tokens) +
           " together, got " + std::to_string(classes) + " and " + std::to_string(patches));
  maps.scale = scale, maps.classes = classes, maps.patches = patches;
  py::array_t<Number> out({maps.images, maps.tokens, maps.heads, maps.width});
  py::array_t<float> lse({maps.images, maps.heads, maps.tokens});
  py::array_t<float> rows({maps.images, maps.heads, classes, patches});
  py::array_t<float> means({maps.images, maps.heads, patches});
  maps.out = {out.mutable_data(), maps.tokens * maps.heads * maps.width, maps.width,
              maps.heads * maps.width};
  maps.lse = lse.mutable_data(), maps.class_rows = rows.mutable_data();
  float* columns = patches ? means.mutable_data() : nullptr;
  {
    const py::gil_scoped_release release;
    run(maps, columns);
  }
  return py::make_tuple(out, lse, rows, means);
}

}  // namespace

void bind_attention(py::module_& module) {
  const char* text =
      "Softmax attention [B, H, N, d] -> (out [B, N, H, d], lse [B, H, N], class rows "
      "[B, H, C, P], column means [B, H, P]); see weaktr.ops.attention.";
  module.def(
      "attention_cpu",
      [](const py::array_t<float>& q, const py::array_t<float>& k, const py::array_t<float>& v,
         float scale, int64_t classes, int64_t patches, int threads, const std::string& isa) {
        return attend(q, k, v, scale, classes, patches,
                      [&](const Attention<float>& maps, float* columns) {
                        attention_cpu(maps, columns, threads, isa);
                      });
      },
      py::arg("q").noconvert(), py::arg("k").noconvert(), py::arg("v").noconvert(),
      py::arg("scale"), py::arg("classes"), py::arg("patches"), py::arg("num_threads"),
      py::arg("isa") = "auto", text);
  module.def(
      "attention_cpu_bfloat16",
      [](const py::array_t<Bfloat16>& q, const py::array_t<Bfloat16>& k,
         const py::array_t<Bfloat16>& v, float scale, int64_t classes, int64_t patches,
         int threads) {
        return attend(q, k, v, scale, classes, patches,
                      [&](const Attention<Bfloat16>& maps, float* columns) {
                        attention_cpu(maps, columns, threads);
                      });
      },
      py::arg("q").noconvert(), py::arg("k").noconvert(), py::arg("v").noconvert(),
      py::arg("scale"), py::arg("classes"), py::arg("patches"), py::arg("num_threads"), text);
}

}  // namespace weaktr
