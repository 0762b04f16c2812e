// Matching, for the ops that build on it.
#pragma once

#include "checks.h"

#include <string>

namespace ssd_ext {

// The op match_priors: see ssd_ext/reference.py.
Tensor match_priors_cpu(const Tensor& boxes, const Tensor& offsets, const Tensor& priors_xyxy, double threshold,
                        const std::string& mode);

}  // namespace ssd_ext
