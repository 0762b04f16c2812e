// Greedy suppression among 32 boxes, by one warp.
#pragma once

#include "core/cuda/block_ops.cuh"

namespace ssd_ext {

// Returns the boxes that are kept, one bit each, the same in all lanes. alive: the boxes that take part,
// the same in all lanes. suppressed: the boxes after this lane's box that this box suppresses if it is kept. The loop
// takes one step for each kept box that suppresses another.
__device__ inline unsigned settle(unsigned alive, unsigned suppressed) {
  const unsigned suppressing = __ballot_sync(kAllLanes, suppressed != 0);
  for (unsigned left = alive & suppressing; left != 0; left &= (left - 1) & alive) {
    alive &= ~__shfl_sync(kAllLanes, suppressed, __ffs(left) - 1);
  }
  return alive;
}

}  // namespace ssd_ext
