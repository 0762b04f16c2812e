// The checks of encode_boxes and decode_boxes, for CPU and GPU.
#pragma once

#include "core/checks.h"

namespace ssd_ext {

// Checks that `values` has one row for every prior.
inline void check_per_prior(const Tensor& values, const char* name, const Tensor& priors_cxcywh) {
  check_boxes(priors_cxcywh, "priors_cxcywh");
  const int64_t n_priors = priors_cxcywh.size(0);
  const int64_t dim = values.dim();
  STD_TORCH_CHECK(dim >= 2 && values.size(dim - 2) == n_priors && values.size(dim - 1) == 4, name,
                  " must have the shape (..., ", n_priors, ", 4), got ", shape_of(values));
  check_same_device(values, name, priors_cxcywh, "priors_cxcywh");
  check_same_dtype(values, name, priors_cxcywh, "priors_cxcywh");
}

}  // namespace ssd_ext
