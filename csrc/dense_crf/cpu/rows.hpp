// Rows of P floats (one number a channel) in vector registers. Included once per instruction set.
#pragma once

#include "common/vectors.hpp"

namespace weaktr {
namespace WEAKTR_ISA {

constexpr int head_width(int width) {
  return width >= kLanes ? kLanes : width >= 8 && kLanes > 8 ? 8 : width >= 4 ? 4 : 1;
}

template <int Width>
struct HeadOf {
  typedef typename Lanes<Width>::Float Float;
};
template <>
struct HeadOf<1> {
  typedef float Float;
};

// P floats: the widest vectors that fit, then narrower ones.
template <int P>
struct Row {
  static constexpr int width = head_width(P);
  typedef typename HeadOf<width>::Float Head;
  Head head;
  Row<P - width> tail;

  WEAKTR_MEMBER void load_from(const float* from) {
    head = load<Head>(from);
    tail.load_from(from + width);
  }
  WEAKTR_MEMBER void store_to(float* to) const {
    store(to, head);
    tail.store_to(to + width);
  }
  WEAKTR_MEMBER void clear() {
    head = Head{};
    tail.clear();
  }
  // this += weight * row at `from`
  WEAKTR_MEMBER void add(float weight, const float* from) {
    head = fused(filled<Head>(weight), load<Head>(from), head);
    tail.add(weight, from + width);
  }
  WEAKTR_MEMBER void add(float weight, const Row& other) {
    head = fused(filled<Head>(weight), other.head, head);
    tail.add(weight, other.tail);
  }
  // this += row at `from`
  WEAKTR_MEMBER void add(const float* from) {
    head = head + load<Head>(from);
    tail.add(from + width);
  }
  WEAKTR_MEMBER void scale(float factor) {
    head = head * factor;
    tail.scale(factor);
  }
  // row at `to` += weight * this
  WEAKTR_MEMBER void add_to(float weight, float* to) const {
    store(to, fused(filled<Head>(weight), head, load<Head>(to)));
    tail.add_to(weight, to + width);
  }
  // this = own + left_link * left + right_link * right
  WEAKTR_MEMBER void blend(const Row& own, float left_link, const Row& left, float right_link,
                           const Row& right) {
    head = fused(filled<Head>(left_link), left.head,
                 fused(filled<Head>(right_link), right.head, own.head));
    tail.blend(own.tail, left_link, left.tail, right_link, right.tail);
  }
};
template <>
struct Row<0> {
  WEAKTR_MEMBER void load_from(const float*) {}
  WEAKTR_MEMBER void store_to(float*) const {}
  WEAKTR_MEMBER void clear() {}
  WEAKTR_MEMBER void add(float, const float*) {}
  WEAKTR_MEMBER void add(float, const Row&) {}
  WEAKTR_MEMBER void add(const float*) {}
  WEAKTR_MEMBER void scale(float) {}
  WEAKTR_MEMBER void add_to(float, float*) const {}
  WEAKTR_MEMBER void blend(const Row&, float, const Row&, float, const Row&) {}
};

// ---- a lattice's rows
//
// They lie in planes of kPlane columns, [vertices, kPlane] after [vertices, kPlane], and a last
// plane of the columns that are left: a plane's rows do not straddle cache lines, and a plane is
// small enough to stay in the caches while it is blurred along all axes.

constexpr int kPlane = 16;

// A lattice's rows from some plane on.
struct Planes {
  float* first;
  int64_t size;  // floats from one plane to the next
};

// P columns, from the start of a plane on.
template <int P>
struct PlaneRow {
  static constexpr int width = P < kPlane ? P : kPlane;
  // Records hold the vertex times `offset_unit`; times this it is where its row starts.
  static constexpr size_t scale = P == 1 ? 1 : width / 2;
  Row<width> head;
  PlaneRow<P - width> tail;

  WEAKTR_MEMBER void load_from(const float* from) {
    head.load_from(from);
    tail.load_from(from + width);
  }
  WEAKTR_MEMBER void store_to(float* to) const {
    head.store_to(to);
    tail.store_to(to + width);
  }
  WEAKTR_MEMBER void clear() {
    head.clear();
    tail.clear();
  }
  // this += row at `from`
  WEAKTR_MEMBER void add(const float* from) {
    head.add(from);
    tail.add(from + width);
  }
  // this += weight * the lattice's row at `offset`
  WEAKTR_MEMBER void add(float weight, Planes rows, size_t offset) {
    head.add(weight, rows.first + offset * scale);
    tail.add(weight, Planes{rows.first + rows.size, rows.size}, offset);
  }
  // the lattice's row at `offset` += weight * this
  WEAKTR_MEMBER void add_to(float weight, Planes rows, size_t offset) const {
    head.add_to(weight, rows.first + offset * scale);
    tail.add_to(weight, Planes{rows.first + rows.size, rows.size}, offset);
  }
};
template <>
struct PlaneRow<0> {
  WEAKTR_MEMBER void load_from(const float*) {}
  WEAKTR_MEMBER void store_to(float*) const {}
  WEAKTR_MEMBER void clear() {}
  WEAKTR_MEMBER void add(const float*) {}
  WEAKTR_MEMBER void add(float, Planes, size_t) {}
  WEAKTR_MEMBER void add_to(float, Planes, size_t) const {}
};

}  // namespace WEAKTR_ISA
}  // namespace weaktr
