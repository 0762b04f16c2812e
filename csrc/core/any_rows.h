// Rows of four numbers in any floating dtype, for tensors that a kernel reads in only a few places: a switch on the
// dtype in each of these places costs less than a kernel for every combination of dtypes.
#pragma once

#include "core/box_math.h"
#include "core/checks.h"

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>

namespace ssd_ext {

// A contiguous (N, 4) array.
struct AnyRows {
  const void* data;
  ScalarType dtype;
};

inline AnyRows rows_of(const Tensor& tensor) {
  dispatch_floating_dtype(tensor.scalar_type(), [](auto) {});  // throws for any other dtype
  return {tensor.const_data_ptr(), tensor.scalar_type()};
}

// Row i as a Box, CenterBox or BoxOffsets.
template <typename Row>
C10_HOST_DEVICE inline Row load_row(const AnyRows& rows, int64_t i) {
  switch (rows.dtype) {
    case ScalarType::Double: return load_row<Row>(static_cast<const double*>(rows.data), i);
    case ScalarType::Half: return load_row<Row>(static_cast<const torch::headeronly::Half*>(rows.data), i);
    case ScalarType::BFloat16:
      return load_row<Row>(static_cast<const torch::headeronly::BFloat16*>(rows.data), i);
    default: return load_row<Row>(static_cast<const float*>(rows.data), i);
  }
}

}  // namespace ssd_ext
