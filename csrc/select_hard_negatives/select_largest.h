// Exact selection of the largest keys, without a sort.
#pragma once

#include <cstdint>

namespace ssd_ext {

// selected[i] = whether keys[i] is one of the k largest; of equal keys the lowest index. 0 <= k <= n, and at
// least k keys are not 0: a key of 0 is never selected. n < 2^32.
void select_largest(const uint32_t* keys, int64_t n, int64_t k, bool* selected);
void select_largest(const uint64_t* keys, int64_t n, int64_t k, bool* selected);

}  // namespace ssd_ext
