// The formulas for ONE box, for host and device. No other file repeats them.
//
// Every function is written with separate + - * / operations and comparisons, so that the CPU (-ffp-contract=off), the
// GPU (-fmad=false) and plain PyTorch round in the same places and give the same bits.
#pragma once

#include "core/exact_math.h"

#include <torch/headeronly/macros/Macros.h>

#include <cmath>
#include <cstdint>
#include <limits>

namespace ssd_ext {

// A box in xyxy form. T is the compute type: float or double. Aligned, so that a GPU loads and stores a box as a whole.
template <typename T>
struct alignas(4 * sizeof(T)) Box {
  using value_type = T;
  T x0, y0, x1, y1;
};

// A box in cxcywh form: centre and size.
template <typename T>
struct alignas(4 * sizeof(T)) CenterBox {
  using value_type = T;
  T cx, cy, w, h;
};

// A box relative to a prior, as a network predicts it.
template <typename T>
struct alignas(4 * sizeof(T)) BoxOffsets {
  using value_type = T;
  T x, y, w, h;
};

// The xyxy form of a box in either form.
template <typename T>
C10_HOST_DEVICE inline Box<T> corners(const Box<T>& box) {
  return box;
}
template <typename T>
C10_HOST_DEVICE inline Box<T> corners(const CenterBox<T>& box) {
  return {box.cx - box.w * T(0.5), box.cy - box.h * T(0.5), box.cx + box.w * T(0.5), box.cy + box.h * T(0.5)};
}

// Row i of a contiguous (N, 4) array as a Box, CenterBox or BoxOffsets. Loads one number at a time: a view may
// start at any element, so wider loads could be misaligned.
template <typename Row, typename scalar_t>
C10_HOST_DEVICE inline Row load_row(const scalar_t* rows, int64_t i) {
  using T = typename Row::value_type;
  const scalar_t* row = rows + 4 * i;
  return {static_cast<T>(row[0]), static_cast<T>(row[1]), static_cast<T>(row[2]), static_cast<T>(row[3])};
}

// Stores a Box, CenterBox or BoxOffsets as row i of a contiguous (N, 4) array.
template <typename Row, typename scalar_t>
C10_HOST_DEVICE inline void store_row(const Row& row, scalar_t* rows, int64_t i) {
  const auto [a, b, c, d] = row;
  rows[4 * i] = static_cast<scalar_t>(a);
  rows[4 * i + 1] = static_cast<scalar_t>(b);
  rows[4 * i + 2] = static_cast<scalar_t>(c);
  rows[4 * i + 3] = static_cast<scalar_t>(d);
}

template <typename T, typename scalar_t>
C10_HOST_DEVICE inline Box<T> load_box(const scalar_t* boxes, int64_t i) {
  return load_row<Box<T>>(boxes, i);
}

// Width times height; may be negative, infinite or NaN if the box is inverted or not finite.
template <typename T>
C10_HOST_DEVICE inline T area(const Box<T>& box) {
  return (box.x1 - box.x0) * (box.y1 - box.y0);
}

template <typename T>
struct Overlap {
  T inter, uni;  // areas of the intersection, at least 0, and of the union
};

// Intersection and union of two boxes whose areas are given.
//
// A NaN coordinate may get lost in the comparisons below, but it makes the area and so the union NaN. If a box is
// inverted along an axis, the intersection has size 0 along this axis, even if the box is inverted along both axes and
// so has a positive area.
template <typename T>
C10_HOST_DEVICE inline Overlap<T> overlap(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  const T left = a.x0 > b.x0 ? a.x0 : b.x0;
  const T top = a.y0 > b.y0 ? a.y0 : b.y0;
  const T right = a.x1 < b.x1 ? a.x1 : b.x1;
  const T bottom = a.y1 < b.y1 ? a.y1 : b.y1;
  const T width = right - left > T(0) ? right - left : T(0);
  const T height = bottom - top > T(0) ? bottom - top : T(0);
  const T inter = width * height;
  return {inter, (area_a + area_b) - inter};
}

// Intersection over union of two boxes whose areas are given; 0 where the intersection or the union is not positive.
template <typename T>
C10_HOST_DEVICE inline T iou(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  const Overlap<T> both = overlap(a, area_a, b, area_b);
  // & and not &&: a branch here would keep CPU compilers from vectorising the caller's loop.
  const bool positive = (both.inter > T(0)) & (both.uni > T(0));
  return positive ? both.inter / both.uni : T(0);
}

// False means that the IoU is not greater than the threshold, which must be >= 0 or NaN. This decides most pairs
// without a division.
//
// If the rounded quotient is above the threshold, so is the exact one, hence inter > threshold * uni. Rounding this
// product cannot make it greater than inter.
template <typename T>
C10_HOST_DEVICE inline bool iou_may_exceed(const Overlap<T>& both, T threshold) {
  return (both.inter > T(0)) & (both.inter >= threshold * both.uni);
}

// Whether a kept box suppresses another box, that is, whether their IoU is greater than the threshold.
template <typename T>
C10_HOST_DEVICE inline bool suppresses(const Box<T>& kept, const Box<T>& box, T threshold) {
  // Every IoU is greater than a negative number.
  if (threshold < T(0)) return true;
  const T kept_area = area(kept);
  const T box_area = area(box);
  return iou_may_exceed(overlap(kept, kept_area, box, box_area), threshold) &&
         iou(kept, kept_area, box, box_area) > threshold;
}

// On the host: the largest number of type T that is <= threshold. A number of type T is greater than the result if
// and only if it is greater than the threshold.
template <typename T>
T rounded_down(double threshold) {
  const T rounded = static_cast<T>(threshold);
  return static_cast<double>(rounded) > threshold ? std::nextafter(rounded, -std::numeric_limits<T>::infinity())
                                                  : rounded;
}

// The numbers by which encoding divides the offsets of centre and size.
template <typename T>
struct Variances {
  T center, size;

