// The formulas of ONE box, for host and device: the only place that has them.
//
// Every function is written with single + - * / and comparisons, so that the CPU (-ffp-contract=off), the GPU
// (-fmad=false) and plain PyTorch round at the same places and give the same bits.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>

namespace ssd_ext {

// A box in xyxy form. T is the compute type: float or double. Aligned, so that a GPU moves a box at once.
template <typename T>
struct alignas(4 * sizeof(T)) Box {
  T x0, y0, x1, y1;
};

// Box i of a contiguous (N, 4) array. Loads one number at a time: a view may start at any element, so wider
// loads could be misaligned.
template <typename T, typename scalar_t>
C10_HOST_DEVICE inline Box<T> load_box(const scalar_t* boxes, int64_t i) {
  const scalar_t* box = boxes + 4 * i;
  return {static_cast<T>(box[0]), static_cast<T>(box[1]), static_cast<T>(box[2]), static_cast<T>(box[3])};
}

// Width times height; negative, infinite or NaN for boxes that are no proper area.
template <typename T>
C10_HOST_DEVICE inline T area(const Box<T>& box) {
  return (box.x1 - box.x0) * (box.y1 - box.y0);
}

// Intersection over union of two boxes with the areas given; 0 where the intersection or the union is not
// positive.
//
// A NaN coordinate may get lost in the comparisons below, but it makes the area and so the union NaN, which
// is not positive. An inverted side gives an overlap of at most 0, also where two inverted sides give a
// positive area.
template <typename T>
C10_HOST_DEVICE inline T iou(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  const T left = a.x0 > b.x0 ? a.x0 : b.x0;
  const T top = a.y0 > b.y0 ? a.y0 : b.y0;
  const T right = a.x1 < b.x1 ? a.x1 : b.x1;
  const T bottom = a.y1 < b.y1 ? a.y1 : b.y1;
  const T width = right - left > T(0) ? right - left : T(0);
  const T height = bottom - top > T(0) ? bottom - top : T(0);
  const T inter = width * height;
  const T uni = (area_a + area_b) - inter;
  // & and not &&: a branch here would keep CPU compilers from vectorising the caller's loop.
  const bool positive = (inter > T(0)) & (uni > T(0));
  return positive ? inter / uni : T(0);
}

}  // namespace ssd_ext
