// Greedy suppression among 32 boxes, by one warp.
#pragma once

#include "core/cuda/block_ops.cuh"

namespace ssd_ext {

// Which of the boxes alive are kept, bit by bit. suppressed: by this lane's box, among those behind it. Only
// boxes that are kept and suppress another take a step.
__device__ inline unsigned settle(unsigned alive, unsigned suppressed) {
  const unsigned suppressing = __ballot_sync(kAllLanes, suppressed != 0);
  for (unsigned left = alive & suppressing; left != 0; left &= (left - 1) & alive) {
    alive &= ~__shfl_sync(kAllLanes, suppressed, __ffs(left) - 1);
  }
  return alive;
}

}  // namespace ssd_ext
