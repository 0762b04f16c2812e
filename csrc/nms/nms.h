// Shared by nms and batched_nms on CPU and GPU: the checks and the sort key of a score.
#pragma once

#include "core/checks.h"
#include "core/order.h"

#include <cstdint>

namespace ssd_ext {

constexpr int64_t kMaxBoxes = 1 << 30;  // indices fit into 32 bits, even with a tile added

// The sort key of a score. In ascending order of the keys, the highest score comes first, and NaN before all others.
template <typename T>
C10_HOST_DEVICE inline bits_t<T> descending_bits(T score) {
  return static_cast<bits_t<T>>(~ordered_bits(score));
}

inline void check_scored_boxes(const Tensor& boxes, const Tensor& scores) {
  check_boxes(boxes, "boxes");
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == boxes.size(0), "scores must have the shape (",
                  boxes.size(0), "), got ", shape_of(scores));
  STD_TORCH_CHECK(boxes.size(0) <= kMaxBoxes, "there must be at most 2^30 boxes, got ", boxes.size(0));
  check_same_device(boxes, "boxes", scores, "scores");
}

inline void check_idxs(const Tensor& idxs, const Tensor& scores) {
  STD_TORCH_CHECK(idxs.dim() == 1 && idxs.size(0) == scores.size(0), "idxs must have the shape ",
                  shape_of(scores), ", got ", shape_of(idxs));
  check_same_device(idxs, "idxs", scores, "scores");
}

// Calls function(id_t()) with the C++ type of group ids. The Python functions convert other integers to int64 before
// they call an op.
template <typename Function>
void dispatch_id_dtype(ScalarType dtype, const Function& function) {
  switch (dtype) {
    case ScalarType::Int: return function(int32_t());
    case ScalarType::Long: return function(int64_t());
    default:
      STD_TORCH_CHECK(false, "idxs must be Int or Long, got ", toString(dtype));
  }
}

}  // namespace ssd_ext
