// The number of hard negatives of an image, for host and device; and the checks of the inputs.
#pragma once

#include "core/checks.h"

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>

namespace ssd_ext {

// min(max(ceil(ratio * n_pos), min_negatives), n_neg), with the product in float; a NaN product counts as 0.
C10_HOST_DEVICE inline int64_t hard_negative_count(int64_t n_pos, int64_t n_neg, double ratio, int64_t min_negatives) {
  const double product = static_cast<float>(n_pos) * static_cast<float>(ratio);
  int64_t count = 0;
  if (product >= static_cast<double>(n_neg)) {  // compared before the conversion, since it may exceed every integer
    count = n_neg;
  } else if (product > 0) {
    count = static_cast<int64_t>(product);
    count += static_cast<double>(count) < product;
  }
  if (count < min_negatives) count = min_negatives;
  return count < n_neg ? count : n_neg;
}

inline void check_losses(const Tensor& loss, const Tensor& positive) {
  STD_TORCH_CHECK(loss.dim() == 2, "loss must have the shape (B, P), got ", shape_of(loss));
  STD_TORCH_CHECK(positive.dim() == 2 && positive.size(0) == loss.size(0) && positive.size(1) == loss.size(1),
                  "positive must have the shape ", shape_of(loss), ", got ", shape_of(positive));
  STD_TORCH_CHECK(positive.scalar_type() == ScalarType::Bool, "positive must be Bool, got ",
                  toString(positive.scalar_type()));
  STD_TORCH_CHECK(loss.size(1) <= INT32_MAX, "loss must have fewer than 2^31 priors, got ", loss.size(1));
  check_same_device(loss, "loss", positive, "positive");
}

}  // namespace ssd_ext
