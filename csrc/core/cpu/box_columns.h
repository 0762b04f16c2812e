// Boxes laid out for loops that the compiler vectorises.
#pragma once

#include "core/box_math.h"

#include <cstdint>

namespace ssd_ext {

// kSize boxes and their areas, one array per coordinate. Boxes of zeros overlap nothing.
template <typename T, int64_t kSize>
struct BoxColumns {
  T x0[kSize], y0[kSize], x1[kSize], y1[kSize], areas[kSize];

  void set(int64_t i, const Box<T>& box) {
    x0[i] = box.x0;
    y0[i] = box.y0;
    x1[i] = box.x1;
    y1[i] = box.y1;
    areas[i] = area(box);
  }
  Box<T> box(int64_t i) const { return {x0[i], y0[i], x1[i], y1[i]}; }
};

}  // namespace ssd_ext
