// The launches of match_priors.cu, for other ops that begin with matching.
#pragma once

#include "core/box_math.h"
#include "core/checks.h"
#include "core/cuda/launch.cuh"

#include <cstdint>

namespace ssd_ext {

// Prior: the form of the priors, Box or CenterBox. Other files may call this function with float or double. n_images
// and n_priors are at least 1. like: any tensor on the device.
template <typename Prior, typename scalar_t>
void launch_match_priors(const scalar_t* boxes,      // (G, 4) xyxy
                         const int32_t* row_splits,  // (B + 1,)
                         const scalar_t* priors,     // (P, 4)
                         int32_t* match,             // (B, P), the output
                         int64_t n_images, int64_t n_objects, int64_t n_priors, double threshold,
                         bool bipartite, const Tensor& like, cudaStream_t stream);

}  // namespace ssd_ext