  // Converted to the compute type of a kernel.
  template <typename U>
  Variances<U> as() const {
    return {static_cast<U>(center), static_cast<U>(size)};
  }
};

// The offsets of a box from a prior. The offset of a width or height that is not greater than 0 is not finite.
template <typename T>
C10_HOST_DEVICE inline BoxOffsets<T> encode(const Box<T>& box, const CenterBox<T>& prior,
                                            const Variances<T>& variances) {
  return {((box.x0 + box.x1) * T(0.5) - prior.cx) / (prior.w * variances.center),
          ((box.y0 + box.y1) * T(0.5) - prior.cy) / (prior.h * variances.center),
          exact_log((box.x1 - box.x0) / prior.w) / variances.size,
          exact_log((box.y1 - box.y0) / prior.h) / variances.size};
}

// The box that has these offsets from a prior. The logarithm of its scale is cut at max_log_scale (inf: no limit);
// a NaN stays NaN.
template <typename T>
C10_HOST_DEVICE inline Box<T> decode(const BoxOffsets<T>& offsets, const CenterBox<T>& prior,
                                     const Variances<T>& variances, T max_log_scale) {
  const T cx = offsets.x * (prior.w * variances.center) + prior.cx;
  const T cy = offsets.y * (prior.h * variances.center) + prior.cy;
  const T log_w = offsets.w * variances.size;
  const T log_h = offsets.h * variances.size;
  const T w = exact_exp(log_w > max_log_scale ? max_log_scale : log_w) * prior.w;
  const T h = exact_exp(log_h > max_log_scale ? max_log_scale : log_h) * prior.h;
  return corners(CenterBox<T>{cx, cy, w, h});
}

// The part of a box in the unit square; a NaN stays NaN, -0 becomes 0.
template <typename T>
C10_HOST_DEVICE inline Box<T> clipped(const Box<T>& box) {
  const auto clip = [](T x) { return (x < T(0) ? T(0) : x > T(1) ? T(1) : x) + T(0); };
  return {clip(box.x0), clip(box.y0), clip(box.x1), clip(box.y1)};
}

}  // namespace ssd_ext
