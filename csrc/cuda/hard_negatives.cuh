// The hard negatives of an image, found by one block.
#pragma once

#include "cuda/block_ops.cuh"
#include "hard_negatives.h"

#include <cstdint>

namespace ssd_ext {

constexpr int kMiningThreads = 512;  // of the block, at most
// Keys of a thread in registers: 9216 of a block, so that the 8732 priors of SSD300 fit.
constexpr int kMiningKeys = 18;
constexpr int64_t kMiningPriors = kMiningThreads * kMiningKeys;

// Writes `selected` and returns how many priors are positive. Thread t writes the priors p with
// p % blockDim.x == t.
//
//   key_of(p):    the key of the loss of prior p (order.h), 0 if it is positive
//   kInRegisters: keeps the keys; for that n_priors is at most kMiningKeys * blockDim.x. Otherwise each pass
//                 over the keys calls key_of again.
template <bool kInRegisters, typename Bits, typename KeyOf>
__device__ unsigned select_hard_negatives_of_image(const KeyOf& key_of, unsigned n_priors, double ratio,
                                                   int64_t min_negatives, BlockSums<3>& sums,
                                                   bool* selected) {  // (P,)
  Bits keys[kMiningKeys];
  if (kInRegisters) {
    for (int i = 0; i < kMiningKeys; ++i) {
      const unsigned prior = i * blockDim.x + threadIdx.x;
      keys[i] = prior < n_priors ? key_of(prior) : 0;
    }
  }
  const auto for_each_key = [&](const auto& function) {
    if (kInRegisters) {
      for (int i = 0; i < kMiningKeys; ++i) function(keys[i], i * blockDim.x + threadIdx.x);
    } else {
      for (unsigned prior = threadIdx.x; prior < n_priors; prior += blockDim.x) {
        function(key_of(prior), prior);
      }
    }
  };

  unsigned counts[3] = {};
  for_each_key([&](Bits key, unsigned) { counts[0] += key != 0; });
  sums.add(counts);
  const unsigned n_neg = counts[0];
  const auto k =
      static_cast<unsigned>(hard_negative_count(n_priors - n_neg, n_neg, ratio, min_negatives));
  Selection<Bits> hardest = {};
  if (k > 0) hardest = select_largest<Bits>(for_each_key, n_priors, n_neg, k, sums);
  for_each_key([&](Bits key, unsigned prior) {
    if (prior < n_priors) selected[prior] = k > 0 && hardest.contains(key, prior);
  });
  return n_priors - n_neg;
}

}  // namespace ssd_ext
